"""The state of each message that is kept on disk, in one table. Pure.

A message that is ready, on disk and nowhere else, has no record, unless it is marked `unsent`: a queue of a million
ready messages takes no memory here. Every other state is held by a Record. An event that the table does not list for a
state is a fault of the caller.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple

from msgspec import Struct

from bester.broker.core.cases import Case
from bester.broker.store_requests import Entry

if TYPE_CHECKING:
    from bester.broker.core.queue_table import Queue


class State(Enum):
    WRITING = "writing"  # enqueued; not committed yet
    WRITING_INFLIGHT = "writing, in flight"  # enqueued because no answer came in time; a late answer still counts
    ENDED_EARLY = "ended early"  # an answer came before the commit
    READY = "ready"  # on disk, to be fetched
    INFLIGHT = "in flight"  # on disk, and sent to a bridge or a server
    ENDED = "ended"  # the outcome is known; the disk still has the message as ready
    RECORDING = "recording"  # the message is queued at another server; the record of that is not committed yet
    GONE = "gone"  # forgotten

    __hash__ = object.__hash__  # by identity, as members compare; the hash of Enum is three times as slow


Event = Literal["committed", "rejected", "fetched", "overdue", "requeued", "ended", "end written"]

# Events of a message, and the state each leads to. Any other event is illegal in that state.
#
#   committed    the group with the message's Enqueue or RecordRemote is on disk
#   rejected     that group could not be written, or the disk has the message already, under another number
#   fetched      a read has found the message on disk
#   overdue      the server has not answered in time; its answer still counts while the message is written
#   requeued     not sent, refused for now, or the link was lost: the message is the next of its queue
#   ended        the message has its outcome
#   end written  the store has taken the message's End: committed, or held back and left out of all reads
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.WRITING, "committed"): State.READY,
    (State.WRITING, "rejected"): State.GONE,
    (State.WRITING, "overdue"): State.WRITING_INFLIGHT,
    (State.WRITING_INFLIGHT, "committed"): State.INFLIGHT,
    (State.WRITING_INFLIGHT, "rejected"): State.GONE,
    (State.WRITING_INFLIGHT, "requeued"): State.WRITING,
    (State.WRITING_INFLIGHT, "ended"): State.ENDED_EARLY,
    (State.ENDED_EARLY, "committed"): State.ENDED,
    (State.ENDED_EARLY, "rejected"): State.GONE,
    (State.READY, "fetched"): State.INFLIGHT,
    (State.READY, "ended"): State.ENDED,
    (State.INFLIGHT, "fetched"): State.INFLIGHT,
    (State.INFLIGHT, "requeued"): State.READY,
    (State.INFLIGHT, "ended"): State.ENDED,
    (State.ENDED, "fetched"): State.ENDED,
    (State.ENDED, "end written"): State.GONE,
    (State.RECORDING, "committed"): State.GONE,
    (State.RECORDING, "rejected"): State.GONE,
}

COUNTED = frozenset({State.WRITING, State.WRITING_INFLIGHT, State.READY, State.INFLIGHT})
"""States in which a message counts in its queue."""
SENT_OUT = frozenset({State.WRITING_INFLIGHT, State.INFLIGHT})
"""States in which a message counts as in flight."""


class Step(NamedTuple):
    """A transition, and the change of its queue's counts: `messages` and `inflight` are 1, 0 or -1."""

    state: State
    messages: int
    inflight: int


STEPS: dict[tuple[State, Event], Step] = {
    (state, event): Step(after, (after in COUNTED) - (state in COUNTED), (after in SENT_OUT) - (state in SENT_OUT))
    for (state, event), after in TRANSITIONS.items()
}
"""The table with the counts, worked out once."""


class Record(Struct, eq=False):
    """A message that is kept, and is not merely ready.

    `queue` is None where the message is queued at another server alone; `size` are the bytes of its body. `case` is
    settled at the commit of the message, None where nobody waits for that. `outcome` is that of a message that has
    ended early, and `note` its entry where the outcome is `queued` and somebody may ask for a later one. `unsent`:
    since the message was last sent it is known not to have been delivered. `sharer` is the sender of whose share the
    message takes room, see `sharer_of`.
    """

    number: int
    queue: Queue | None
    size: int
    state: State
    case: Case | None = None
    outcome: str | None = None
    unsent: bool = False
    sharer: str | None = None
    note: Entry | None = None


def step_of(state: State, event: Event) -> Step:
    """Return the transition of an event. Raises AssertionError for an event that is illegal in this state."""
    step = STEPS.get((state, event))
    if step is None:
        raise AssertionError(f"a message that is {state.value!r} cannot be {event!r}")
    return step
