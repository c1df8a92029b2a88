"""Links for which ZeroMQ has no room keep what they are sent, in order, and are given up at a bound alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
import zmq

from bester.broker.core.effects import Link
from bester.broker.fabric_socket import HIGH_WATER_MARK, FabricSocket, Frames
from bester.broker.full_links import MOST_BYTES, PATIENCE_S, FullLinks
from bester.broker.sending import Sending
from bester.broker.wire.messages import Message, Request
from tests.live import DEADLINE_S

BODY = b'"' + b"x" * 200_000 + b'"'
"""As much that a hundred of them fill the kernel's buffers, of whatever size."""
MOST = 1000
"""More than ZeroMQ, the kernel and the bound have room for."""


def request(token: int, body: bytes = b"1") -> Request:
    return Request(token, "t", body, None, {})


def tokens(messages: Sequence[Message]) -> list[int]:
    return [message.token for message in messages if type(message) is Request]


class Peer:
    """A DEALER that reads when it is told to, and the broker's side of its link."""

    def __init__(self, socket: zmq.Socket[bytes], sending: Sending, link: Link) -> None:
        self.socket = socket
        self.sending = sending
        self.link = link

    def send(self, *sent: Request) -> None:
        """Send in one turn of the loop."""
        self.sending.begin()
        self.sending.send(self.link, sent)

    def fill(self) -> int:
        """Send large requests until ZeroMQ has no room for one; return their number."""
        count = 0
        while self.link not in self.sending.full:
            assert count < MOST
            self.send(request(count, BODY))
            count += 1
        return count

    async def read(self, count: int) -> list[int]:
        """Return the tokens of so many requests that come."""
        found: list[int] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < count:
                if self.socket.poll(0):
                    batch = msgpack.unpackb(self.socket.recv_multipart()[0])
                    found += [row[1] for row in batch]
                else:
                    await asyncio.sleep(0.001)
        return found


class Stand:
    """A listening socket whose links are told when they are given up."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.context = context
        self.lost: list[tuple[Link, list[int]]] = []
        self.left: list[Link] = []
        self._came: list[Frames] = []
        self._socket = FabricSocket(context, zmq.ROUTER, self._came.append)
        self._socket.socket.router_mandatory = 1
        self._port = self._socket.socket.bind_to_random_port("tcp://127.0.0.1")
        self._socket.register()
        self.sending = Sending([self._socket], lambda *_: None, self._lose, lambda link, _: self.left.append(link))
        self._peers: list[zmq.Socket[bytes]] = []

    async def peer(self) -> Peer:
        """Return a peer that is linked."""
        socket = self.context.socket(zmq.DEALER)
        self._peers.append(socket)
        socket.linger = 0
        socket.rcvhwm = 1
        socket.connect(f"tcp://127.0.0.1:{self._port}")
        socket.send(b"")
        async with asyncio.timeout(DEADLINE_S):
            while not self._came:
                await asyncio.sleep(0.001)
        identity, _ = self._came.pop()
        return Peer(socket, self.sending, Link("tcp", b"0:" + identity))

    def _lose(self, link: Link, unsent: Sequence[Message]) -> None:
        self.lost.append((link, tokens(unsent)))

    def close(self) -> None:
        self.sending.close()
        for socket in self._peers:
            socket.close()
        self._socket.close()


@asynccontextmanager
async def stand() -> AsyncIterator[Stand]:
    with zmq.Context() as context:
        opened = Stand(context)
        try:
            yield opened
        finally:
            opened.close()


async def test_peer_that_reads_late_gets_all_in_order() -> None:
    async with stand() as here:
        peer = await here.peer()
        count = peer.fill()
        assert count > HIGH_WATER_MARK
        for _ in range(10):  # behind the first that had no room
            peer.send(request(count), request(count + 1))
            count += 2
        assert await peer.read(count) == list(range(count))
        assert peer.link not in here.sending.full
        peer.send(request(count))
        assert await peer.read(1) == [count]
        assert not here.lost


async def test_peer_that_never_reads_is_lost_at_the_bound_and_what_had_no_room_is_told() -> None:
    async with stand() as here:
        peer = await here.peer()
        count, waiting = 0, 0
        while not here.lost:
            assert count < MOST
            peer.send(request(count, BODY))
            count += 1
            waiting += peer.link in here.sending.full or bool(here.lost)
        assert here.lost == [(peer.link, list(range(count - waiting, count)))]
        assert waiting == MOST_BYTES // len(BODY) + 1
        assert peer.link not in here.sending.full


async def test_peer_that_goes_while_it_is_full_is_lost_with_what_had_no_room() -> None:
    async with stand() as here:
        peer = await here.peer()
        count = peer.fill()
        peer.socket.close()
        async with asyncio.timeout(DEADLINE_S):
            while not here.lost:
                await asyncio.sleep(0.001)
        assert here.lost == [(peer.link, [count - 1])]


LINK, OTHER, THIRD = Link("curve", b"0:a", "eve"), Link("curve", b"0:b", "eve"), Link("curve", b"0:c", "ann")


def add(full: FullLinks, link: Link, *messages: Request, size: int = 1, **more: Any) -> None:
    full.add(link, [[b"x" * size] for _ in messages], messages, 0.0, **more)


class Room:
    """Takes so many messages, and then none."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = 0

    def send(self, frames: Frames) -> None:
        if self.taken == self.room:
            raise zmq.Again
        self.taken += 1


def test_patience_begins_anew_with_each_message_that_leaves() -> None:
    full = FullLinks()
    add(full, LINK, request(1), request(2))
    assert not full.is_over(LINK, PATIENCE_S)
    assert full.is_over(LINK, PATIENCE_S + 0.1)
    with pytest.raises(zmq.Again):
        full.send(LINK, Room(1).send, PATIENCE_S)
    assert not full.is_over(LINK, 2 * PATIENCE_S)
    assert full.is_over(LINK, 2 * PATIENCE_S + 0.1)


def test_bytes_are_bounded_over_the_links_of_a_party() -> None:
    full = FullLinks()
    add(full, LINK, request(1), size=MOST_BYTES)
    add(full, THIRD, request(1))
    assert not full.is_over(LINK, 0.0)
    add(full, OTHER, request(2))
    assert full.is_over(LINK, 0.0)
    assert full.is_over(OTHER, 0.0)
    assert not full.is_over(THIRD, 0.0)
    assert tokens(full.take(LINK)) == [1]
    assert not full.is_over(OTHER, 0.0)
    assert full.take(LINK) == []


def test_of_what_has_begun_to_leave_only_the_last_surely_has_not() -> None:
    full = FullLinks()
    add(full, LINK, request(1), request(2), begun=True)
    add(full, LINK, request(3), request(4))
    with pytest.raises(zmq.Again):
        full.send(LINK, Room(1).send, 0.0)
    assert tokens(full.take(LINK)) == [2, 3, 4]
    assert not full


def test_a_link_to_which_nothing_could_be_written_counts_for_nothing() -> None:
    full = FullLinks()
    full.add(LINK, [], [request(1)], 0.0)
    add(full, OTHER, request(2))
    assert tokens(full.take(OTHER)) == [2]
    assert not full.is_over(LINK, 0.0)
    assert tokens(full.take(LINK)) == [1]
    assert not full
