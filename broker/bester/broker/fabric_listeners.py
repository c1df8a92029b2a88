"""Listening side of the fabric: the broker's ROUTER sockets, one for each endpoint, plain or encrypted.

A link's key begins with its door: the number of the socket by which the link has come in. Messages of encrypted doors
are handled in slices. All of them go to functions of the broker; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import zmq

from bester.broker import unix_socket
from bester.broker.connections import ConnectionNumbers
from bester.broker.core.effects import Link
from bester.broker.curve import CLOCK, CurveSocket, as_bytes
from bester.broker.fabric_socket import FabricSocket, Frames, new_context
from bester.broker.keys import KeyPair
from bester.broker.link_counts import LinkCounts
from bester.broker.long_messages import LongMessages
from bester.broker.slices import Slices
from bester.broker.turn import Turn
from bester.broker.unix_socket import UnixSocket
from bester.broker.wire.address import Endpoint, parse_endpoint
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.messages import Malformed, Message
from bester.broker.wire.runs import read_in_parts
from bester.broker.wire.silence import ReadUntil
from bester.broker.zap import OnRefused, Zap

IO_THREADS = 2
"""Threads of ZeroMQ: one for parties on this machine, and one for those on tcp, so that the bytes of an ipc socket wait
for no flood that is decrypted."""
IPC_THREAD, TCP_THREAD = 1, 2
"""Their bits in ZMQ_AFFINITY."""
BACKLOG = 1024
"""Connections that wait to be accepted: all handlers of a busy machine at once, at its start. ZeroMQ's own bound is
100, which a stranger fills in a moment: an honest party's connection begins a second later then, or never."""
LINGER_MS = 200
"""Time of the last GOODBYEs to leave."""


class Receivers(NamedTuple):
    """Functions of the broker for the messages of all sockets.

    `reader(transport, door)` returns the function that gets the frames of a plain socket. `take(link, messages)` gets
    messages of an encrypted one, `end(link)` the end of a link there; `most_values(link)` returns the bound on the
    values of one, `may_begin(party)` whether one of this party may be begun. `refused` gets address and key of a party
    that was refused, and the reason.
    """

    reader: Callable[[str, bytes], Callable[[Frames], None]]
    take: Callable[[Link, Sequence[Message | Malformed]], None]
    end: Callable[[Link], None]
    most_values: Callable[[Link], int]
    may_begin: Callable[[str], bool]
    refused: OnRefused


