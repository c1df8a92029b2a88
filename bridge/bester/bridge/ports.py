"""The shell around the bridge's core, the connection of a client or of another server, and the turn of the loop, as the
core sees them. Types alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from bester.bridge.confirmations import Delivery
from bester.bridge.outqueue import OutQueue
from bester.bridge.session import Session
from bester.broker.brief import Brief

Waiting = tuple[Delivery, int]
"""Value of a mark in an out-queue: a delivery, and the number of the target in it."""


class Reading(Protocol):
    """The turn of the loop in which bytes are read: `begin` and `end` around a read send what the read asks for at
    once, `leave` in place of `end` leaves that to the end of the turn."""

    def begin(self) -> None: ...
    def end(self) -> None: ...
    def leave(self) -> None: ...


@dataclass(frozen=True)
class Shell:
    """Functions of the shell around one bridge.

    `clock` returns monotonic seconds; `soon` makes a call at the end of this turn of the loop, `later` in the next turn
    (`soon` where it is None). A message that comes while no other is under way is sent on in its `reading`, where there
    is one: nothing is gained for it by the wait for others of the turn.

    `brief` tells when turns are to be brief, to all parts of the process.

    `first_frame_bytes` returns the largest first frame allowed from a host whose certificate has these names (another
    server's message is its first frame); where it is None, `first_frame` is the limit for all. `in_doubt` returns
    whether a stranger may be a listed server: a larger frame of such a stranger is not refused for good, and `on_doubt`
    gets its host. `ended` gets a session whose connection ends at the bridge's will, and why. `notice` gets texts for
    the log.
    """

    clock: Callable[[], float]
    soon: Callable[[Callable[[], None]], object]
    later: Callable[[Callable[[], None]], object] | None = None
    reading: Reading | None = None
    brief: Brief = field(default_factory=Brief)
    first_frame_bytes: Callable[[str, tuple[str, ...]], int] | None = None
    in_doubt: Callable[[str], bool] = lambda host: False
    on_doubt: Callable[[str], None] = lambda host: None
    ended: Callable[[Session, str], None] = lambda session, why: None
    notice: Callable[[str], None] = lambda text: None


class ClientConnection(Protocol):
    """Connection with its session. Its shell calls the bridge's `on_bytes`, `on_peer_ended`, `on_bytes_sent`,
    `on_blocked`, `on_unblocked`, `on_all_sent` and, in the end, `on_connection_lost`."""

    session: Session
    out: OutQueue[Waiting]
    dirty: bool
    """Note of the bridge: the connection is in a list for the next flushes."""
    reading: bool
    """The connection reads; the bridge changes this by `set_reading`."""
    abort_code: str | None
    """Code of the reason why the connection was aborted."""
    stalled_since: float
    stalled_bytes: int
    timed_out: bool
    """The system has ended the connection, as the peer took nothing for so long."""

    def flush(self) -> bool:
        """Hand a chunk of the queued frames to the socket; end the connection where the session is closing and
        everything is sent. Return whether there is more that the socket may take."""

    def set_reading(self, reading: bool) -> None:
        """Resume or pause reading."""

    def unsent_bytes(self) -> int:
        """Return how many bytes of the chunk in flight the socket has not taken over."""

    def abort(self, why: str) -> None:
        """Cut the connection; `on_connection_lost` follows, later. `why` is for the log; empty where there is nothing
        to log."""
