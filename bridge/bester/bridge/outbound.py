"""Frames on their way out to connections: bounds, slow readers, one write a turn of the loop. Pure.

The slow-consumer policy: frames of others to a reader who is too slow are refused; a reader who takes nothing, or whose
queue stays full, is cut in the end. Nobody waits for a slow reader meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection


class Outbound:
    """Connections with something to write, and those that do not keep up.

    `wake` makes one call of `flush` at the end of this turn.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._limits = limits
        self._clock = clock
        self._wake = wake
        self._dirty: list[ClientConnection] = []
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

    def flush(self, written: Callable[[ClientConnection], None]) -> None:
        """Write once to each connection; `written` gets those whose socket did not take everything."""
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                connection.dirty = False
                connection.flush()
                if connection.out.in_flight:
                    written(connection)

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
