"""Settling of connections: after each event, a connection does what the state of its session asks for. Pure.

A connection is read from or not, has a deadline or none, is flushed to its end, or is cut. Unfinished frames above
their bound end the streams of those that have held most for longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bester.bridge.intake import Intake
from bester.bridge.limits import Limits
from bester.bridge.logins import Logins
from bester.bridge.outbound import Outbound
from bester.bridge.ports import ClientConnection, Shell
from bester.bridge.registry import Registry
from bester.bridge.session import Session
from bester.bridge.states import State
from bester.bridge.steps import Step
from bester.bridge.unfinished import Unfinished

_OPEN = State.OPEN


class Settling:
    """Settler of one bridge's connections. `apply` carries out the step of a session. `frames_over` and `frames_late`
    count the unfinished frames that ended their stream: at the bound of their bytes, and of their time."""

    def __init__(
        self, limits: Limits, shell: Shell, registry: Registry, unfinished: Unfinished, logins: Logins, intake: Intake,
        outbound: Outbound, apply: Callable[[ClientConnection, Step, float], None],
    ) -> None:  # fmt: skip
        self.frames_over = self.frames_late = 0
        self._out_pause = limits.out_pause
        self._clock, self._ended = shell.clock, shell.ended
        self._registry = registry
        self._unfinished = unfinished
        self._logins = logins
        self._intake = intake
        self._outbound = outbound
        self._apply = apply

    def settle(self, connection: ClientConnection) -> None:
        """Do what the state of a session asks for, after anything that may have changed the state."""
        session = connection.session
        if session.state is not _OPEN:
            self._settle_state(connection, session)
        if session.splitter.change is not None:
            self._settle_frame(connection)
        if (session.held or session.parked) and session.has_waiting:
            self._intake.add(connection)
        self.settle_reading(connection)

    def settle_reading(self, connection: ClientConnection) -> None:
        """Stop or resume reading. A connection that does not read its frames is not read from, nor is one whose frames
        wait."""
        session, out = connection.session, connection.out
        wants = (session.state is _OPEN and not session.held and not session.parked) or session.wants_input
        if out.taken_bytes != out.sent_bytes and out.queued_bytes >= self._out_pause:
            wants = False
        if wants is not connection.reading:
            connection.set_reading(wants)

    def _settle_state(self, connection: ClientConnection, session: Session) -> None:
        self._registry.on_state(connection)
        if session.state is not State.AUTHENTICATING:
            self._logins.forget(session.number)
        if session.state is State.CLOSING:
            self._outbound.touch(connection)
        elif session.state is State.CLOSED and connection.abort_code is None:
            connection.abort_code = "not-connected"
            connection.abort("its message has no report yet, and goes on without it" if session.is_unanswered else "")

    def _settle_frame(self, connection: ClientConnection) -> None:
        """Count the unfinished frame of a connection; above the bound, end those that have held most for longest."""
        splitter, now = connection.session.splitter, self._clock()
        change, splitter.change = splitter.change, None
        if change is None or connection.abort_code is not None:
            return
        self._unfinished.on_change(connection, change, now)
        if self._unfinished.is_over:
            for each in self._unfinished.make_way(now):
                self.frames_over += 1
                self._end_frame(each, "overloaded", now)

    def _end_frame(self, connection: ClientConnection, reason: str, now: float) -> None:
        """End the stream of a connection at its unfinished frame."""
        held, needed = connection.session.splitter.waiting_bytes, connection.session.splitter.needed_bytes
        why = "its frame took too long" if reason == "timeout" else "too many frames are unfinished, and it held most"
        self._unfinished.forget(connection)
        self._apply(connection, connection.session.end_frame(reason, now), now)
        self._ended(connection.session, f"{why}: {held} of {needed} bytes had come")

    def judge(self, now: float) -> Iterator[None]:
        """End the states, and the unfinished frames, whose time is up; one before each step."""
        for connection in self._registry.overdue(now):
            self._apply(connection, connection.session.tick(now), now)
            yield
        for connection in self._unfinished.overdue(now):
            if self._unfinished.is_late(connection):
                self.frames_late += 1
                self._end_frame(connection, "timeout", now)
                yield