class FabricListeners:
    """Sockets of one broker, on the running loop. With `curve`, those on loopback are encrypted, too; `pair` are this
    server's keys. `known` has the keys that are let in."""

    def __init__(self, turn: Turn, pair: KeyPair | None, *, curve: bool) -> None:
        self._turn = turn
        self._pair = pair
        self._curve = curve
        self._context: zmq.Context[zmq.Socket[bytes]] = new_context(IO_THREADS)
        self._zap: Zap | None = None
        self._long = LongMessages()
        self._links = LinkCounts()
        self._numbers = ConnectionNumbers()
        self._reading: list[ReadUntil] = []
        self._bound: list[UnixSocket] = []
        self.sockets: list[FabricSocket] = []
        """Sockets by the number of their door."""
        self.slices: dict[bytes, Slices] = {}
        """Slices of the encrypted sockets, by door."""

    def open(self, endpoint: str, known: Container[str], receivers: Receivers) -> None:
        """Listen at an endpoint. Raises ConfigError where it cannot be bound."""
        where = parse_endpoint(endpoint)
        door = b"%d:" % len(self.sockets)
        socket: FabricSocket
        if where.transport == "tcp" and (self._curve or not where.local):
            socket = self._curve_socket(door, known, receivers)
        else:
            socket = FabricSocket(self._context, zmq.ROUTER, receivers.reader(where.transport, door), self._turn)
        self.sockets.append(socket)
        self._reading.append(ReadUntil(time.monotonic()))
        socket.socket.router_mandatory = 1
        socket.socket.ipv6 = "[" in endpoint
        socket.socket.backlog = BACKLOG
        socket.socket.affinity = IPC_THREAD if where.transport == "ipc" else TCP_THREAD
        self._bind(socket, endpoint, where)
        socket.register()

    def _bind(self, socket: FabricSocket, endpoint: str, where: Endpoint) -> None:
        if where.transport == "ipc":
            # Bound here, as ZeroMQ would remove any file at the path first, and at its end any file that is there then.
            bound = unix_socket.listen(f"[fabric] listen: {endpoint}", where.path, backlog=BACKLOG, mode=0o600)
            self._bound.append(bound)
            socket.socket.setsockopt(zmq.USE_FD, bound.socket.detach())
        try:
            socket.socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"[fabric] listen: {endpoint}: {_why(error)}") from None
        if where.transport == "ipc":
            socket.remember_processes()

    def _curve_socket(self, door: bytes, known: Container[str], receivers: Receivers) -> CurveSocket:
        """Return a socket, not bound yet, that lets in known keys alone."""
        if self._pair is None:
            raise ConfigError("[fabric] listen: an encrypted listener needs this server's key; set [fabric] key")
        if self._zap is None:
            self._zap = Zap(
                self._context, known, receivers.refused, self._numbers, self._long, self._links, affinity=TCP_THREAD
            )

        def received(frames: Frames) -> None:
            identity, key, *rest = frames
            slices.take_in(Link("curve", door + identity, key.decode()), rest)

        def gone(identity: bytes, key: bytes) -> None:
            slices.on_ended(Link("curve", door + identity, key.decode()))

        def cut(link: Link, why: str) -> None:
            socket.cut(link.key.removeprefix(door), link.party, why)

        def read(link: Link, frames: Sequence[bytes]) -> Any:
            return read_in_parts(as_bytes(frames), receivers.most_values(link))

        socket = CurveSocket(
            self._context, self._pair, received, gone, receivers.refused, self._numbers, self._turn, self._long,
            self._links,
        )  # fmt: skip
        soon = asyncio.get_running_loop().call_soon
        slices = Slices(
            read,
            receivers.take,
            end=receivers.end,
            cut=cut,
            clock=time.monotonic,
            cost_clock=CLOCK,
            soon=soon,
            brief=self._turn.brief,
            may_begin=receivers.may_begin,
        )
        self.slices[door] = slices
        return socket

    def tick(self, now: float, senders: int) -> None:
        """Look up to when each socket was read, and cut connections whose messages do not end; `senders` is how many
        links there are at most."""
        for socket, reading in zip(self.sockets, self._reading, strict=True):
            waiting = socket.has_unread()
            reading.look(now, waiting=waiting, read=socket.messages_read, senders=senders)
            socket.cut_endless(drained=not waiting)

    def process_of(self, link: Link) -> int | None:
        """Return the process at the other end of a link; None if the system does not report it."""
        if link.door != "ipc":
            return None
        index, _, identity = link.key.partition(b":")
        return self.sockets[int(index)].process_of(identity)

    def read_until(self, link: Link) -> float:
        """Return the time up to which everything that had arrived on a link was handled."""
        index, colon, _ = link.key.partition(b":")
        if not colon:
            return math.inf  # a direct link needs no reading
        until, slices = self._reading[int(index)].until, self.slices.get(index + colon)
        waits_since = slices.waits_since(link.party) if slices is not None else None
        return until if waits_since is None else min(until, waits_since)

    def drop_slices(self) -> None:
        """Forget what waits to be handled: the broker ends."""
        for slices in self.slices.values():
            slices.drop()

    def close(self) -> None:
        """Close all sockets; what was sent last has LINGER_MS to leave."""
        for bound in self._bound:
            bound.remove()
        for socket in self.sockets:
            socket.socket.linger = LINGER_MS
            socket.close()
        if self._zap is not None:
            self._zap.close()
        self._context.term()


def _why(error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; stop what listens there, or choose another"
    if error.errno == errno.EACCES:
        return "permission denied; choose a port above 1023 or a directory of your own"
    return f"{zmq.strerror(error.errno or 0)}; check the address"
