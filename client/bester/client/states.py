"""The states of a client's connection, and what leads from one to another. Pure."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    DOWN = "down"  # no connection; the next attempt is at `retry_at`
    DIALLING = "dialling"  # connecting
    GREETING = "greeting"  # the login is out
    READY = "ready"  # the server knows us
    DRAINING = "draining"  # the application closes: nothing new goes out, reports still come in
    PARTING = "parting"  # all is reported, `close` is out; the server hangs up
    OVER = "over"  # for good


# What may happen to a client, and where it goes. An event that is not listed for a state changes nothing.
#
#   event      dial       the shell starts to connect
#              opened     it is connected: the login goes out
#              welcomed   the server accepts the login
#              lost       no connection could be made, or it is gone
#              refused    the server will not have us, or the very first attempt failed, or patience is at an end
#              leave      the application closes the client
#              drained    nothing is unreported any more
TRANSITIONS: dict[tuple[State, str], State] = {
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
