"""Bound on what a party may send ahead of this program: messages that are not read yet, and those that do not end.

libzmq bounds the length of a frame, but not the frames of one message: they are in memory until the message is whole,
and this program sees none of them. Of whole messages it bounds the number on a connection, whatever their length. So
the kernel's count of the bytes that came on a connection is compared with the bytes of the messages that were read.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from bester.broker.descriptors import is_among_last, limit
from bester.broker.wire.messages import MAX_FRAME_BYTES

MOST_BYTES = 5 * MAX_FRAME_BYTES
"""Bytes that were not read yet, over all connections of one party: as many as may wait when they are read (`slices`).
Memory."""
MOST_STRANGE_BYTES = MAX_FRAME_BYTES
"""The same over all connections of which no message was read: of the properties that a party names in its handshake,
as many as it likes and before its key is looked at, libzmq makes fourteen times as many bytes."""
SHAKEN_BYTES = 64 * 1024
"""Bytes of a handshake, and of what comes at once behind it, that are no matter: an honest one has some hundreds."""
STRANGERS_PART = 2
"""Part of the descriptors that connections have of which no message was read, those in the handshake; above it the
oldest make way. With fewer places honest parties would be kept out beside a flood, which makes handshakes long. Where
no descriptor is left, libzmq (up to 4.3.5 at least) ends this process at the next connection to an ipc:// door."""
KEPT_PART, MOST_KEPT, FEW_KEPT = 8, 1024, 16
"""Part of the descriptors, and the most of them, that are kept from strangers: while no more are free, nobody is
accepted. While few strangers are there these are FEW_KEPT: clients may have all but 64, and handlers come back."""
_STRANGERS = b"strangers"
UNSEEN = "unseen"
"""Stands for the address of a party that had left before it was looked at; it is seen at one of its next attempts."""
LOOKED_AT_ONCE = 256
"""Connections of one look, about a millisecond; with more of them each is looked at less often."""
FRAME_BYTES = 35
"""Bytes of a frame on an encrypted connection beside its own: ZeroMQ's header (2), the name of the command (8), a nonce
(8), a seal (16) and a flag (1)."""
LONG_BYTES = 222
MORE_BYTES = 7
"""A frame longer than LONG_BYTES has a header longer by MORE_BYTES."""
_RECEIVED_AT = 128
"""Offset of `tcpi_bytes_received`, 64 bits, in Linux's `struct tcp_info`."""
_RECEIVED = struct.Struct("=Q")
_FAMILY = socket.AF_INET6
"""Family of the sockets for connections of any family: its addresses are longest. As one of AF_INET a socket would have
half of an IPv6 address, and what is in memory behind, which is another at each look."""


class _Connection:
    """`base` is the count of bytes at a look at which all whole messages were read, `read` the bytes of messages that
    were read since, `held` the bytes that were not. `shaken` are the bytes that had come beside the first message when
    that was read, where there were many: those of a handshake stay in memory. None before the first message."""

    __slots__ = ("base", "held", "party", "peer", "read", "shaken")

    def __init__(self, peer: tuple[Any, ...]) -> None:
        self.peer = peer
        self.party = b""
        self.base = self.held = self.read = 0
        self.shaken: int | None = None

    @property
    def whose(self) -> bytes:
        """Party whose bytes these are; _STRANGERS before the first message."""
        return _STRANGERS if self.shaken is None else self.party


