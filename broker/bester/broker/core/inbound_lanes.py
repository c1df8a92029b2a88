"""What has come in from other servers' lanes: the same number is done once, however often it is sent.

A server repeats what it had no answer on. Its messages of one type carry the epoch of its store and a rising number,
and say below which number all is settled; so only what lies above that is remembered, on the disk as well: of what has
come again before it is answered, of the rest within a tick. Pure.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from bester.broker.core.cases import Case
from bester.broker.core.effects import Effects
from bester.broker.core.inspection import LaneState
from bester.broker.store_requests import SaveLane
from bester.broker.wire.messages import MAX_TOKEN, Message
from bester.broker.wire.outcomes import OUTCOME_TYPE, QUEUED, failed, try_again

MAX_NUMBERS = 20_000
"""Of one lane; a sender has half as many on their way. Above it the lowest is forgotten."""
MAX_WRITTEN = 1_024
"""Of them, on disk: each repeat writes them all, and a sender repeats a window of 64."""
MAX_LANES = 20_000
"""As many as there may be types; above it the one unused for longest is forgotten."""

NOT_NOW = "not now"
"""Instead of an outcome: it is new, and is to come again after what could not be taken."""
Key = tuple[str, str]
"""(peer, type)."""


class _Lane:
    """`outcomes` by number: the case that still runs or has ended, or what is known from an earlier life. `refused` is
    the lowest number that could not be taken and will come again: what is behind it in the lane stays behind it."""

    __slots__ = ("epoch", "floor", "outcomes", "refused")

    def __init__(self, epoch: str, floor: int = 0, outcomes: Iterable[tuple[int, Case | str]] = ()) -> None:
        self.epoch = epoch
        self.floor = floor
        self.outcomes: OrderedDict[int, Case | str] = OrderedDict(outcomes)
        self.refused: int | None = None

    def refuse(self, number: int, *, in_order: bool) -> None:
        """It could not be taken now; what is behind it waits for it where there is an order."""
        self.outcomes.pop(number, None)
        if in_order and (self.refused is None or number < self.refused):
            self.refused = number

    def overtakes(self, number: int) -> bool:
        """Would this one be taken before another that its sender has sent before it?"""
        refused = self.refused
        if refused is None:
            return False
        if number == refused or self.floor > refused:  # it has come again, or its sender has given it up
            self.refused = None
            return False
        return number > refused


class LanePosition:
    """Where a case stands in its lane: watches for its end."""

    __slots__ = ("_key", "_lane", "_lanes", "_number", "lasting")

    def __init__(self, arrivals: InboundLanes, key: Key, lane: _Lane, number: int, *, lasting: bool) -> None:
        self._lanes = arrivals
        self._key = key
        self._lane = lane
        self._number = number
        self.lasting = lasting

    def on_case_ended(self, case: Case, answer: Message | None) -> None:
        """The case is over. What may be tried again is not remembered: it will come again, and is new then."""
        if try_again(failed(case.reason or ""), {"carried": case.carried}):
            self._lane.refuse(self._number, in_order=self._key[1] != OUTCOME_TYPE)
        self._lanes.remember(self._key, at_once=self.lasting)


class InboundLanes:
    """All lanes of all servers. `settle` puts what must last into `out`, once a turn."""

    def __init__(self, out: Effects, arrived: Iterable[SaveLane]) -> None:
        self._out = out
        self._lanes: dict[Key, _Lane] = {
            (each.peer, each.type): _Lane(each.epoch, each.floor, sorted(each.outcomes.items())) for each in arrived
        }
        self._due: dict[Key, None] = {}
        self._later: dict[Key, None] = {}

    def find(self, peer: str, type_: str, meta: dict[str, Any]) -> tuple[Case | str | None, LanePosition | None]:
        """Look up where a message stands: what is known of it, if it came before, and its place, if it has one.

        A message without a lane that can be read is new, and has no place.
        """
        said = lane_of(meta)
        if said is None:
            return None, None
        epoch, number, floor = said
        key = (peer, type_)
        lane = self._lanes.pop(key, None)
        if lane is None or lane.epoch != epoch:
            lane = _Lane(epoch)
        self._lanes[key] = lane  # the one used last
        if len(self._lanes) > MAX_LANES:
            del self._lanes[next(iter(self._lanes))]
        if floor > lane.floor:
            self._raise(lane, floor)
        if number < lane.floor:
            return failed("expired"), None  # its sender has its answer: this is an echo
        again = meta.get("again") is True
        known = lane.outcomes.get(number)
        if known is None and lane.overtakes(number):
            return NOT_NOW, None
        if known is None:
            # News count down what is on the disk already: done twice, one would count as two.
            return None, LanePosition(self, key, lane, number, lasting=again or type_ == OUTCOME_TYPE)
        if again:
            self.remember(key)
            if type(known) is Case and known.pending:
                known.watchers = (*known.watchers, LanePosition(self, key, lane, number, lasting=True))
        return known, None

    def add(self, place: LanePosition, case: Case) -> None:
        """A message that is new is on its way."""
        lane = place._lane
        lane.outcomes[place._number] = case
        case.watchers = (*case.watchers, place)
        if len(lane.outcomes) > MAX_NUMBERS:
            del lane.outcomes[min(lane.outcomes)]

    def join(self, place: LanePosition, case: Case) -> None:
        """A message has come before under another number: what became, or becomes, of that stands for this, too."""
        self.add(place, case)
        if not case.pending:
            case.watchers = ()
            self.remember(place._key, at_once=place.lasting)

    def remember(self, key: Key, *, at_once: bool = True) -> None:
        """What is known of this lane must last; if not `at_once`, from the next tick on: a commit for each message that
        comes and goes would cost more than the rare repeat over a crash within a tick, which is marked."""
        (self._due if at_once else self._later)[key] = None

    def tick(self) -> None:
        """What could wait has waited."""
        self._due |= self._later
        self._later.clear()

    def flush(self) -> None:
        """Have what must last written."""
        for key in self._due:
            self._later.pop(key, None)
            lane = self._lanes.get(key)
            if lane is not None:
                ended = {number: known for number, each in lane.outcomes.items() if (known := _outcome(each))}
                if len(ended) > MAX_WRITTEN:
                    ended = {number: ended[number] for number in heapq.nlargest(MAX_WRITTEN, ended)}
                self._out.writes.append(SaveLane(*key, lane.epoch, lane.floor, ended))
        self._due.clear()

    def _raise(self, lane: _Lane, floor: int) -> None:
        lane.floor = floor
        outcomes = lane.outcomes
        while outcomes and (number := next(iter(outcomes))) < floor:  # numbers rise, but for those that come again
            del outcomes[number]

    def inspect(self) -> dict[tuple[str, str], LaneState]:
        """Return what is known of each lane, by (server, type)."""
        return {
            key: LaneState(lane.epoch, lane.floor, len(lane.outcomes), min(lane.outcomes, default=None), lane.refused)
            for key, lane in self._lanes.items()
        }

    @property
    def has_writes(self) -> bool:
        """Is there anything to settle?"""
        return bool(self._due)


def lane_of(meta: dict[str, Any]) -> tuple[str, int, int] | None:
    """Read the lane that a server says its message has."""
    said = meta.get("lane")
    if type(said) is not list or len(said) != 3:
        return None
    epoch, number, floor = said
    if type(epoch) is not str or not 0 < len(epoch) <= 64 or type(number) is not int or type(floor) is not int:
        return None
    return (epoch, number, floor) if 0 <= floor <= number <= MAX_TOKEN else None


def _outcome(known: Case | str) -> str | None:
    """Return how it ended, None where it has not: the outcome, and behind a blank how many are still to come."""
    if type(known) is str:
        return known
    assert isinstance(known, Case)
    if known.pending:
        return None
    return f"{known.worst} {known.queued}" if known.worst == QUEUED else known.worst
