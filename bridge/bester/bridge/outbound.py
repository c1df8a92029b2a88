"""What is on its way out to connections: bounds, readers that do not read, one write a turn of the loop. Pure.

The slow-consumer policy: what others send to a reader who is too slow is refused; one who takes nothing, or is full,
for too long is cut. Nobody waits for him meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection


class Outbound:
    """The connections that are to be written to, and those that do not keep up.

    `wake` sees to it that `flush` is called once, at the end of this turn.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._limits = limits
        self._clock = clock
        self._wake = wake
        self._dirty: list[ClientConnection] = []
        self._blocked: set[ClientConnection] = set()
        self._backlog = 0  # bytes that wait for those; counted anew at each tick, and not too low in between
        self._full: dict[
            ClientConnection, float
        ] = {}  # who was refused a frame because too much waits for it, and since when

    def offer(self, connection: ClientConnection, frame: tuple[bytes, ...]) -> bool:
        """Write a frame that somebody else sent, in pieces; False where too much waits for the connection already."""
        if connection.abort_code is not None:
            return False
        out = connection.out
        queued = out.pushed_bytes - out.sent_bytes
        if queued:
            limits, size = self._limits, sum(map(len, frame))
            if queued + size > limits.out_queue or (
                out.in_flight and queued >= limits.out_pause and self._backlog + size > limits.out_total
            ):
                self._full.setdefault(connection, self._clock())
                return False
            if out.in_flight:
                self._backlog += size
        for piece in frame:
            out.push(piece)
        if not connection.dirty:
            self.touch(connection)
        return True

    def push(self, connection: ClientConnection, frame: bytes) -> None:
        """Write an answer to the connection's own words."""
        if connection.abort_code is not None:
            return
        out = connection.out
        queued = out.pushed_bytes - out.sent_bytes
        if queued and queued + len(frame) > self._limits.out_answers:
            self.cut_off(connection, f"{queued} bytes wait for it and it does not read")
            return
        out.push(frame)
        if not connection.dirty:
            self.touch(connection)

    def cut_off(self, connection: ClientConnection, why: str) -> None:
        """The slow-consumer policy: nobody else waits for one who does not read."""
        connection.abort_code = "overloaded"
        connection.abort(why)

    def touch(self, connection: ClientConnection) -> None:
        """Look at the connection at the end of this turn."""
        if not connection.dirty:
            connection.dirty = True
            self._dirty.append(connection)
            self._wake()

    def flush(self, written: Callable[[ClientConnection], None]) -> None:
        """One write a connection; `written` gets those whose socket did not take it all at once."""
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                connection.dirty = False
                connection.flush()
                if connection.out.in_flight:
                    written(connection)

    def on_blocked(self, connection: ClientConnection) -> None:
        """The socket of a connection takes no more for now."""
        connection.stalled_since, connection.stalled_bytes = self._clock(), connection.unsent_bytes()
        if connection not in self._blocked:
            self._blocked.add(connection)
            self._backlog += connection.out.queued_bytes

    def on_connection_gone(self, connection: ClientConnection) -> None:
        """A connection is no more."""
        self._blocked.discard(connection)
        self._full.pop(connection, None)

    def tick(self, now: float) -> None:
        """Cut whoever has not kept up for too long."""
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
        self._backlog = sum(connection.out.queued_bytes for connection in self._blocked)
