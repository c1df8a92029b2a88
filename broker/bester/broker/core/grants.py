"""Exclusive use of a handler that serves several brokers: asked for by a broker, granted by the handler.

A broker knows which messages it has given to a handler itself, and not those of others. So a suspect is alone with such
a handler only while the handler has granted this broker its exclusive use: it holds nothing of other brokers then, and
gets nothing of them. Each grant is for one suspect; the handler's brokers take turns.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bester.broker.core.jobs import Job


PATIENCE_S = 35.0
"""Time for which the broker counts on the answer of a handler: that handler may have begun a message of another broker,
which takes 30 s at most, or is passed over. After that time another handler is asked, where there is one."""


class State(Enum):
    NONE = "none"
    ASKED = "asked"  # the handler was asked, and finishes what it holds of other brokers
    GRANTED = "granted"  # the next suspect is alone with the handler
    USED = "used"  # the suspect was given


Event = Literal["wanted", "granted", "given", "released"]

# Transitions of a grant. An event that is not listed for a state changes nothing.
#
#   event      wanted     the handler holds nothing of this broker, and a suspect waits: it is asked, under a new number
#              granted    the handler has granted what was asked last
#              given      the handler was given a suspect
#              released   the handler is isolated no more: it is told so
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NONE, "wanted"): State.ASKED,
    (State.ASKED, "granted"): State.GRANTED,
    (State.GRANTED, "given"): State.USED,
    (State.USED, "wanted"): State.ASKED,
    (State.ASKED, "released"): State.NONE,
    (State.GRANTED, "released"): State.NONE,
    (State.USED, "released"): State.NONE,
}


class Grant:
    """Grant of one worker. `name` is the one that its process has at every broker; `number` is that of the last
    question. `suspect` was given under this grant last: a death over it alone proves something."""

    __slots__ = ("_looked_at", "name", "number", "state", "suspect")

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        self.state = State.NONE
        self.suspect: Job | None = None
        self._looked_at: float | None = None  # first, since the handler was asked

    def go(self, event: Event) -> bool:
        """Take in an event; return whether it has changed the state."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        self.number += state is State.ASKED
        self._looked_at = None
        return True

    def is_slow(self, now: float) -> bool:
        """Return whether the handler was asked long ago, and has not answered. Call twice a second."""
        if not self.is_asked:
            return False
        if self._looked_at is None:
            self._looked_at = now
        return now - self._looked_at > PATIENCE_S

    @property
    def is_asked(self) -> bool:
        """Return whether the handler is to answer."""
        return self.state is State.ASKED

    @property
    def is_given(self) -> bool:
        """Return whether this broker has the exclusive use of the handler."""
        return self.state in (State.GRANTED, State.USED)

    @property
    def asked(self) -> int:
        """Number of the question that waits for its answer, 0 for none: what the handler is told."""
        return self.number if self.is_asked else 0
