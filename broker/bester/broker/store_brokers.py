"""The brokers of a server, as their store tells of them, and the moves of messages from one to another. Pure values."""

from __future__ import annotations

from typing import Literal, NamedTuple

from bester.broker.store_requests import LaneOutcomes, SaveLane, Snapshot

BrokerState = Literal["lives", "ended", "dead"]
"""A broker lives while it has its lease; it has ended where it gave the lease back, and is dead where that ran out."""


class BrokerSeen(NamedTuple):
    """A broker of the server: `gone_s` is the time since its lease ran out, 0 where it did not. `process` held the
    lease, in words; `waiting` counts the messages that wait to be adopted, up to MOST_COUNTED."""

    name: str
    state: BrokerState
    gone_s: float = 0.0
    process: str = ""
    waiting: int = 0


class AdoptionSeen(NamedTuple):
    """An adoption, `ago_s` seconds ago: `adopter` took over what `broker` had left."""

    broker: str
    adopter: str
    ago_s: float
    messages: int
    outcomes: int
    dead_letters: int


class Brokers(NamedTuple):
    """The brokers of a server. `abandoned` names one whose namespace holds anything and whose lease has run out, empty
    where there is none. `all` are those that live, those that died within GONE_S, and those with messages that wait;
    `adoptions` are the latest, the last one first."""

    abandoned: str = ""
    all: tuple[BrokerSeen, ...] = ()
    adoptions: tuple[AdoptionSeen, ...] = ()


GONE_S = 7 * 86_400.0
"""Time for which a dead broker that has left nothing is still named, and an adoption: then they are not missed."""
MOST_COUNTED = 10_000
"""Waiting messages of a dead broker that are counted: a count of millions would hold up the commits."""
MOST_BROKERS = 64
"""Brokers that are told of: a bridge is linked to at most as many."""
MOST_ADOPTIONS = 16
"""Adoptions that are told of: what a person reads."""


class Adopted(NamedTuple):
    """Contents that were moved from the namespace of a `broker`, empty where there was nothing to move.

    `snapshot` has the moved part alone: its queues, shares, types, names, and what else a broker reads at its start;
    its `lanes` are those of this namespace, united with the other's. `outcomes` counts the moved messages that had
    ended, `dead_letters` the moved ones; `is_more` says that the other namespace still holds some messages or outcomes.
    """

    broker: str = ""
    snapshot: Snapshot = Snapshot()
    outcomes: int = 0
    is_more: bool = False
    dead_letters: int = 0


def united(mine: SaveLane | None, theirs: SaveLane) -> SaveLane:
    """Return an inbound lane with the outcomes of both, of each epoch; mine is the epoch that is in use."""
    if mine is None:
        return theirs
    found = {epoch: LaneOutcomes(floor, outcomes) for epoch, floor, outcomes in theirs.epochs()}
    for epoch, floor, outcomes in mine.epochs():
        other = found.pop(epoch, LaneOutcomes(0, {}))
        above, both = max(floor, other.floor), {**other.outcomes, **outcomes}
        found[epoch] = LaneOutcomes(above, {number: both[number] for number in sorted(both) if number >= above})
    return SaveLane(mine.peer, mine.type, mine.epoch, *found.pop(mine.epoch), found)
