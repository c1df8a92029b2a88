"""TLS and WebSockets share a part of each turn of the loop."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bester.bridge.connection import Connection
from bester.bridge.ends import Ends
from bester.bridge.web_stream import Unended, WebStream
from bester.broker.layer_turns import SLICE_S, TURN_S, LayerTurns
from bester.broker.tls_files import Pair, server_context
from bester.broker.tls_stream import TlsStream
from bester.broker.wire.messages import LoggedIn
from tests.authorities import Authority
from tests.e2e.test_websocket import HANDSHAKE, Below, part
from tests.unit.bridge_stand import Scene

FRAME_S = SLICE_S / 5


class Loop:
    """Time and turns of a loop; each look at the clock takes `look_s`."""

    def __init__(self, look_s: float = 0.0) -> None:
        self.now = 0.0
        self.calls: list[Callable[[], None]] = []
        self.turns = LayerTurns(self.clock, self.calls.append)
        self._look_s = look_s

    def clock(self) -> float:
        self.now += self._look_s
        return self.now

    def turn(self) -> float:
        """Make a turn; return how long it took."""
        began, calls = self.now, self.calls[:]
        self.calls.clear()
        for call in calls:
            call()
        return self.now - began


class Waiter:
    """Connection with so many frames, each of which takes FRAME_S."""

    def __init__(self, loop: Loop, frames: int, sender: str = "somebody") -> None:
        self.frames = frames
        self.sender = sender
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


@pytest.mark.parametrize("have_had_a_slice", [False, True])
def test_sender_waits_for_one_connection_of_another_and_not_for_all(have_had_a_slice: bool) -> None:
    loop = Loop()
    crowd = [Waiter(loop, 1000, "eve") for _ in range(100)]
    for each in crowd:
        assert loop.turns.take_in(each)
    honest = Waiter(loop, 40, "bob")
    assert loop.turns.take_in(honest)
    if have_had_a_slice:
        loop.turn()
        honest.frames = 40
    turns = 0
    while honest.frames:
        before = honest.frames
        loop.turn()
        turns += 1
        assert honest.frames < before or turns == 1
    assert len({each.frames for each in crowd}) > 1, "the others wait"


def test_connections_of_a_sender_take_turns() -> None:
    loop = Loop()
    crowd = [Waiter(loop, 100, "eve") for _ in range(10)]
    for each in crowd:
        loop.turns.take_in(each)
    while any(each.frames == 100 for each in crowd):
        assert all(each.frames for each in crowd)
        loop.turn()
    while loop.calls:
        loop.turn()
    assert not any(each.frames for each in crowd)


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

    def get_extra_info(self, name: str, default: object) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int, low: None) -> None:
        pass


class Above(asyncio.Protocol):
    """A session that takes `message_s` for a message."""

    def __init__(self, loop: Loop, message_s: float = 0.0) -> None:
        self.messages = self.size_bytes = 0
        self._message_s = message_s
        self.has_ended = False
        self._loop = loop

    def data_received(self, data: bytes) -> None:
        self.messages += 1
        self.size_bytes += len(data)
        self._loop.now += self._message_s

    def eof_received(self) -> bool:
        self.has_ended = True
        return False


def opened(loop: Loop, above: Above | None = None) -> tuple[WebStream, Above, Reading]:
    above, below = above or Above(loop), Reading()
    stream = WebStream(above, unended=Unended(1500, 60.0), turns=loop.turns)
    stream.connection_made(below)  # type: ignore[arg-type]  # as much of a transport as the stream needs
    stream.data_received(HANDSHAKE)
    loop.turn()
    return stream, above, below


def test_stream_is_not_read_from_until_what_came_is_handled() -> None:
    loop = Loop(FRAME_S)
    stream, above, below = opened(loop)
    stream.data_received(part(b"{}", 1) * 1000)
    assert (below.paused, above.messages < 1000) == (True, True)
    while below.paused:
        assert loop.turn() <= 2 * TURN_S
    assert above.messages == 1000
    stream.data_received(part(b"{}", 1))
    assert (below.paused, above.messages) == (False, 1001)


def test_session_that_pauses_stays_paused_behind_what_came() -> None:
    loop = Loop(FRAME_S)
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
    loop = Loop(FRAME_S)
    stream, above, below = opened(loop)
    stream.data_received(part(b"{}", 1) * 1000)
    assert stream.eof_received()
    while not above.has_ended:
        assert above.messages < 1000
        loop.turn()
    assert (above.messages, above.has_ended, below.closed) == (1000, True, True)


def test_time_of_the_protocol_above_does_not_count() -> None:
    loop = Loop()
    above = Above(loop, SLICE_S)
    streams = [opened(loop, above)[0] for _ in range(20)]
    for stream in streams:
        stream.data_received(part(b"{}", 1))
    assert above.messages == 20  # in one turn
    assert loop.now > TURN_S


def test_stream_that_has_ended_waits_no_more() -> None:
    loop = Loop(FRAME_S)
    stream, above, below = opened(loop)
    stream.data_received(part(b"{}", 1) * 1000)
    assert below.paused
    handled = above.messages
    stream.connection_lost(None)
    while loop.calls:
        loop.turn()
    assert above.messages == handled


async def test_streams_wait_by_the_users_of_their_sessions() -> None:
    loop, scene = Loop(FRAME_S), Scene()

    def come(user: str) -> tuple[WebStream, Reading]:
        below, connection = Reading(), Connection(scene.bridge, asyncio.get_running_loop(), Ends(loop.turns))
        stream = WebStream(connection, unended=Unended(1500, 60.0), turns=loop.turns)
        stream.connection_made(below)  # type: ignore[arg-type]  # as above
        stream.data_received(HANDSHAKE)
        login = {"header": {"scope": "client", "authentication": {"username": user, "password": "p"}}}
        stream.data_received(part(json.dumps(login).encode(), 1))
        while loop.calls:
            loop.turn()
        scene.turn()
        scene.broker(LoggedIn(connection.session.number, 0))
        return stream, below

    streams = [come(user) for user in ["eve"] * 20 + ["bob"]]
    for stream, _ in streams:
        stream.data_received(part(b"", 10) * 100)
    *crowd, honest = [below for _, below in streams]
    while honest.paused:
        loop.turn()
    assert sum(each.paused for each in crowd) >= len(crowd) - 2


class TlsPeers:
    """Clients of a server, each on a stream of its own."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory)
        self._context = server_context(Pair(*authority.issue("h")), None, time.time())[0]
        self._trust = ssl.create_default_context(cafile=str(authority.ca))

    def come(self, loop: Loop, message_s: float = 0.0) -> TlsPeer:
        return TlsPeer(loop, self._context, self._trust, message_s)


