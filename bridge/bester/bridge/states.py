"""The states of a native connection, and the table of their transitions. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Literal


class State(Enum):
    NEW = "new"  # an unknown peer; its first frame must come soon and be small
    AUTHENTICATING = "authenticating"  # the broker is asked; frames that come meanwhile are held, no more are read
    OPEN = "open"  # a client: a delivery target, whose messages are taken
    SERVER = "server"  # another server; its one message waits for its report
    DRAINING = "draining"  # a client that sends no more: still a target, and waiting for its reports
    CLOSING = "closing"  # the last frame is written; once the frame has left, the connection ends
    CLOSED = "closed"  # the connection is gone


Event = Literal["login", "server", "accepted", "refused", "stop", "finished", "timeout", "lost"]

# Events of a session, and the state that follows. An event that is not listed for a state changes nothing.
#
#   login      the first frame is a client's: the broker is asked
#   server     the first frame is another server's message
#   accepted   the broker knows the user, and the session is a target: the auth answer is written before all else
#   refused    the broker (or a bound) refuses the login: a bad auth answer
#   stop       the peer sends no more: end of stream, `close`, or a frame after which the stream cannot be read
#   finished   no message of the session is unreported
#   timeout    the state's deadline has passed; a native server's connection is cut, because a peaceful end looks like
#              that of a server that never reports
#   lost       the connection is gone
#
# A `stop` before `accepted` is remembered behind the held frames, and happens after them.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NEW, "login"): State.AUTHENTICATING,
    (State.NEW, "server"): State.SERVER,
    (State.NEW, "stop"): State.CLOSING,
    (State.NEW, "timeout"): State.CLOSING,
    (State.NEW, "lost"): State.CLOSED,
    (State.AUTHENTICATING, "accepted"): State.OPEN,
    (State.AUTHENTICATING, "refused"): State.CLOSING,
    (State.AUTHENTICATING, "timeout"): State.CLOSING,
    (State.AUTHENTICATING, "lost"): State.CLOSED,
    (State.OPEN, "stop"): State.DRAINING,
    (State.OPEN, "lost"): State.CLOSED,
    (State.SERVER, "finished"): State.CLOSING,
    (State.SERVER, "timeout"): State.CLOSED,
    (State.SERVER, "lost"): State.CLOSED,
    (State.DRAINING, "finished"): State.CLOSING,
    (State.DRAINING, "timeout"): State.CLOSING,
    (State.DRAINING, "lost"): State.CLOSED,
    (State.CLOSING, "timeout"): State.CLOSED,
    (State.CLOSING, "lost"): State.CLOSED,
}

TARGETS = frozenset({State.OPEN, State.DRAINING})
"""States in which the broker may send messages to the session."""
ANNOUNCED = frozenset({State.AUTHENTICATING, State.OPEN, State.DRAINING})
"""States in which the broker knows the session."""
