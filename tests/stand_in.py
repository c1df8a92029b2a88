"""The part of a bridge's connection that is alike in all those of tests, which have no socket."""

from __future__ import annotations

from bester.bridge.outqueue import OutQueue
from bester.bridge.ports import Waiting
from bester.bridge.session import Session


class StandIn:
    """Queue of the frames, and the bridge's notes. `flush` and `abort` are the test's own."""

    __slots__ = ("abort_code", "dirty", "out", "reading", "session", "stalled_bytes", "stalled_since", "timed_out")

    session: Session  # given by the bridge's `admit`

    def __init__(self) -> None:
        self.out: OutQueue[Waiting] = OutQueue()
        self.dirty = False
        self.reading = True
        self.abort_code: str | None = None
        self.stalled_since = 0.0
        self.stalled_bytes = 0
        self.timed_out = False

    def set_reading(self, reading: bool) -> None:
        """Note whether the bridge reads."""
        self.reading = reading

    def unsent_bytes(self) -> int:
        """Return how many bytes of the chunk in flight the socket has not taken over."""
        return self.out.taken_bytes - self.out.sent_bytes
