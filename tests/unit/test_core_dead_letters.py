"""Dead letters: the messages that end as one, the answers to operators, and replays."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core import dead_letters as letters_module
from bester.broker.core.dead_letters import MOST
from bester.broker.core.effects import Link, Notice
from bester.broker.core.settings import Budget, Limits, Route, Settings
from bester.broker.store_requests import Bounds, Bury, Committed, DeadLetter, FindDeadLetters, lane
from bester.broker.wire.messages import (
    Answer,
    Ask,
    Close,
    Deliver,
    Error,
    Heartbeat,
    Open,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
)
from tests.unit.core_stand import START, Stand, clients, handler, servers

S2 = Link("server", b"s2")


class Ward:
    """A server with handlers that may die, alice, and an operator."""

    def __init__(self, limits: Limits | None = None, *, messages: int = 1000, **budgets: Budget) -> None:
        routes = {"s2": Route("s2", fabric="ipc:///s2")}
        bounds = Bounds(messages=messages, ttl_s=60.0)
        settings = Settings("s1", routes=routes, budgets=budgets, limits=limits or Limits(), bounds=bounds)
        self.stand = Stand(settings, accounts=frozenset({"alice", "bob"}), now=START - 5.0)
        self.stand.wait(5.0)
        self.opens()

    def opens(self) -> None:
        self.bridge = self.stand.bridge("alice")
        self.operator = self.stand.join("operator", "op")

    def kill(self, victim: Link) -> None:
        self.stand.take(self.stand.router.on_undeliverable(victim, Heartbeat(), self.stand.now))
        self.stand.alive.pop(victim, None)

    def murder(self, type_: str = "t", body: bytes = b"1", times: int = 3, **meta: Any) -> str:
        """Submit a message of which `times` handlers die; return its id."""
        victim = self.stand.handler(type_)
        self.stand.submit(self.bridge, type_, body, **meta)
        for attempt in range(1, times + 1):
            request = self.stand.request(victim)
            assert request.meta["attempt"] == attempt
            self.kill(victim)
            if attempt < times:
                victim = self.stand.handler(type_)
        report = self.stand.report(self.bridge)
        assert (report.status, report.reason) == (1, "handler-lost")
        return str(report.message)

    def letters(self) -> list[DeadLetter]:
        """Return the dead letters on disk, latest first."""
        found: list[DeadLetter] = self.stand.store.read(FindDeadLetters(None, None, 100))
        return found

    def asks(self, question: str, argument: Any = None) -> Answer:
        return self.stand.ask(self.operator, question, argument)


# --- messages that end as one ---------------------------------------------------------------------------------------


def test_message_that_every_handler_died_of_is_a_dead_letter_with_body_reason_and_path() -> None:
    ward = Ward()
    id_ = ward.murder(body=b'{"a":1e400}')
    assert ward.letters() == [
        DeadLetter(
            id_, "t", b'{"a":1e400}', "handler-lost", START,
            {
                "root": id_, "origin": "s1", "scope": "client", "user": "alice", "peer": None, "path": [],
                "attempts": 3, "bytes": 11,
            },
        )
    ]  # fmt: skip


def test_dead_letter_is_on_disk_before_its_sender_has_the_report() -> None:
    ward = Ward(Limits(attempts=1))
    victim = ward.stand.handler("t")
    ward.stand.submit(ward.bridge, "t")
    effects = ward.stand.router.on_undeliverable(victim, Heartbeat(), ward.stand.now)
    assert [type(write) for write in effects.writes] == [Bury]
    assert ward.bridge not in effects.messages
    effects = ward.stand.router.on_committed(effects.writes, Committed(True), ward.stand.now)
    assert [type(message) for message in effects.messages[ward.bridge]] == [Report]


def test_message_that_took_too_long_is_a_dead_letter_though_its_handler_lives() -> None:
    ward = Ward(Limits(request_s=3.0))
    slow = ward.stand.handler("t")
    ward.stand.submit(ward.bridge, "t", b"[5]")
    request = ward.stand.request(slow)
    ward.stand.wait(3.0)
    assert ward.stand.report(ward.bridge).reason == "timeout"
    assert [(letter.id, letter.body, letter.reason) for letter in ward.letters()] == [
        (request.meta["id"], b"[5]", "timeout")
    ]
    ward.stand.reply(slow, request.token, clients("alice"))
    assert ward.stand.heard(ward.bridge) == []


def test_message_without_a_handler_after_the_first_died_is_a_dead_letter() -> None:
    ward = Ward()
    victim = ward.stand.handler("t")
    ward.stand.submit(ward.bridge, "t")
    ward.kill(victim)
    ward.stand.wait(19.5)
    assert ward.stand.heard_of(ward.bridge, Report) == []
    ward.stand.wait(1.0)
    assert ward.stand.report(ward.bridge).reason == "handler-lost"
    assert [(letter.reason, letter.meta["attempts"]) for letter in ward.letters()] == [("handler-lost", 1)]


def test_message_that_its_sender_can_send_again_is_no_dead_letter() -> None:
    ward = Ward(Limits(max_held=1))
    chat = ward.stand.handler("chat", credit=1)
    ward.stand.submit(ward.bridge, "chat")
    ward.stand.submit(ward.bridge, "chat")  # overloaded
    ward.stand.submit(ward.bridge, "unknown")
    ward.stand.answer(chat, handler("unknown"))
    ward.stand.submit(ward.bridge, "chat")
    ward.stand.say(chat, Reply(ward.stand.request(chat).token, 1, [], "no"))
    ward.stand.submit(ward.bridge, "chat", ttl_s=0)
    reasons = [report.reason for report in ward.stand.heard_of(ward.bridge, Report)]
    assert reasons == ["overloaded", "unknown-type", "unknown-type", "handler-failed", "expired"]
    assert ward.letters() == []


def test_step_of_a_pipeline_is_a_dead_letter_of_its_own() -> None:
    ward = Ward(Limits(attempts=1))
    first, second = ward.stand.handler("one"), ward.stand.handler("two")
    ward.stand.submit(ward.bridge, "one")
    root = ward.stand.answer(first, handler("two", b"[2]")).meta["id"]
    ward.kill(second)
    assert ward.stand.report(ward.bridge).recipients == {"two": "failed:handler-lost"}
    letter = ward.letters()[0]
    assert (letter.id, letter.type, letter.body, letter.meta["path"]) == (f"{root}.0.0", "two", b"[2]", ["s1/one"])


# --- budgets --------------------------------------------------------------------------------------------------------


def test_each_type_has_a_budget_of_attempts() -> None:
    ward = Ward(Limits(attempts=3), fragile=Budget(30.0, 1), tough=Budget(30.0, 5))
    ward.murder("fragile", times=1)
    ward.murder("tough", times=5)
    ward.murder("other", times=3)
    assert [letter.meta["attempts"] for letter in ward.letters()] == [3, 5, 1]


def test_each_type_has_a_timeout() -> None:
    ward = Ward(Limits(request_s=10.0), quick=Budget(1.0, 3), slow=Budget(40.0, 3))
    ward.stand.handler("quick", "slow", "other")
    tokens = {type_: ward.stand.submit(ward.bridge, type_) for type_ in ("slow", "other", "quick")}
    ended: dict[int, float] = {}
    start = ward.stand.now
    while ward.stand.now < start + 45.0:
        ward.stand.wait(0.5)
        for report in ward.stand.heard_of(ward.bridge, Report):
            assert report.reason == "timeout"
            ended[report.token] = ward.stand.now - start
    assert ended == {tokens["quick"]: 1.0, tokens["other"]: 10.0, tokens["slow"]: 40.0}


def test_configured_timeout_is_stronger_than_a_longer_lease() -> None:
    ward = Ward(quick=Budget(1.0, 3))
    ward.stand.handler("quick", "other", lease_ms=50_000)
    quick, other = ward.stand.submit(ward.bridge, "quick"), ward.stand.submit(ward.bridge, "other")
    ward.stand.wait(1.0)
    assert ward.stand.report(ward.bridge).token == quick
    ward.stand.wait(48.5)
    assert ward.stand.heard_of(ward.bridge, Report) == []
    ward.stand.wait(0.5)
    assert ward.stand.report(ward.bridge).token == other


def test_lease_counts_where_attempts_alone_are_configured() -> None:
    ward = Ward(tough=Budget(None, 5))
    ward.stand.handler("tough", lease_ms=50_000)
    ward.stand.submit(ward.bridge, "tough")
    ward.stand.wait(49.5)
    assert ward.stand.heard_of(ward.bridge, Report) == []
    ward.stand.wait(0.5)
    assert ward.stand.report(ward.bridge).reason == "timeout"


def test_request_carries_a_configured_timeout() -> None:
    ward = Ward(quick=Budget(2.0, 3))
    worker = ward.stand.handler("quick", "other")
    deadlines: list[Any] = []
    for type_, meta in (("quick", {}), ("quick", {"ttl_s": 1.5}), ("quick", {"ttl_s": 9}), ("other", {"ttl_s": 9})):
        ward.stand.submit(ward.bridge, type_, **meta)
        deadlines.append(ward.stand.answer(worker).meta["deadline_ms"])
    assert deadlines == [2000, 1500, 2000, 9000]
    ward.stand.submit(ward.bridge, "other")
    assert "deadline_ms" not in ward.stand.request(worker).meta


# --- answers to operators -------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_latest_first() -> None:
    ward = Ward(Limits(attempts=1))
    first = ward.murder("t", b"[1]", times=1)
    ward.stand.wait(1.0)
    second = ward.murder("u", times=1)
    row = {
        "id": first, "type": "t", "reason": "handler-lost", "at_ms": round(START * 1000), "attempts": 1, "bytes": 3,
        "path": [], "server": None,
    }  # fmt: skip
    answer = ward.asks("deadList")
    assert (answer.status, [each["id"] for each in answer.value]) == (0, [second, first])
    assert answer.value[1] == row
    assert ward.asks("deadList", {"type": "t"}).value == [row]
    assert [each["id"] for each in ward.asks("deadList", {"limit": 1}).value] == [second]
    assert ward.asks("deadList", {"type": "nothing"}).value == []


def test_dead_letter_is_shown_in_full() -> None:
    ward = Ward(Limits(attempts=1))
    id_ = ward.murder(body='"ü"'.encode(), times=1)
    assert ward.asks("deadShow", id_).value == {
        "id": id_, "type": "t", "reason": "handler-lost", "at_ms": round(START * 1000), "attempts": 1, "bytes": 4,
        "path": [], "server": None, "user": "alice", "origin": "s1", "root": id_, "scope": "client", "peer": None,
        "body": '"ü"',
    }  # fmt: skip
    assert ward.asks("deadShow", "s1/x/1")[1:] == (1, None)


@pytest.mark.parametrize("question", ["deadList", "deadShow", "deadReplay", "deadDrop"])
def test_operators_alone_see_and_change_dead_letters(question: str) -> None:
    ward = Ward(Limits(attempts=1))
    id_ = ward.murder(times=1)
    for link in (ward.bridge, ward.stand.handler("other")):
        assert ward.stand.ask(link, question, id_ if question == "deadShow" else {})[1:] == (1, None)
    assert [letter.id for letter in ward.letters()] == [id_]


@pytest.mark.parametrize("question", ["deadList", "deadReplay", "deadDrop"])
@pytest.mark.parametrize(
    "argument",
    [
        "s1/b/1",
        5,
        ["s1/b/1"],
        {"id": 5},
        {"type": ["t"]},
        {"limit": 0},
        {"limit": "3"},
        {"limit": True},
        {"as": 5},
        {"from": 5},
        {"from": [1]},
        {"from": [0, 2**63]},
        {"from": [-1, 5]},
    ],
)
def test_unreadable_choice_does_not_mean_all(question: str, argument: Any) -> None:
    ward = Ward(Limits(attempts=1))
    ward.murder(times=1)
    assert ward.asks(question, argument)[1:] == (1, None)
    assert len(ward.letters()) == 1


@pytest.mark.parametrize("argument", [None, 5, {"id": "x"}])
def test_dead_letter_is_shown_by_its_id(argument: Any) -> None:
    ward = Ward(Limits(attempts=1))
    ward.murder(times=1)
    assert ward.asks("deadShow", argument)[1:] == (1, None)


@pytest.mark.parametrize(
    ("argument", "dropped", "left"),
    [({"id": "first"}, 1, "u"), ({"type": "u"}, 1, "t"), ({}, 2, ""), (None, 2, ""), ({"type": "v"}, 0, "ut")],
)
def test_dead_letters_are_dropped_by_id_by_type_or_all(argument: Any, dropped: int, left: str) -> None:
    ward = Ward(Limits(attempts=1))
    first = ward.murder("t", times=1)
    ward.murder("u", times=1)
    if argument == {"id": "first"}:
        argument = {"id": first}
    assert ward.asks("deadDrop", argument)[1:] == (0, {"dropped": dropped, "left": 0})
    assert [letter.type for letter in ward.letters()] == list(left)
    ward.stand.restart()
    ward.opens()
    assert [each["type"] for each in ward.asks("deadList").value] == list(left)


# --- replays --------------------------------------------------------------------------------------------------------


def test_replayed_dead_letter_reaches_a_handler_unchanged_and_is_dropped_after_success() -> None:
    ward = Ward(Limits(attempts=1))
    id_ = ward.murder(body=b"[7]", times=1)
    well = ward.stand.handler("t")
    assert ward.asks("deadReplay", {"id": id_})[1:] == (0, {"replayed": 1, "left": 0})
    request = ward.stand.request(well)
    assert (request.type, request.body, request.user) == ("t", b"[7]", "alice")
    assert request.meta == {
        "id": id_, "root": id_, "origin": "s1", "scope": "client", "attempt": 1, "path": [],
    }  # fmt: skip
    assert len(ward.letters()) == 1
    ward.stand.reply(well, request.token, clients("alice", "bob"))
    delivery = ward.stand.deliver(ward.bridge)
    assert (delivery.id, delivery.meta) == (f"{id_}.0", {"origin": "s1", "redelivered": True})
    assert ward.letters() == []
    assert ward.stand.mail("bob") == [b'"hi"']
    assert ward.stand.heard(ward.bridge) == [], "its sender had its report"
    assert ward.stand.ask(ward.bridge, "outcome", [1, id_]).value == {"bob": "queued"}
    assert ward.stand.router.idle


def test_dead_letter_that_fails_again_stays_once_with_the_new_reason() -> None:
    ward = Ward(Limits(attempts=1, request_s=3.0))
    id_ = ward.murder(times=1)
    bad = ward.stand.handler("t")
    ward.asks("deadReplay", {})
    ward.stand.say(bad, Reply(ward.stand.request(bad).token, 1, [], "no"))
    assert [(letter.id, letter.reason) for letter in ward.letters()] == [(id_, "handler-lost")]
    assert ward.asks("deadReplay", {}).value == {"replayed": 1, "left": 0}
    ward.stand.request(bad)
    ward.stand.wait(3.0)
    assert [(letter.id, letter.reason, letter.body) for letter in ward.letters()] == [(id_, "timeout", b"1")]
    assert ward.stand.router.idle


def test_dead_letter_is_not_replayed_twice_at_once() -> None:
    ward = Ward(Limits(attempts=1))
    ward.murder(times=1)
    well = ward.stand.handler("t")
    assert ward.asks("deadReplay", {}).value == {"replayed": 1, "left": 0}
    assert ward.asks("deadReplay", {}).value == {"replayed": 0, "left": 0}
    ward.stand.answer(well)
    assert ward.asks("deadReplay", {}).value == {"replayed": 0, "left": 0}


def test_dead_letter_is_replayed_as_another_type() -> None:
    ward = Ward(Limits(attempts=1))
    ward.murder(body=b"[7]", times=1)
    mended = ward.stand.handler("mended")
    assert ward.asks("deadReplay", {"type": "t", "as": "mended"}).value == {"replayed": 1, "left": 0}
    assert ward.stand.answer(mended).body == b"[7]"
    assert ward.letters() == []


@pytest.mark.parametrize("as_", ["bester.x", "dummy", "nobody"])
def test_dead_letter_is_not_replayed_as_a_type_without_handlers(as_: str) -> None:
    ward = Ward(Limits(attempts=1))
    ward.murder(times=1)
    answer = ward.asks("deadReplay", {"as": as_})
    assert answer.status == 1
    assert repr(as_) in answer.value
    assert len(ward.letters()) == 1


def test_every_dead_letter_gives_a_notice() -> None:
    ward = Ward(Limits(attempts=1))
    id_ = ward.murder(times=1)
    notices = [notice for notice in ward.stand.notices if notice.event == "dead-letter"]
    assert notices == [Notice("dead-letter", {"id": id_, "type": "t", "reason": "handler-lost"})]
    ward.stand.notices.clear()
    ward.stand.restart()
    ward.stand.wait(0.5)
    assert Notice("kept", {"waiting": 0, "dead_letters": 1}) in ward.stand.notices


def test_replay_to_a_server_has_an_id_that_does_not_grow() -> None:
    ward = Ward()
    id_ = unwanted(ward).id
    ids = []
    for _ in range(3):
        ward.asks("deadReplay", {})
        relay = ward.stand.one(S2, Relay)
        ids.append(relay.meta["id"])
        (entry,) = ward.stand.kept(lane("s2", relay.type))
        assert type(entry.meta["at_s"]) is float, "the age of what waits is shown"
        ward.stand.say(S2, Relayed(relay.token, "failed:unknown-type"))
        assert [letter.id for letter in ward.letters()] == ids[-1:]
    assert len({id_, *ids}) == 4
    assert all(each.startswith(f"{id_}.replay.") and each.count("replay") == 1 for each in ids)


def test_replay_by_type_leaves_other_types_and_stays_without_a_handler() -> None:
    ward = Ward(Limits(attempts=1))
    ward.murder("t", times=1)
    ward.murder("u", times=1)
    well = ward.stand.handler("u")
    assert ward.asks("deadReplay", {"type": "u"}).value == {"replayed": 1, "left": 0}
    ward.stand.answer(well)
    assert [letter.type for letter in ward.letters()] == ["t"]
    assert ward.asks("deadReplay", {}).value == {"replayed": 1, "left": 0}
    ward.stand.wait(6.0)
    assert [(letter.type, letter.reason) for letter in ward.letters()] == [("t", "handler-lost")]


def test_one_question_replays_a_bounded_number() -> None:
    ward = Ward(Limits(attempts=1))
    most = MOST["deadReplay"]
    letters = [DeadLetter(f"s1/x/{number}", "t", b"1", "timeout", START, {}) for number in range(most + 5)]
    assert ward.stand.store.commit([Bury(letter) for letter in letters]).ok
    well = ward.stand.handler("t", credit=5000)
    first = ward.asks("deadReplay", {}).value
    assert (first["replayed"], first["left"]) == (most, 5)
    requests = ward.stand.heard_of(well, Request)
    assert [request.meta["id"] for request in requests] == [letter.id for letter in letters[:most]]
    for request in requests[:-1]:
        ward.stand.reply(well, request.token)
    ward.stand.store.commit([Bury(letters[0]._replace(id="later"))])
    second = ward.asks("deadReplay", {"from": first["next"]}).value
    assert second == {"replayed": 5, "left": 0}  # neither the one being replayed, nor later ones
    for request in ward.stand.heard_of(well, Request):
        ward.stand.reply(well, request.token)
    assert [letter.id for letter in ward.letters()] == ["later", letters[most - 1].id]


def test_all_dead_letters_are_dropped_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters_module, "MOST", {"deadDrop": 2})
    ward = Ward()
    ward.stand.store.commit([Bury(DeadLetter(f"{number}", "t", b"1", "timeout", START, {})) for number in range(5)])
    start = None
    counts: list[tuple[int, int]] = []
    while start or not counts:
        answer = ward.asks("deadDrop", {"from": start} if start else {}).value
        counts.append((answer["dropped"], answer["left"]))
        start = answer.get("next")
    assert counts == [(2, 3), (2, 1), (1, 0)]
    assert ward.letters() == []


def test_replay_as_another_type_reaches_the_recipients_of_the_first_attempt() -> None:
    ward = Ward(Limits(attempts=1))
    first = ward.stand.handler("t")
    ward.stand.submit(ward.bridge, "t")
    id_ = ward.stand.answer(first, clients("bob")).meta["id"]
    assert ward.stand.report(ward.bridge).recipients == {"bob": "queued"}
    ward.stand.store.commit([Bury(DeadLetter(id_, "t", b"1", "timeout", START, {"user": "alice"}))])
    bad = ward.stand.handler("mended")
    ward.asks("deadReplay", {"as": "mended"})
    assert ward.stand.request(bad).meta["id"].startswith(f"{id_}.")
    ward.kill(bad)
    assert [(letter.id, letter.type) for letter in ward.letters()] == [(id_, "mended")]  # still one dead letter
    well = ward.stand.handler("other")
    ward.asks("deadReplay", {"as": "other"})
    ward.stand.answer(well, clients("bob"))
    assert len(ward.stand.mail("bob")) == 2
    assert ward.letters() == []
    assert ward.stand.ask(ward.bridge, "outcome", [1, id_]).value == {"bob": "queued"}
    assert ward.stand.state.dead_letters.renamed == 0


# --- messages for a server ------------------------------------------------------------------------------------------


def unwanted(ward: Ward) -> DeadLetter:
    """Queue a message for s2, and let s2 refuse it."""
    one = ward.stand.handler("one")
    ward.stand.submit(ward.bridge, "one")
    ward.stand.answer(one, servers("s2", body=b"[3]"))
    assert ward.stand.report(ward.bridge).recipients == {"s2": "queued"}
    ward.stand.take(ward.stand.router.on_server_ready("s2", ward.stand.now))
    relay = ward.stand.one(S2, Relay)
    ward.stand.say(S2, Relayed(relay.token, "failed:not-allowed"))
    return ward.letters()[0]


def test_dead_letter_that_a_server_refused_goes_to_that_server_again() -> None:
    ward = Ward()
    letter = unwanted(ward)
    assert ward.asks("deadReplay", {"id": letter.id}).value == {"replayed": 1, "left": 0}
    assert ward.letters() == []
    relay = ward.stand.one(S2, Relay)
    assert (relay.type, relay.body, relay.meta["path"], relay.meta["again"]) == ("one", b"[3]", ["s1/one"], True)
    assert relay.meta["id"] != letter.id, "over there that one has been refused"
    ward.stand.say(S2, Relayed(relay.token, "delivered"))
    assert ward.stand.kept(lane("s2", "one")) == []
    assert ward.letters() == []


def test_dead_letter_that_is_refused_again_is_still_one() -> None:
    ward = Ward()
    letter = unwanted(ward)
    for _ in range(2):
        ward.asks("deadReplay", {})
        relay = ward.stand.one(S2, Relay)
        ward.stand.say(S2, Relayed(relay.token, "failed:unknown-type"))
        assert [(each.body, each.reason) for each in ward.letters()] == [(letter.body, "unknown-type")]


@pytest.mark.parametrize("trouble", ["full", "bounds"])
def test_dead_letter_without_room_in_its_lane_stays(trouble: str) -> None:
    ward = Ward(messages=1)
    letter = unwanted(ward)
    bob = ward.stand.bridge("bob")
    if trouble == "full":
        ward.stand.store.full = True
    else:  # bob's message fills the store
        other = ward.stand.handler("other")
        ward.stand.say(bob, Close(1))
        ward.stand.submit(ward.bridge, "other")
        ward.stand.answer(other, clients("bob"))
        assert ward.stand.report(ward.bridge).recipients == {"bob": "queued"}
    ward.asks("deadReplay", {"id": letter.id})
    assert ward.letters() == [letter]
    assert ward.stand.heard_of(S2, Relay) == []
    ward.stand.store.full = False
    if trouble == "bounds":
        ward.stand.say(bob, Open(2, "bob"))
        ward.stand.deliver(bob)
    ward.stand.wait(1.0)
    assert ward.asks("deadReplay", {"id": letter.id}).value == {"replayed": 1, "left": 0}
    assert ward.stand.one(S2, Relay).body == b"[3]"
    assert ward.letters() == []


def test_message_in_a_mailbox_becomes_no_dead_letter() -> None:
    """The sender has the outcome, and no one but the user could want the message."""
    ward = Ward()
    chat = ward.stand.handler("chat")
    ward.stand.submit(ward.bridge, "chat")
    ward.stand.answer(chat, clients("bob"))
    ward.stand.wait(61.0)
    assert ward.stand.mail("bob") == []
    assert ward.letters() == []


def test_late_reply_of_the_first_handler_changes_nothing() -> None:
    ward = Ward(Limits(attempts=1))
    frozen = ward.stand.handler("t")
    ward.stand.submit(ward.bridge, "t")
    request = ward.stand.request(frozen)
    ward.kill(frozen)
    assert ward.stand.report(ward.bridge).reason == "handler-lost"
    ward.stand.reply(frozen, request.token, clients("alice"))
    assert ward.stand.one(frozen, Error).code == "hello-first"
    assert ward.stand.heard_of(ward.bridge, Deliver) == []
    assert len(ward.letters()) == 1


def test_question_on_a_lost_link_does_no_harm() -> None:
    ward = Ward(Limits(attempts=1))
    ward.murder(times=1)
    ward.stand.commits = False
    ward.stand.say(ward.operator, Ask(5, "deadDrop", {}))
    ward.stand.take(ward.stand.router.on_undeliverable(ward.operator, Heartbeat(), ward.stand.now))
    ward.stand.commits = True
    ward.stand.commit()
    assert ward.letters() == []
