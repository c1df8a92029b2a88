"""Silence of a party: what has been sent and was not read yet counts as speech."""

from __future__ import annotations

import pytest

from bester.broker.core.effects import Effects, Link, Notice
from bester.broker.core.peers import GIVEN_UP_AT_ONCE
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.wire.link_client import State
from bester.broker.wire.messages import Heartbeat, Hello, Message, Open, Report, Request, Submit, Welcome
from bester.broker.wire.silence import ReadUntil
from tests.unit.test_link_client import at

HELLO = Hello(1, "handler", "h", {"types": ["job"], "credit": 1})
FALLEN_S = 6.05
"""Time at which a peer that spoke at 0 s is silent."""


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


class Crowd:
    """A broker with many handlers that hold a message each, and say nothing from 0 s on.

    `lost` counts the handlers that were given up, step by step; `sent` has the broker's messages by link.
    """

    def __init__(self, count: int) -> None:
        self.router = Router(Settings("s1", open_accounts=True), epoch="e", first_token=1, now=0.0)
        self.lost: list[int] = []
        self.sent: dict[Link, list[Message]] = {}
        self.handlers = [Link("ipc", b"0:h%d" % number) for number in range(count)]
        self.bridge = Link("ipc", b"0:b")
        for link in self.handlers:
            self.say(link, HELLO, 0.0)
        self.say(self.bridge, Hello(1, "bridge", "b", {"epoch": "x"}), 0.0)
        self.say(self.bridge, Open(1, "ann"), 0.0)
        for number in range(count):
            self.submit(number)

    def say(self, link: Link, message: Message, now: float) -> None:
        self.take(self.router.receive_all(link, [message], now))

    def submit(self, token: int) -> None:
        self.say(self.bridge, Submit(token, 1, "job", b"1"), 0.0)

    def take(self, effects: Effects) -> None:
        for link, messages in effects.messages.items():
            self.sent.setdefault(link, []).extend(messages)
        self.lost.append(sum(isinstance(call, Notice) and call.event == "lost" for call in effects.calls))

    def count(self, link: Link, kind: type[Message]) -> int:
        """Return how many messages of this kind a link was sent."""
        return sum(isinstance(message, kind) for message in self.sent.get(link, []))

    def fall(self, *living: Link) -> None:
        """Let the time pass up to the tick that finds the handlers silent, the first step in `lost`."""
        for tenth in range(1, 60):
            for link in (self.bridge, *living):
                self.say(link, Heartbeat(), tenth / 10)
            self.take(self.router.tick(tenth / 10))
        assert not any(self.lost)
        self.lost.clear()
        self.take(self.router.tick(FALLEN_S))


class TestCrowd:
    def test_crowd_that_falls_silent_is_given_up_over_several_turns(self) -> None:
        crowd, steady = Crowd(2 * GIVEN_UP_AT_ONCE + 3), Link("ipc", b"0:steady")
        crowd.say(steady, Hello(1, "handler", "steady", {"types": ["job"], "credit": 1000}), 0.0)
        crowd.fall(steady)
        while crowd.router.has_silent:
            crowd.take(crowd.router.give_up_silent(FALLEN_S))
        assert crowd.lost == [GIVEN_UP_AT_ONCE, GIVEN_UP_AT_ONCE, 3]
        assert all(crowd.count(link, Request) == 1 for link in crowd.handlers), "a message went to a silent handler"
        assert crowd.count(steady, Request) > 0

    def test_message_waits_for_a_handler_while_the_last_ones_are_given_up(self) -> None:
        """Nobody serves the type from now on, and not since the broker's start."""
        crowd, last = Crowd(0), Link("ipc", b"0:last")
        for number in range(GIVEN_UP_AT_ONCE):
            crowd.say(Link("ipc", b"0:%d" % number), Hello(1, "handler", "h", {"types": ["other"]}), 0.0)
        crowd.say(last, HELLO, 0.0)
        for number in range(2):
            crowd.submit(number)
        crowd.fall()
        assert crowd.router.has_silent
        assert (crowd.count(last, Request), crowd.count(crowd.bridge, Report)) == (1, 0)

    def test_silent_handler_that_says_hello_in_time_is_back(self) -> None:
        crowd = Crowd(2 * GIVEN_UP_AT_ONCE)
        crowd.fall()
        back = crowd.handlers[-1]
        crowd.say(back, HELLO, FALLEN_S)
        crowd.take(crowd.router.give_up_silent(FALLEN_S))
        assert not crowd.router.has_silent
        assert crowd.count(back, Welcome) == 2
        assert sum(crowd.lost) == len(crowd.handlers)
        assert crowd.router.inspect().peers["handler"] == 1


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
