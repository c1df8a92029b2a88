"""What the bridge's core asks of its surroundings: a way to the broker, and connections. Types alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from bester.bridge.confirmations import Delivery
from bester.bridge.outqueue import OutQueue
from bester.bridge.session import Session
from bester.broker.wire.messages import Message

Waiting = tuple[Delivery, int]
"""A delivery and the number of the target in it: what a mark in an out-queue stands for."""
Answered = Callable[[int, Any], None]
"""Gets the status (0 is good) and the value of an answer."""
UNANSWERED = -1
"""The status where there was no broker to answer, or it was lost."""


class BrokerPort(Protocol):
    """The way to the broker: a link of the fabric, or a direct call in the same process."""

    def send(self, message: Message) -> bool:
        """Take a message; False: not now (nothing was taken)."""

    def send_all(self, messages: Sequence[Message]) -> int:
        """Take messages in their order; returns how many. The rest: not now."""


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
