"""Frames on their way out to connections: bounds, slow readers, one write a turn of the loop. Pure.

A turn writes to all connections with little to write, then a chunk at a time to those with much, in turn; both within a
budget. The remainder is first in the next turn: a large message to many connections delays nobody by more than a turn.

The slow-consumer policy: frames of others to a reader who is too slow are refused; a reader who takes nothing, or whose
queue stays full, is cut in the end. Nobody waits for a slow reader meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bester.bridge.limits import KIB, Limits
from bester.bridge.outqueue import JOIN_BYTES
from bester.bridge.ports import ClientConnection

WRITE_COST = 8 * KIB
"""Cost of a write, however short, in bytes of a long one: the call of the system, and its answer."""
MUCH_SHARE = 4
"""Connections with much to write have this part of a turn at least (a quarter), however many have little."""


class Outbound:
    """Connections with something to write, and those that do not keep up.

    `wake` makes one call of `flush` at the end of this turn.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._limits = limits
        self._clock = clock
        self._wake = wake
        self._dirty: deque[ClientConnection] = deque()
        self._much: deque[ClientConnection] = deque()  # dirty ones with more than a small chunk to write
        self._blocked: set[ClientConnection] = set()
        self._blocked_bytes = 0  # queued for blocked connections; exact at each tick, never too low in between
        self._full: dict[ClientConnection, float] = {}  # since when a connection's full queue has refused frames

    def offer(self, connection: ClientConnection, frame: tuple[bytes, ...]) -> bool:
        """Queue a frame of another sender, in pieces; False where the connection's queue is full."""
        if connection.abort_code is not None:
            return False
        out = connection.out
        queued = out.pushed_bytes - out.sent_bytes
        if queued:
            limits, size = self._limits, sum(map(len, frame))
            if queued + size > limits.out_queue or (
                out.in_flight and queued >= limits.out_pause and self._blocked_bytes + size > limits.out_total
            ):
                self._full.setdefault(connection, self._clock())
                return False
            if out.in_flight:
                self._blocked_bytes += size
        for piece in frame:
            out.push(piece)
        if not connection.dirty:
            self.touch(connection)
        return True

    def push(self, connection: ClientConnection, frame: bytes) -> None:
        """Queue an answer to the connection's own frames."""
        if connection.abort_code is not None:
            return
        out = connection.out
        queued = out.pushed_bytes - out.sent_bytes
        if queued and queued + len(frame) > self._limits.out_answers:
            self.cut_off(connection, f"does not read: {queued} bytes are queued")
            return
        out.push(frame)
        if not connection.dirty:
            self.touch(connection)

    def cut_off(self, connection: ClientConnection, why: str) -> None:
        """Cut a connection that does not read its frames."""
        connection.abort_code = "overloaded"
        connection.abort(why)

    def touch(self, connection: ClientConnection) -> None:
        """Flush the connection at the end of this turn."""
        if not connection.dirty:
            connection.dirty = True
            self._dirty.append(connection)
            self._wake()

    @property
    def has_more(self) -> bool:
        """Return whether there is something to write in the next turn."""
        return bool(self._dirty or self._much)

    def flush(self, written: Callable[[ClientConnection], None]) -> None:
        """Write once to each connection, within the budget of a turn; `written` gets those whose socket did not take
        everything. Call again in the next turn where `has_more`."""
        room, dirty = self._limits.turn_bytes, self._dirty
        while dirty and room > 0:
            connection = dirty.popleft()
            out = connection.out
            size = out.pushed_bytes - out.sent_bytes
            if size > JOIN_BYTES:
                self._much.append(connection)
                continue
            room -= size + WRITE_COST
            connection.dirty = False
            if connection.flush():
                self._write_again(connection)
            elif out.taken_bytes != out.sent_bytes:
                written(connection)
        if self._much:
            self._flush_much(max(room, self._limits.turn_bytes // MUCH_SHARE), written)

    def _flush_much(self, room: int, written: Callable[[ClientConnection], None]) -> None:
        """Write a chunk to each connection with much to write, in turn, as far as there is room."""
        while self._much and room > 0:
            connection = self._much.popleft()
            out = connection.out
            before = out.taken_bytes
            connection.dirty = False
            if connection.flush():
                self._write_again(connection)
            elif out.in_flight:
                written(connection)
            room -= out.taken_bytes - before + WRITE_COST

    def _write_again(self, connection: ClientConnection) -> None:
        """Write more to a connection when its turn comes again."""
        if not connection.dirty:
            connection.dirty = True
            self._much.append(connection)

    def on_blocked(self, connection: ClientConnection) -> None:
        """Note that the socket of a connection takes no more for now."""
        connection.stalled_since, connection.stalled_bytes = self._clock(), connection.unsent_bytes()
        if connection not in self._blocked:
            self._blocked.add(connection)
            self._blocked_bytes += connection.out.queued_bytes

    def on_connection_lost(self, connection: ClientConnection) -> None:
        """Forget a connection."""
        self._blocked.discard(connection)
        self._full.pop(connection, None)

    def tick(self, now: float) -> None:
        """Cut connections that have not kept up for too long."""
        for connection in list(self._blocked):
            unsent = connection.unsent_bytes()
            if not connection.out.in_flight:
                self._blocked.discard(connection)
            elif unsent != connection.stalled_bytes:
                connection.stalled_since, connection.stalled_bytes = now, unsent
            elif now - connection.stalled_since > self._limits.stalled_s:
                self.cut_off(connection, f"took nothing for {self._limits.stalled_s:g} s")
        for connection, since in list(self._full.items()):
            if connection.out.queued_bytes <= self._limits.out_queue // 2:
                del self._full[connection]
            elif now - since > self._limits.stalled_s:
                self.cut_off(connection, f"was sent more than it took for {self._limits.stalled_s:g} s")
        self._blocked_bytes = sum(connection.out.queued_bytes for connection in self._blocked)
