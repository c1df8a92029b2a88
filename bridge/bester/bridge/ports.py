"""The connection of a client or of another server, as the bridge's core sees it. Types alone."""

from __future__ import annotations

from typing import Protocol

from bester.bridge.confirmations import Delivery
from bester.bridge.outqueue import OutQueue
from bester.bridge.session import Session

Waiting = tuple[Delivery, int]
"""A delivery and the number of the target in it: what a mark in an out-queue stands for."""


class ClientConnection(Protocol):
    """One connection, as the bridge sees it. It calls `received`, `ended`, `left` and, in the end, `gone`."""

    session: Session
    out: OutQueue[Waiting]
    dirty: bool
    """The bridge's note that the wire is in its list for the next flush."""
    reading: bool
    """Whether it reads; the bridge changes it by `read`."""
    abort_code: str | None
    """Why it was aborted, as a code."""
    stalled_since: float
    stalled_bytes: int

    def flush(self) -> None:
        """Hand what is queued to the socket; end the connection where the session is closing and all has left."""

    def read(self, on: bool) -> None:
        """Read on, or let the peer wait."""

    def unsent_bytes(self) -> int:
        """Return what the socket has not yet taken over of the chunk in flight."""

    def abort(self, why: str) -> None:
        """Cut the connection; `gone` follows, later. `why` is for the log; nothing to log where it is empty."""