class Unread:
    """Connections of one socket by descriptor, and how much each has sent that was not read.

    Where the system does not count bytes, nothing is bounded.
    """

    def __init__(self) -> None:
        self.most_bytes = MOST_BYTES
        self.most_strange_bytes = MOST_STRANGE_BYTES
        self._connections: dict[int, _Connection] = {}
        self._strange: dict[int, None] = {}  # descriptors of those of which no message was read, oldest first
        self._next = 0

    def begin(self, descriptor: int) -> None:
        """Watch a new connection."""
        with contextlib.suppress(OSError):  # it has ended meanwhile
            peer = _peer_of(descriptor)
            if type(peer) is tuple:  # or the descriptor is that of a Unix socket by now
                self._connections[descriptor] = _Connection(peer)
                self._strange.pop(descriptor, None)  # it comes last
                self._strange[descriptor] = None

    @property
    def strangers(self) -> int:
        """Number of connections of which no message was read."""
        return len(self._strange)

    def crowded_out(self) -> list[int]:
        """Return the connections that must make way for others: the oldest of which no message was read."""
        return list(islice(self._strange, max(len(self._strange) - limit() // STRANGERS_PART, 0)))

    def address(self, descriptor: int) -> str:
        """Return the address of the party at a connection; UNSEEN where it had left before it was looked at."""
        connection = self._connections.get(descriptor)
        return UNSEEN if connection is None else str(connection.peer[0]).removeprefix("::ffff:")

    def end(self, descriptor: int) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(descriptor, None)
        self._strange.pop(descriptor, None)

    def count(self, came_by: tuple[bytes, int], frames: Sequence[bytes]) -> None:
        """Count the frames of a message that was read; `came_by` are party and descriptor."""
        party, descriptor = came_by
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.party = party
            self._strange.pop(descriptor, None)
            sizes = list(map(len, frames))
            connection.read += sum(sizes) + FRAME_BYTES * len(sizes) + MORE_BYTES * sum(map(LONG_BYTES.__lt__, sizes))
            if connection.shaken is None:
                beside = _received(descriptor) - connection.read
                connection.shaken = beside if beside > SHAKEN_BYTES else 0

    def look(self, *, drained: bool) -> list[tuple[int, bytes, int]]:
        """Return the connections that must end: descriptor, party (empty before its first whole message) and bytes.
        `drained`: all whole messages that had come were read."""
        for descriptor in self._some():
            self._measure(descriptor, self._connections[descriptor], drained=drained)
        totals: dict[bytes, int] = {}
        for connection in self._connections.values():
            if connection.held:
                totals[connection.whose] = totals.get(connection.whose, 0) + connection.held
        if all(held <= self._most_of(whose) for whose, held in totals.items()):
            return []
        return list(self._largest(totals))

    def _most_of(self, whose: bytes) -> int:
        return min(self.most_bytes, self.most_strange_bytes) if whose == _STRANGERS else self.most_bytes

    def cut(self, descriptor: int) -> bool:
        """Shut a connection down, if the descriptor is still its own; return whether it was."""
        connection = self._connections.pop(descriptor, None)
        self._strange.pop(descriptor, None)
        with _duplicate(descriptor) as found:
            if connection is None or found is None:
                return False
            with contextlib.suppress(OSError):
                if found.getpeername() == connection.peer:
                    found.shutdown(socket.SHUT_RDWR)
                    return True
        return False

    def _some(self) -> list[int]:
        """Return the descriptors of this look: all, or the next of many."""
        descriptors = list(self._connections)
        if len(descriptors) <= LOOKED_AT_ONCE:
            return descriptors
        first = self._next % len(descriptors)
        self._next = first + LOOKED_AT_ONCE
        return list(islice(descriptors[first:] + descriptors[:first], LOOKED_AT_ONCE))

    def _measure(self, descriptor: int, connection: _Connection, *, drained: bool) -> None:
        received = _received(descriptor)
        if received < connection.base or (drained and connection.read):
            connection.base, connection.read = received - (connection.shaken or 0), 0
        connection.held = max(received - connection.base - connection.read, 0)

    def _largest(self, totals: dict[bytes, int]) -> Iterator[tuple[int, bytes, int]]:
        """Yield the largest connections of each party that is above the bound, until the rest is below."""
        ordered = sorted(self._connections.items(), key=lambda each: each[1].held, reverse=True)
        for descriptor, connection in ordered:
            if totals.get(connection.whose, 0) > self._most_of(connection.whose):
                totals[connection.whose] -= connection.held
                yield descriptor, connection.party, connection.held


def is_scarce(descriptor: int, strangers: int) -> bool:
    """Return whether few descriptors are free beside so many strangers. A new one tells: it is the lowest free one."""
    kept = min(limit() // KEPT_PART, MOST_KEPT)
    return is_among_last(descriptor, kept if strangers > kept // KEPT_PART else min(kept, FEW_KEPT))


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    """Yield a socket of its own for a descriptor that libzmq may close at any moment, None where it has done so."""
    try:
        found = socket.fromfd(descriptor, _FAMILY, socket.SOCK_STREAM)
    except OSError:
        yield None
        return
    with found:
        yield found


def _peer_of(descriptor: int) -> Any:
    """Return the address at the other end of a connection, looked at once: a duplicate of the descriptor would take
    three times as long. Raises OSError for one that has ended."""
    connection = socket.socket(_FAMILY, socket.SOCK_STREAM, 0, descriptor)
    try:
        return connection.getpeername()
    finally:
        connection.detach()


def _received(descriptor: int) -> int:
    """Return how many bytes have come on a TCP connection, 0 where the system does not tell."""
    with _duplicate(descriptor) as found:
        if found is None or not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            told = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + _RECEIVED.size)
        except OSError:
            return 0
    return int(_RECEIVED.unpack_from(told, _RECEIVED_AT)[0]) if len(told) >= _RECEIVED_AT + _RECEIVED.size else 0
