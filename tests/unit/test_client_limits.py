"""Frames over the server's limit, and messages that break connections: each fails alone, by case and by chance."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.frames import Splitter, frame
from bester.client.core import Core
from bester.client.errors import ClientError, ConnectionLost, MessageTooLarge
from bester.client.events import Event, Failed, Lost, Ready, Reported
from bester.client.frames import max_frame
from bester.client.states import State
from bester.client.window import SENDS, UNSAID_BYTES, Limits

UNSAID = object()


def framed(status: str, **payload: Any) -> bytes:
    return frame(json.dumps({"header": {"messageType": "statusReport", "status": status}, "payload": payload}).encode())


def welcome(limit: Any = UNSAID) -> bytes:
    return framed("good", id="auth_special", **({} if limit is UNSAID else {"max_frame": limit}))


def good(id_: str) -> bytes:
    return framed("good", id=id_)


def complaint(reason: str) -> bytes:
    return framed("bad", id=None, reason=reason)


def a_core(**options: Any) -> Core:
    return Core(server="here:1", user="bob", password="secret", dedup_prefix="p", random=lambda: 0.0, **options)


def connect(core: Core, limit: Any = UNSAID) -> list[Event]:
    assert core.dial()
    core.on_connected(0)
    core.take()
    return core.receive(welcome(limit), 0)


def sent_ids(core: Core) -> list[str]:
    """Return the ids of the messages that are sent now."""
    bodies = Splitter(1 << 24).feed(b"".join(core.take()))
    return [json.loads(body)["payload"]["id"] for body in bodies]


Ends = dict[str, ClientError | bool]


def ended(events: list[Event]) -> Ends:
    """Return the ended messages: with an error, or with a good or bad report."""
    return {event.id: event.error for event in events if isinstance(event, Failed)} | {
        event.id: event.report.good for event in events if isinstance(event, Reported)
    }


def of(length: int) -> bytes:
    """Return data of so many bytes."""
    return b'"' + b"x" * (length - 2) + b'"'


class TestServerLimit:
    @pytest.mark.parametrize(
        ("max_frame", "limit"),
        [
            (4096, 4096), (2**40, 2**40), (UNSAID, None), (None, None), ("4096", None), (0, None), (-5, None),
            (4096.5, None), (True, None), ([4096], None), ({}, None),
        ],
    )  # fmt: skip
    def test_limit_is_read_from_any_answer_to_the_login(self, max_frame: Any, limit: Any) -> None:
        core = a_core()
        assert connect(core, max_frame) == [Ready()]
        assert core.max_frame == limit
        assert core.state is State.READY

    @pytest.mark.parametrize("answer", [b"", b"[]", b'{"payload":1}', b"{", b'{"payload":{"max_frame":1e999}}'])
    def test_answer_without_a_limit(self, answer: bytes) -> None:
        assert max_frame(answer) is None

    @pytest.mark.parametrize("limit", [1024, 5000, 3 << 20])
    def test_message_within_the_limit_can_be_resent_and_a_longer_one_is_refused(self, limit: int) -> None:
        core = a_core()
        connect(core, limit)
        with pytest.raises(MessageTooLarge, match=f" {limit};"):
            core.submit("chat", of(limit))
        core.submit("chat", of(100))
        core.on_disconnected("gone", 0)
        connect(core, limit)
        core.take()
        core.on_disconnected("gone", 0)
        connect(core, limit)
        beside = len(core.take()[0]) - 4 - 100  # bytes of a resent frame besides its data
        core.receive(good("2"), 0)
        most = core.submit("chat", of(limit - beside))
        with pytest.raises(MessageTooLarge):
            core.submit("chat", of(limit - beside + 1))
        assert sent_ids(core) == [most]
        core.on_disconnected("gone", 0)
        connect(core, limit)
        assert len(core.take()[0]) - 4 == limit

    def test_clients_own_limit_counts_where_lower_or_alone(self) -> None:
        for own, server_limit, allowed in (
            (2000, 4096, 2000),
            (8192, 4096, 4096),
            (2 << 20, UNSAID, 2 << 20),
            (900, UNSAID, 900),
        ):
            core = a_core(limits=Limits(send_limit_bytes=own))
            connect(core, server_limit)
            core.submit("chat", of(allowed - 100))
            with pytest.raises(MessageTooLarge):
                core.submit("chat", of(allowed))

    def test_default_limit_counts_for_a_server_that_names_none(self) -> None:
        core = a_core()
        core.submit("chat", of(UNSAID_BYTES - 100))
        with pytest.raises(MessageTooLarge):
            core.submit("chat", of(UNSAID_BYTES))

    def test_unsent_message_over_a_lowered_limit_fails_alone(self) -> None:
        core = a_core()
        connect(core, 10_000)
        first, large, last = core.submit("chat", b"1"), core.submit("chat", of(8000)), core.submit("chat", b"3")
        assert sent_ids(core) == [first, large, last]
        unsent = core.submit("chat", of(7000))
        assert ended(core.on_disconnected("gone", 0)) == {}
        events = connect(core, 5000)
        assert events[0] == Ready()
        over = ended(events)
        assert list(over) == [large, unsent]
        for id_, was_sent in ((large, True), (unsent, False)):
            assert isinstance(over[id_], MessageTooLarge)
            assert ("may have been delivered" in str(over[id_])) is was_sent
        assert sent_ids(core) == [first, last]
        core.on_disconnected("gone", 0)
        connect(core, 10_000)
        assert sent_ids(core) == [first], "after two losses one goes first"
        core.submit("chat", of(8000))


class TestServerWithoutLimit:
    def test_too_large_frame_fails_alone_and_the_next_is_refused(self) -> None:
        core = a_core()
        connect(core)
        ids = [core.submit("chat", of(length)) for length in (10, 3000, 9000, 10, 2000)]
        assert sent_ids(core) == ids
        core.receive(good(ids[0]) + complaint("frame-too-large"), 0)
        over = ended(core.on_disconnected("gone", 0))
        assert list(over) == [ids[2]]
        assert isinstance(over[ids[2]], MessageTooLarge)
        connect(core)
        assert sent_ids(core) == [ids[1], ids[3], ids[4]], "at once: no other message is suspected"
        with pytest.raises(MessageTooLarge, match="refused one of"):
            core.submit("chat", of(9000))
        core.on_disconnected("gone", 0)  # the server may have been restarted with another limit
        connect(core)
        core.submit("chat", of(9000))

    def test_several_too_large_frames_fail_one_by_one_and_alone(self) -> None:
        core = a_core()
        over: Ends = {}
        connections = 0
        small = [core.submit("chat", of(1500 + n)) for n in range(5)]
        large = [core.submit("chat", of(5000 + 100 * n)) for n in range(2 * SENDS)]
        while core.unreported:
            connections += 1
            over |= ended(connect(core))
            for id_ in sent_ids(core):
                if id_ in large:
                    over |= ended(core.receive(complaint("frame-too-large"), 0))
                    over |= ended(core.on_disconnected("gone", 0))
                    break
                over |= ended(core.receive(good(id_), 0))
        assert all(over[id_] is True for id_ in small)
        assert all(isinstance(over[id_], MessageTooLarge) for id_ in large)
        assert connections == len(large)

    def test_small_frame_is_never_called_too_large(self) -> None:
        core = a_core()
        connect(core)
        ids = [core.submit("chat", of(500)) for _ in range(3)]
        core.take()
        core.receive(complaint("frame-too-large"), 0)
        assert ended(core.on_disconnected("gone", 0)) == {}
        connect(core)
        assert sent_ids(core) == ids[:1]

    def test_unreadable_frame_is_found_and_reported_with_the_complaint(self) -> None:
        core = a_core()
        ids = [core.submit("chat", b"%d" % number) for number in range(9)]
        over: Ends = {}
        connections = 0
        while core.unreported:
            connections += 1
            connect(core)
            while going := sent_ids(core):
                bad = ids[4] in going
                for id_ in going[: going.index(ids[4])] if bad else going:
                    over |= ended(core.receive(good(id_), 0))
                if bad:
                    core.receive(complaint("malformed"), 0)
                    over |= ended(core.on_disconnected("gone", 0))
                    break
        assert over == {id_: id_ != ids[4] for id_ in ids}
        assert connections <= 4

    def test_without_resend_sent_messages_fail_and_the_too_large_one_is_named(self) -> None:
        core = a_core(resend=False)
        connect(core)
        ids = [core.submit("chat", of(length)) for length in (10, 9000, 10)]
        core.take()
        core.receive(complaint("frame-too-large"), 0)
        over = ended(core.on_disconnected("gone", 0))
        assert [type(over[id_]) for id_ in ids] == [ConnectionLost, MessageTooLarge, ConnectionLost]

    def test_burst_bound_is_lifted_once_the_suspects_have_ended(self) -> None:
        for resend in (True, False):
            core = a_core(resend=resend)
            connect(core)
            ids = [core.submit("chat", b"1") for _ in range(3)]
            assert sent_ids(core) == ids
            core.receive(complaint("malformed"), 0)
            core.on_disconnected("gone", 0)
            connect(core)
            while going := sent_ids(core):
                assert len(going) < 3
                for id_ in going:
                    core.receive(good(id_), 0)
            ids = [core.submit("chat", b"1") for _ in range(5)]
            assert sent_ids(core) == ids


class Server:
    """Server that reads messages in order and dies at each killer, after reports on some of those before."""

    def __init__(self, killers: set[str], patience: list[int]) -> None:
        self.killers = killers
        self.patience = patience  # reports written before each death, in turn
        self.deaths = 0

    def hear(self, ids: list[str]) -> tuple[list[str], bool]:
        """Return the ids reported on, and whether the server survives."""
        for at, id_ in enumerate(ids):
            if id_ in self.killers:
                reported = self.patience[self.deaths % len(self.patience)]
                self.deaths += 1
                return ids[: min(at, reported)], False
        return ids, True


@given(
    st.integers(1, 40),
    st.sets(st.integers(1, 40), max_size=3),
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
)
def test_messages_that_break_connections_are_found_and_fail_alone(
    count: int, killers: set[int], patience: list[int]
) -> None:
    core = a_core()
    ids = [core.submit("chat", b"1") for _ in range(count)]
    server = Server({str(killer) for killer in killers}, patience)
    over: Ends = {}
    connections = 0
    while core.unreported:
        connections += 1
        assert connections <= (SENDS + 2) * (count + 1), "it comes to an end"
        events = connect(core)
        while going := sent_ids(core):
            reported, lives = server.hear(going)
            for id_ in reported:
                events += core.receive(good(id_), 0)
            if not lives:
                events += core.on_disconnected("gone", 0)
                break
        over |= ended(events)
        assert all(isinstance(event, Ready | Lost | Reported | Failed) for event in events)
    for id_ in ids:
        if id_ in server.killers:
            assert isinstance(over[id_], ConnectionLost)
        else:
            assert over[id_] is True, "an innocent one"
    assert list(over) == sorted(over, key=int), "in their order"
