"""States of a client's connection, and the events that lead from one to another. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Literal


class State(Enum):
    DOWN = "down"  # no connection; the next attempt is at `retry_at`
    DIALLING = "dialling"  # connecting
    GREETING = "greeting"  # the login is sent
    READY = "ready"  # the login is accepted: messages are sent
    DRAINING = "draining"  # the application closes: no message is sent, reports are still received
    PARTING = "parting"  # every message is reported, `close` is sent; the server hangs up
    OVER = "over"  # ended for good


Trigger = Literal["dial", "opened", "welcomed", "lost", "refused", "leave", "drained"]
"""Events of a connection; a closed set, so that mypy refuses a misspelt one.

dial       the shell starts to connect
opened     the connection is made: the login is sent
welcomed   the server accepts the login
lost       no connection could be made, or the connection broke
refused    the server refuses the login, the very first attempt failed, or a time limit has passed
leave      the application closes the client
drained    no message is unreported any more
"""

# An event that is not listed for a state changes nothing.
TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.DOWN, "dial"): State.DIALLING,
    (State.DOWN, "refused"): State.OVER,
    (State.DOWN, "leave"): State.OVER,
    (State.DIALLING, "opened"): State.GREETING,
    (State.DIALLING, "lost"): State.DOWN,
    (State.DIALLING, "refused"): State.OVER,
    (State.DIALLING, "leave"): State.OVER,
    (State.GREETING, "welcomed"): State.READY,
    (State.GREETING, "lost"): State.DOWN,
    (State.GREETING, "refused"): State.OVER,
    (State.GREETING, "leave"): State.OVER,
    (State.READY, "lost"): State.DOWN,
    (State.READY, "leave"): State.DRAINING,
    (State.DRAINING, "drained"): State.PARTING,
    (State.DRAINING, "lost"): State.OVER,
    (State.DRAINING, "refused"): State.OVER,
    (State.PARTING, "lost"): State.OVER,
    (State.PARTING, "refused"): State.OVER,
}
