"""A handler's note to a failure: its readers, and its limits."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.effects import Link, NoticeEvent
from bester.broker.core.settings import Route, Settings
from bester.broker.wire.codes import WireError
from bester.broker.wire.messages import (
    Confirm,
    Deliver,
    Forward,
    Forwarded,
    Message,
    Outcome,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
)
from bester.broker.wire.unsendable import expected_answer
from tests.unit.core_stand import Stand, clients, handler, servers


def refusal_of(reply_rest: tuple[Any, ...]) -> tuple[str | None, str | None, list[tuple[NoticeEvent, str]]]:
    """Return the reason and note of the sender's report where a handler replies this, and the notes that are logged."""
    stand = Stand()
    bridge, worker = stand.bridge("alice"), stand.handler("t")
    token = stand.submit(bridge, "t")
    stand.say(worker, Reply(stand.request(worker).token, *reply_rest))
    report = stand.report(bridge, token)
    assert report.status == 1 and report.recipients == {}
    logged = [(notice.event, notice.fields["note"]) for notice in stand.notices if "note" in notice.fields]
    return report.reason, report.note, logged


@pytest.mark.parametrize(
    ("reply", "reason", "note", "event"),
    [
        ((1, [], "KeyError: 'x'"), "handler-failed", None, "handler-failed"),
        ((1, [], None), "handler-failed", None, "handler-failed"),
        ((2, [], "too many"), "refused", "too many", "handler-refused"),
        ((2, [clients("alice")], "too many"), "refused", "too many", "handler-refused"),
        ((2, [], None), "refused", None, "handler-refused"),
        ((2, [], " \n\t "), "refused", None, "handler-refused"),
        ((2, [], "a\nb\x1b[m\x00"), "refused", "a b [m", "handler-refused"),
        ((2, [], "data.x: expected null", "schema"), "schema", "data.x: expected null", "handler-refused"),
        ((2, [], "why", "bad-reply"), "refused", "why", "handler-refused"),
        ((2, [], "why", "not-allowed"), "refused", "why", "handler-refused"),
        ((1, [], "half a pair", "bad-reply"), "bad-reply", None, "handler-failed"),
        ((1, [], "secret", "schema"), "handler-failed", None, "handler-failed"),
        ((3, [], "secret"), "handler-failed", None, "handler-failed"),
        ((-1, [], "secret", "schema"), "handler-failed", None, "handler-failed"),
        ((99, [], "secret", "refused"), "handler-failed", None, "handler-failed"),
    ],
)
def test_status_and_code_give_the_reason_and_only_a_refusal_gives_its_note(
    reply: tuple[Any, ...], reason: str, note: str | None, event: str
) -> None:
    got_reason, got_note, logged = refusal_of(reply)
    assert (got_reason, got_note) == (reason, note)
    assert [each for each, _ in logged] == [event]


def test_a_long_note_is_cut_for_sender_and_log() -> None:
    _, note, logged = refusal_of((2, [], "x" * 10_000_000))
    assert note is not None and len(note) == 500
    assert logged == [("handler-refused", note)]


def test_the_first_failure_has_the_note_whatever_fails_behind_it() -> None:
    stand = Stand()
    bridge, worker = stand.bridge("alice"), stand.handler("t", "a", "b")
    token = stand.submit(bridge, "t")
    stand.answer(worker, handler("a"), handler("b"))
    first, second = [request.token for request in stand.heard_of(worker, Request)]
    stand.say(worker, Reply(second, 2, [], "b is full"))
    stand.say(worker, Reply(first, 2, [], "a is full"))
    report = stand.report(bridge, token)
    assert (report.reason, report.note) == ("refused", "b is full")
    assert report.recipients == {"a": "failed:refused", "b": "failed:refused"}


def test_a_note_is_not_that_of_another_failure() -> None:
    stand = Stand()
    bridge, worker = stand.bridge("alice"), stand.handler("t", "a")
    stand.submit(bridge, "t")
    stand.answer(worker, clients("nobody"), handler("a"))
    stand.say(worker, Reply(stand.request(worker).token, 2, [], "a is full"))
    report = stand.report(bridge)
    assert (report.reason, report.note) == ("not-connected", None)


def test_duplicate_gets_the_same_note() -> None:
    stand = Stand()
    bridge, worker = stand.bridge("alice"), stand.handler("t")
    first = stand.submit(bridge, "t", dedup="d")
    again = stand.submit(bridge, "t", dedup="d")
    stand.say(worker, Reply(stand.request(worker).token, 2, [], "too many"))
    notes = {report.token: report.note for report in stand.heard_of(bridge, Report)}
    assert notes == {first: "too many", again: "too many"}


def test_emission_gets_the_note_of_a_refused_result() -> None:
    stand = Stand()
    clock, worker = stand.handler("clock", name="c"), stand.handler("t")
    token = stand.emit(clock, "clock", handler("t"))
    stand.say(worker, Reply(stand.request(worker).token, 2, [], "too many"))
    assert stand.one(clock, Outcome) == Outcome(token, 1, {"t": "failed:refused"}, "refused", "too many")


