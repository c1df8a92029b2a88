"""What is known of one child over all its lives, and when it is given up. Pure: the caller says what time it is.

A life ends *at once* if the child did not serve in it and it was short. A child whose lives keep ending at once is
given up: starting it again would change nothing until something else has changed. One that had served, however
briefly, is never given up: what ended it may have been a message.
"""

from __future__ import annotations

from enum import Enum

from bester.bridge.children.backoff import STEADY_S, Backoff

HOPELESS_LIVES = 5
"""Lives at once of a child that said itself that something must be changed first: no more than it takes to be sure."""
MAX_LIVES = 12
"""Lives at once of any other: with the waits between them a minute or more, in which what it needs may come up."""
RETRY_S = 60.0
"""A child that is given up without having said so is tried again so often; what it needs may be there by then."""
HOPELESS_STATUS = 2
"""The exit status of Bester's own handler program where its usage, its configuration or the user's file is wrong."""


class State(Enum):
    RUNNING = "running"
    WAITING = "waiting"  # for its next life
    GIVEN_UP = "given-up"


class Lives:
    """The lives of one child. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.state = State.WAITING
        self.count = 0
        self.at_once = 0
        """How many of the latest lives ended at once."""
        self.why = ""
        """How the last life ended, and its cause in one line where the child has said one."""
        self.hopeless = False
        self._served = False
        self._started = 0.0
        self._backoff = Backoff()

    def started(self, now: float) -> None:
        """Note that a life begins. A child that was given up is so until it serves."""
        self.count += 1
        self._served = False
        self._started = now
        self._backoff.started(now)
        if self.state is not State.GIVEN_UP:
            self.state = State.RUNNING

    def served(self) -> bool:
        """Note that it does what it is for; return whether it had been given up."""
        was_given_up = self.state is State.GIVEN_UP
        self._served = True
        self.state = State.RUNNING
        self.at_once = 0
        return was_given_up

    def on_exit(self, now: float, why: str, *, hopeless: bool) -> float | None:
        """Note that the life has ended, `hopeless` if nothing but a change helps.

        Return how many seconds to wait before the next one, None where there is none until something has changed.
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
        """Note that something has changed: the child has all its chances again."""
        self.at_once = 0
        self.state = State.WAITING
        self._backoff = Backoff()
