"""WebSockets share a part of each turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bester.bridge.web_stream import Unended, WebStream
from bester.bridge.web_turns import SLICE_S, TURN_S, WebTurns
from tests.e2e.test_websocket import HANDSHAKE, Below, part

FRAME_S = SLICE_S / 5


class Loop:
    """Time and turns of a loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Callable[[], None]] = []
        self.turns = WebTurns(lambda: self.now, self.calls.append)

    def turn(self) -> float:
        """Make a turn; return how long it took."""
        began, calls = self.now, self.calls[:]
        self.calls.clear()
        for call in calls:
            call()
        return self.now - began


class Waiter:
    """Connection with so many frames, each of which takes FRAME_S."""

    def __init__(self, loop: Loop, frames: int) -> None:
        self.frames = frames
        self._loop = loop

    def go_on(self, enough: float) -> bool:
        while self.frames:
            self.frames -= 1
            self._loop.now += FRAME_S
            if self._loop.now >= enough:
                return True
        return False


def test_flood_takes_its_part_of_each_turn_and_ends() -> None:
    loop = Loop()
    flood = Waiter(loop, 1000)
    assert loop.turns.take_in(flood)
    while loop.calls:
        assert loop.turn() <= 2 * TURN_S
    assert flood.frames == 0
    assert not loop.turns.take_in(flood)


def test_one_that_comes_does_not_wait_for_all_that_have_had_a_slice() -> None:
    loop = Loop()
    floods = [Waiter(loop, 1000) for _ in range(20)]
    for flood in floods:
        assert loop.turns.take_in(flood)
    for _ in range(10):
        loop.turn()
    late = Waiter(loop, 1)
    assert loop.turns.take_in(late)
    loop.turn()
    assert late.frames == 0


def test_one_that_has_more_waits_for_no_endless_row_of_those_that_come() -> None:
    loop = Loop()
    flood = Waiter(loop, 100)
    loop.turns.take_in(flood)
    for _ in range(100):
        for _ in range(10):
            loop.turns.take_in(Waiter(loop, 1))
        loop.turn()
    assert flood.frames == 0


def test_one_that_has_ended_waits_no_more() -> None:
    loop = Loop()
    flood, late = Waiter(loop, 1000), Waiter(loop, 1000)
    loop.turns.take_in(flood)
    loop.turns.take_in(late)
    for each in (flood, late):
        loop.turns.forget(each)
    loop.turn()
    assert late.frames == 1000
    assert not loop.calls


class Reading(Below):
    """A transport that may be read from or not."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Above(asyncio.Protocol):
    """A session that takes FRAME_S for a message."""

    def __init__(self, loop: Loop) -> None:
        self.messages = 0
        self.has_ended = False
        self._loop = loop

    def data_received(self, data: bytes) -> None:
        self.messages += 1
        self._loop.now += FRAME_S

    def eof_received(self) -> bool:
        self.has_ended = True
        return False


def opened(loop: Loop) -> tuple[WebStream, Above, Reading]:
    above, below = Above(loop), Reading()
    stream = WebStream(above, unended=Unended(1500, 60.0), turns=loop.turns)
    stream.connection_made(below)  # type: ignore[arg-type]  # as much of a transport as the stream needs
    stream.data_received(HANDSHAKE)
    loop.turn()
    return stream, above, below


def test_stream_is_not_read_from_until_what_came_is_handled() -> None:
    loop = Loop()
    stream, above, below = opened(loop)
    stream.data_received(part(b"{}", 1) * 1000)
    assert (below.paused, above.messages < 1000) == (True, True)
    while below.paused:
        assert loop.turn() <= 2 * TURN_S
    assert above.messages == 1000
    stream.data_received(part(b"{}", 1))
    assert (below.paused, above.messages) == (False, 1001)


def test_session_that_pauses_stays_paused_behind_what_came() -> None:
    loop = Loop()
    stream, above, below = opened(loop)
    stream.data_received(part(b"{}", 1) * 1000)
    stream.pause_reading()
    while loop.calls:
        loop.turn()
    assert (below.paused, above.messages) == (True, 1000)
    stream.resume_reading()
    assert not below.paused


def test_end_of_the_stream_comes_behind_its_messages() -> None:
    """TLS tells of the end right behind the bytes before, whether they are read or not."""
    loop = Loop()
    stream, above, below = opened(loop)
    stream.data_received(part(b"{}", 1) * 1000)
    assert stream.eof_received()
    while not above.has_ended:
        assert above.messages < 1000
        loop.turn()
    assert (above.messages, above.has_ended, below.closed) == (1000, True, True)
