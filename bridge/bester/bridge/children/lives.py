"""The lives of one child, and when the child is given up. Pure.

A life ends *at once* if it was short and the child did not serve in it. A child whose lives keep ending at once is
given up: another start would change nothing until something else has changed. A child that has served, however briefly,
is never given up: a message may have ended that life.
"""

from __future__ import annotations

from enum import Enum

from bester.bridge.children.backoff import STEADY_S, Backoff

HOPELESS_LIVES = 5
"""Lives at once of a child that has reported a fault of its setup: enough to be sure."""
MAX_LIVES = 12
"""Lives at once of any other child: with the waits between them a minute or more, in which a missing service may come
up."""
RETRY_S = 60.0
"""Time between tries of a child that was given up without such a report; a missing service may be there by then."""
HOPELESS_STATUS = 2
"""Exit status of Bester's own handler program where its usage, its configuration or the user's file is wrong."""


class State(Enum):
    RUNNING = "running"
    WAITING = "waiting"  # for the next life
    GIVEN_UP = "given-up"


class Lives:
    """Lives of one child. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.state = State.WAITING
        self.count = 0
        self.at_once = 0
        """Number of the latest lives that ended at once."""
        self.why = ""
        """End of the last life, and its cause in one line where the child has logged one."""
        self.hopeless = False
        self._served = False
        self._started = 0.0
        self._backoff = Backoff()

    @property
    def has_served(self) -> bool:
        """Return whether the child has served in its present life."""
        return self._served

    def started(self, now: float) -> None:
        """Note that a life begins. A child that was given up stays so until it serves."""
        self.count += 1
        self._served = False
        self._started = now
        self._backoff.started(now)
        if self.state is not State.GIVEN_UP:
            self.state = State.RUNNING

    def served(self) -> bool:
        """Note that the child serves; return whether it had been given up."""
        was_given_up = self.state is State.GIVEN_UP
        self._served = True
        self.state = State.RUNNING
        self.at_once = 0
        return was_given_up

    def on_exit(self, now: float, why: str, *, hopeless: bool) -> float | None:
        """Note that the life has ended, `hopeless` if only a change helps.

        Return the seconds to wait before the next one, None where there is none until something has changed.
        """
        self.why = why
        self.hopeless = hopeless
        wait_s = self._backoff.died(now)
        if self._served or now - self._started >= STEADY_S:
            self.at_once = 0
            self.state = State.WAITING
            return wait_s
        self.at_once += 1
        if self.state is not State.GIVEN_UP and self.at_once < (HOPELESS_LIVES if hopeless else MAX_LIVES):
            self.state = State.WAITING
            return wait_s
        self.state = State.GIVEN_UP
        return None if hopeless else RETRY_S

    def changed(self) -> None:
        """Note that something has changed: the child has all its lives again."""
        self.at_once = 0
        self.state = State.WAITING
        self._backoff = Backoff()