class TlsPeer:
    """Client whose bytes go to the server when told, and the stream of the server."""

    def __init__(self, loop: Loop, context: ssl.SSLContext, trust: ssl.SSLContext, message_s: float) -> None:
        self.above, self.below = Above(loop, message_s), Reading()
        self.stream = TlsStream(self.above, context, turns=loop.turns)
        self.stream.connection_made(self.below)  # type: ignore[arg-type]  # as above
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = trust.wrap_bio(self._in, self._out, server_hostname="h")

    def shake(self) -> None:
        """Begin or go on with the handshake."""
        self._in.write(self.below.written)
        self.below.written = b""
        try:
            self.client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        self.send()

    def send(self) -> None:
        self.stream.data_received(self._out.read())


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> TlsPeers:
    return TlsPeers(tmp_path_factory.mktemp("tls"))


async def test_storm_of_handshakes_takes_its_part_of_each_turn(peers: TlsPeers) -> None:
    loop, storm = Loop(FRAME_S), []
    for _ in range(100):
        storm.append(peer := peers.come(loop))
        peer.shake()
    answered = 0
    while answered < len(storm):
        assert sum(bool(peer.below.written) for peer in storm) - answered <= 2 * TURN_S / FRAME_S
        answered = sum(bool(peer.below.written) for peer in storm)
        loop.turn()
    assert not any(peer.below.paused for peer in storm)


async def test_shortest_records_take_their_part_of_each_turn(peers: TlsPeers) -> None:
    loop = Loop(FRAME_S)
    peer = peers.come(loop)
    while not peer.client.cipher():
        peer.shake()
        loop.turn()
    loop.turn()
    for _ in range(1000):
        peer.client.write(b"x")
    with pytest.raises(ssl.SSLWantReadError):  # the notice of the end, which is not answered
        peer.client.unwrap()
    peer.send()
    assert peer.below.paused
    while not peer.above.has_ended:
        assert peer.above.size_bytes < 1000
        assert loop.turn() <= 2 * TURN_S
    assert peer.above.size_bytes == 1000


async def test_time_of_the_protocol_above_tls_does_not_count(peers: TlsPeers) -> None:
    loop = Loop()
    all_ = [peers.come(loop, SLICE_S) for _ in range(20)]
    for peer in all_:
        while not peer.client.cipher():
            peer.shake()
            loop.turn()
        peer.shake()
    loop.turn()
    began = loop.now
    for peer in all_:
        peer.client.write(b"x")
        peer.send()
    assert [peer.above.messages for peer in all_] == [1] * 20  # in one turn
    assert loop.now - began > TURN_S
