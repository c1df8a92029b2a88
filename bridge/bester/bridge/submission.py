"""An unreported message of a bridge: its record, and the table of its states. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

from bester.broker.wire.messages import Submit


class State(Enum):
    HELD = "held"  # not on the link: no broker, no room, no credit, or the link was lost with the message on it
    SENT = "sent"  # on the link, and not reported
    HELD_DEPARTED = "held-departed"  # held, and the client has gone
    SENT_DEPARTED = "sent-departed"  # sent, and the client has gone
    ENDED = "ended"  # out of the table; a report on it changes nothing


Event = Literal["refused", "sent", "lost", "reported", "departed", "dropped"]

# Events of an unreported message, and the state that follows. An event that is not listed for a state is a fault of
# the bridge, and raises. A message begins as `sent`: the link is offered every new message in the same call, and
# seldom refuses.
#
#   refused    the link did not take the message: there is no broker, no room, no credit, or older messages are held
#   sent       the link has taken a held message
#   lost       the link with the message on it is lost: the next time counts as another attempt
#   reported   the broker has reported, or the bridge itself does (`timeout`, `unreachable`)
#   departed   the client has gone, and its message is kept
#   dropped    the client has gone, and there is no room for its message among the departed
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.HELD, "sent"): State.SENT,
    (State.HELD, "reported"): State.ENDED,
    (State.HELD, "departed"): State.HELD_DEPARTED,
    (State.HELD, "dropped"): State.ENDED,
    (State.SENT, "refused"): State.HELD,
    (State.SENT, "lost"): State.HELD,
    (State.SENT, "reported"): State.ENDED,
    (State.SENT, "departed"): State.SENT_DEPARTED,
    (State.SENT, "dropped"): State.ENDED,
    (State.HELD_DEPARTED, "sent"): State.SENT_DEPARTED,
    (State.HELD_DEPARTED, "reported"): State.ENDED,
    (State.SENT_DEPARTED, "lost"): State.HELD_DEPARTED,
    (State.SENT_DEPARTED, "reported"): State.ENDED,
}


class Submission(msgspec.Struct, eq=False, gc=False):  # plain values alone: no cycle to collect
    """Unreported message. `id` is the JSON text that the client reads in its report, `size` in bytes counts everything
    that the message costs, `since_s` is the time of its arrival. `session` is the number of the session that gets the
    report, `user` and `account` those of a client that has gone (None of another server)."""

    submit: Submit
    id: bytes
    size: int
    since_s: float
    session: int
    state: State = State.SENT
    user: str | None = None
    account: str | None = None

    def on(self, event: Event) -> None:
        """Change to the state that follows `event`. Raises AssertionError for an event that the table does not list for
        the state."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise AssertionError(f"a message that is {self.state.value} cannot be {event}: {self.submit[:3]}")
        self.state = state


def again(submit: Submit) -> Submit:
    """Return the next attempt at a message that was sent and not reported."""
    return submit._replace(meta={**submit.meta, "attempt": submit.meta.get("attempt", 1) + 1})
