"""Silence of a party: what has been sent and was not read yet counts as speech."""

from __future__ import annotations

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.wire.link_client import State
from bester.broker.wire.messages import Heartbeat, Hello, Message
from bester.broker.wire.silence import ReadUntil
from tests.unit.test_link_client import at


class TestReadUntil:
    def test_empty_socket_is_read_up_to_now(self) -> None:
        reading = ReadUntil(1.0)
        reading.look(5.0, waiting=False, read=0, senders=9)
        assert reading.until == 5.0

    def test_socket_with_unread_input_proves_nothing(self) -> None:
        reading = ReadUntil(1.0)
        for now in (2.0, 5.0, 90.0):
            reading.look(now, waiting=True, read=8, senders=9)
        assert reading.until == 1.0

    def test_socket_that_is_never_empty_is_read_round_by_round(self) -> None:
        reading = ReadUntil(1.0)
        reading.look(2.0, waiting=True, read=10, senders=10)
        assert reading.until == 1.0, "the first round began with the socket"
        reading.look(3.0, waiting=True, read=19, senders=10)
        assert reading.until == 1.0
        reading.look(4.0, waiting=True, read=20, senders=10)
        assert reading.until == 2.0, "what had arrived when the second round began"

    def test_time_never_goes_back(self) -> None:
        reading = ReadUntil(1.0)
        reading.look(2.0, waiting=False, read=0, senders=1)
        reading.look(3.0, waiting=True, read=5, senders=1)
        assert reading.until == 2.0


class Held:
    """A broker whose socket was read up to `until`; peers speak by `say`."""

    def __init__(self) -> None:
        self.until = 0.0
        self.router = Router(
            Settings("s1", open_accounts=True), epoch="e", first_token=1, now=0.0, read_until=lambda _: self.until
        )

    def say(self, link: Link, message: Message, now: float) -> None:
        self.router.receive_all(link, [message], now)

    def pass_time(self, begin: float, end: float) -> None:
        for tenth in range(round(begin * 10) + 1, round(end * 10) + 1):
            self.router.tick(tenth / 10)

    @property
    def peers(self) -> int:
        return sum(self.router.inspect().peers.values())


@pytest.mark.parametrize(
    "hello",
    [Hello(1, "handler", "h", {"types": ["t"]}), Hello(1, "bridge", "b", {"epoch": "x"}), Hello(1, "operator", "o")],
    ids=["handler", "bridge", "operator"],
)
class TestBroker:
    def test_peer_is_not_silent_while_its_socket_is_not_read(self, hello: Hello) -> None:
        held, link = Held(), Link("ipc", b"0:h")
        held.say(link, hello, 0.0)
        held.pass_time(0.0, 20.0)
        assert held.peers == 1
        held.say(link, Heartbeat(), 20.0)  # what had waited
        held.until = 20.0
        held.pass_time(20.0, 25.9)
        assert held.peers == 1

    def test_peer_that_had_said_nothing_is_silent_when_its_socket_was_read(self, hello: Hello) -> None:
        held, link = Held(), Link("ipc", b"0:h")
        held.say(link, hello, 0.0)
        held.pass_time(0.0, 20.0)
        held.until = 5.9
        held.pass_time(20.0, 20.5)
        assert held.peers == 1
        held.until = 6.1
        held.pass_time(20.5, 20.6)
        assert held.peers == 0


class TestLink:
    @pytest.mark.parametrize("state", [State.READY, State.LEAVING])
    def test_broker_is_not_silent_while_its_messages_wait(self, state: State) -> None:
        link = at(state)
        for tenth in range(200):
            assert link.tick(tenth / 10, unread=True).event is None
        link.receive(Heartbeat(), 20.0)
        assert link.tick(25.9).event is None
        assert link.tick(26.0).event in ("lost", "over")

    def test_greeting_ends_whatever_waits(self) -> None:
        assert at(State.GREETING).tick(3.0, unread=True).event == "lost"
