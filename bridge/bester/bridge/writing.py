"""What is on its way out to connections: bounds, readers that do not read, one write a turn of the loop. Pure.

The slow-consumer policy: what others send to a reader who is too slow is refused; one who takes nothing, or is full,
for too long is cut. Nobody waits for him meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from bester.bridge.limits import Limits
from bester.bridge.ports import Wire


class Writing:
    """The connections that are to be written to, and those that do not keep up.

    `wake` sees to it that `flush` is called once, at the end of this turn.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._limits = limits
        self._clock = clock
        self._wake = wake
        self._dirty: list[Wire] = []
        self._blocked: set[Wire] = set()
        self._backlog = 0  # bytes that wait for those; counted anew at each tick, and not too low in between
        self._full: dict[Wire, float] = {}  # who was refused a frame because too much waits for it, and since when

    def offer(self, wire: Wire, frame: tuple[bytes, ...]) -> bool:
        """Write a frame that somebody else sent, in pieces; False where too much waits for the connection already."""
        if wire.doom is not None:
            return False
        out = wire.out
        queued = out.pushed_bytes - out.left_bytes
        if queued:
            limits, size = self._limits, sum(map(len, frame))
            if queued + size > limits.out_queue or (
                out.in_flight and queued >= limits.out_pause and self._backlog + size > limits.out_total
            ):
                self._full.setdefault(wire, self._clock())
                return False
            if out.in_flight:
                self._backlog += size
        for piece in frame:
            out.push(piece)
        if not wire.dirty:
            self.touch(wire)
        return True

    def push(self, wire: Wire, frame: bytes) -> None:
        """Write an answer to the connection's own words."""
        if wire.doom is not None:
            return
        out = wire.out
        queued = out.pushed_bytes - out.left_bytes
        if queued and queued + len(frame) > self._limits.out_answers:
            self.doom(wire, f"{queued} bytes wait for it and it does not read")
            return
        out.push(frame)
        if not wire.dirty:
            self.touch(wire)

    def doom(self, wire: Wire, why: str) -> None:
        """The slow-consumer policy: nobody else waits for one who does not read."""
        wire.doom = "overloaded"
        wire.abort(why)

    def touch(self, wire: Wire) -> None:
        """Look at the connection at the end of this turn."""
        if not wire.dirty:
            wire.dirty = True
            self._dirty.append(wire)
            self._wake()

    def flush(self, written: Callable[[Wire], None]) -> None:
        """One write a connection; `written` gets those whose socket did not take it all at once."""
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for wire in dirty:
                wire.dirty = False
                wire.flush()
                if wire.out.in_flight:
                    written(wire)

    def stuck(self, wire: Wire) -> None:
        """The socket of a connection takes no more for now."""
        wire.stalled_since, wire.stalled_bytes = self._clock(), wire.unsent_bytes()
        if wire not in self._blocked:
            self._blocked.add(wire)
            self._backlog += wire.out.queued_bytes

    def gone(self, wire: Wire) -> None:
        """A connection is no more."""
        self._blocked.discard(wire)
        self._full.pop(wire, None)

    def tick(self, now: float) -> None:
        """Cut whoever has not kept up for too long."""
        for wire in list(self._blocked):
            unsent = wire.unsent_bytes()
            if not wire.out.in_flight:
                self._blocked.discard(wire)
            elif unsent != wire.stalled_bytes:
                wire.stalled_since, wire.stalled_bytes = now, unsent
            elif now - wire.stalled_since > self._limits.stalled_s:
                self.doom(wire, f"took nothing for {self._limits.stalled_s:g} s")
        for wire, since in list(self._full.items()):
            if wire.out.queued_bytes <= self._limits.out_queue // 2:
                del self._full[wire]
            elif now - since > self._limits.stalled_s:
                self.doom(wire, f"was sent more than it took for {self._limits.stalled_s:g} s")
        self._backlog = sum(wire.out.queued_bytes for wire in self._blocked)