def test_note_for_a_server_is_in_the_meta_of_its_answer() -> None:
    stand = Stand(Settings("s1", open_accounts=True, routes={"s2": Route("s2", fabric="ipc://x")}))
    worker, server = stand.handler("t"), stand.server("s2")
    token = stand.relay(server, "t")
    stand.say(worker, Reply(stand.request(worker).token, 2, [], "data.x: expected null", "schema"))
    assert stand.one(server, Relayed) == Relayed(token, "failed:schema", {"note": "data.x: expected null"})


ELSEWHERE = {
    "fabric": Settings("s1", open_accounts=True, routes={"s2": Route("s2", fabric="ipc://x")}),
    "native": Settings("s1", open_accounts=True, routes={"s2": Route("s2", native="127.0.0.1:9")}),
}


@pytest.mark.parametrize("way", ELSEWHERE)
@pytest.mark.parametrize(
    ("outcome", "meta", "reason", "note"),
    [
        ("failed:refused", {"note": "too many"}, "refused", "too many"),
        ("failed:schema", {"note": "data.x: expected null"}, "schema", "data.x: expected null"),
        ("failed:refused", {"note": "a\nb\udcff" + "x" * 1000}, "refused", "a b\ufffd" + "x" * 495 + "…"),
        ("failed:refused", {"note": 7}, "refused", None),
        ("failed:refused", {"note": ["too many"]}, "refused", None),
        ("failed:refused", {"note": "\n"}, "refused", None),
        ("failed:refused", {}, "refused", None),
        ("failed:made-up", {"note": "too many"}, "bad-reply", None),
        ("delivered", {"note": "too many"}, None, None),
    ],
)
def test_note_of_another_server_is_made_safe(
    way: str, outcome: str, meta: dict[str, Any], reason: str | None, note: str | None
) -> None:
    stand = Stand(ELSEWHERE[way])
    bridge, worker = stand.bridge("alice"), stand.handler("t")
    link = Link("server", b"s2") if way == "fabric" else bridge
    stand.take(stand.router.on_server_ready("s2", stand.now))
    token = stand.submit(bridge, "t")
    stand.answer(worker, servers("s2"))
    if way == "fabric":
        stand.say(link, Relayed(stand.one(link, Relay).token, outcome, meta))
    else:
        stand.say(link, Forwarded(stand.one(link, Forward).token, outcome, meta))
    report = stand.report(bridge, token)
    assert (report.reason, report.note) == (reason, note)


def test_message_refused_elsewhere_is_not_tried_again() -> None:
    stand = Stand(ELSEWHERE["fabric"])
    bridge, worker = stand.bridge("alice"), stand.handler("t")
    link = Link("server", b"s2")
    stand.take(stand.router.on_server_ready("s2", stand.now))
    stand.submit(bridge, "t")
    stand.answer(worker, servers("s2"))
    stand.say(link, Relayed(stand.one(link, Relay).token, "failed:refused", {"note": "too many"}))
    assert stand.report(bridge).recipients == {"s2": "failed:refused"}
    stand.wait(120.0)
    assert stand.heard(link) == []


# --- unsendable messages end as if refused ---------------------------------------------------------------------

ERROR = WireError("malformed", "a text has half a surrogate pair in it")


def end(stand: Stand, link: Link, message: Message) -> None:
    """Let the shell report this message as unsendable."""
    answer = expected_answer(message, ERROR)
    assert answer is not None
    stand.say(link, answer)


def test_a_request_that_cannot_be_sent() -> None:
    stand = Stand()
    bridge, worker = stand.bridge("alice"), stand.handler("t")
    token = stand.submit(bridge, "t")
    end(stand, worker, stand.request(worker))
    report = stand.report(bridge, token)
    assert (report.reason, report.note) == ("handler-failed", None)
    stand.submit(bridge, "t")
    stand.answer(worker)
    assert stand.report(bridge).status == 0


def test_unsendable_delivery_harms_no_other() -> None:
    stand = Stand()
    bridge, worker = stand.bridge("alice", "bob"), stand.handler("t")
    other = stand.bridge("carol", "dave", name="c")
    tokens = [stand.submit(bridge, "t") for _ in range(3)]
    for request in stand.heard_of(worker, Request):
        stand.reply(worker, request.token, clients("carol", "dave"))
    _, second, third = stand.heard_of(other, Deliver)
    end(stand, other, second)
    stand.say(other, Confirm(third.serial))
    reports = {report.token: report for report in stand.heard_of(bridge, Report)}
    assert [reports[token].reason for token in tokens] == [None, "malformed", None]
    assert reports[tokens[1]].recipients == {"carol": "failed:malformed", "dave": "failed:malformed"}


@pytest.mark.parametrize("way", ELSEWHERE)
def test_unsendable_relay_is_a_dead_letter_and_does_not_block_its_lane(way: str) -> None:
    stand = Stand(ELSEWHERE[way])
    bridge, worker = stand.bridge("alice"), stand.handler("t")
    link = Link("server", b"s2") if way == "fabric" else bridge
    kind: type[Relay] | type[Forward] = Relay if way == "fabric" else Forward
    stand.take(stand.router.on_server_ready("s2", stand.now))
    token = stand.submit(bridge, "t")
    stand.answer(worker, servers("s2"))
    end(stand, link, stand.one(link, kind))
    assert stand.report(bridge, token).recipients == {"s2": "failed:malformed"}
    stand.submit(bridge, "t")
    stand.answer(worker, servers("s2"))
    assert stand.one(link, kind)
