"""Inbound lanes: deduplication of messages from other servers, by lane and number. Pure.

A server sends a message again until it has an answer. Its messages of one type carry the epoch of its store and a
rising number, and a floor below which all are settled. So only the outcomes from the floor on are remembered, and
written: at once where a message was repeated, otherwise within a tick. A server of several brokers has as many stores:
its lane of one type has an epoch of each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Any

from bester.broker.core.cases import Case
from bester.broker.core.effects import Effects
from bester.broker.core.inspection import LaneState
from bester.broker.store_requests import LaneOutcomes, SaveLane
from bester.broker.wire.messages import MAX_TOKEN, Message
from bester.broker.wire.outcomes import OUTCOME_TYPE, QUEUED, failed

MAX_NUMBERS = 20_000
"""Outcomes of one lane: a sender has half as many messages in flight. Above it the lowest number is forgotten, of the
epoch that was unused for longest."""
MAX_WRITTEN = 1_024
"""Outcomes of one epoch on disk: each duplicate writes all of them, and a sender repeats a window of 64."""
MAX_LANES = 20_000
"""Lanes, as many as there may be types; above it the one unused for longest is forgotten."""
MAX_EPOCHS = 8
"""Epochs of one lane: the stores of a server's brokers, and of lives that are gone; above it the one unused for longest
is forgotten."""

NOT_NOW = "not now"
"""Stands for the outcome of a new message that must be sent again, after a lower one that was refused for now."""
Key = tuple[str, str]
"""(peer, type)."""
_Epochs = dict[str, "_Lane"]
"""The lanes of one key by their epochs, that of the epoch used last at the end."""


class _Lane:
    """A lane of one epoch of a server.

    `outcomes` has by number the case of a message, or the outcome from an earlier life. `refused` is the lowest number
    that was refused for now and will be sent again: higher numbers stay behind.
    """

    __slots__ = ("epoch", "floor", "outcomes", "refused")

    def __init__(self, epoch: str, floor: int = 0, outcomes: Iterable[tuple[int, Case | str]] = ()) -> None:
        self.epoch = epoch
        self.floor = floor
        self.outcomes: OrderedDict[int, Case | str] = OrderedDict(outcomes)
        self.refused: int | None = None

    def refuse(self, number: int, *, in_order: bool) -> None:
        """Forget a message that was refused for now; where the lane is in order, higher numbers wait for its return."""
        self.outcomes.pop(number, None)
        if in_order and (self.refused is None or number < self.refused):
            self.refused = number

    def overtakes(self, number: int) -> bool:
        """Return whether this message would overtake a lower one that was refused for now."""
        refused = self.refused
        if refused is None:
            return False
        if number == refused or self.floor > refused:
            self.refused = None  # the refused message was sent again, or its sender has given it up
            return False
        return number > refused


class LanePosition:
    """Position of a case in its lane; watches for the end of the case. `lasting`: its outcome is written at once. A
    case has one position in each epoch, however often its message is sent again."""

    __slots__ = ("_key", "_lane", "_lanes", "_number", "_numbers_many", "lasting")

    def __init__(self, lanes: InboundLanes, key: Key, lane: _Lane, number: int, *, lasting: bool) -> None:
        self._lanes = lanes
        self._key = key
        self._lane = lane
        self._number = number
        self._numbers_many = False  # the case has other numbers in the lane as well
        self.lasting = lasting

    def is_in_epoch_of(self, other: LanePosition) -> bool:
        """Return whether another position of the same case is in the same lane, or in one that replaces it."""
        return self._lane.epoch == other._lane.epoch

    def absorb(self, other: LanePosition) -> None:
        """Take over another position of the same case; its lane is the same, or replaces a forgotten one."""
        self._numbers_many = self._numbers_many or other._number != self._number
        self._lane, self._number = other._lane, other._number
        self.lasting = self.lasting or other.lasting

    def on_case_ended(self, case: Case, answer: Message | None) -> None:
        """Remember the outcome of the case, unless its server will send the message again: the message is new then."""
        if case.is_refused_for_now:
            numbers = [self._number]
            if self._numbers_many:
                numbers = list(self._lane.outcomes)
            for number in numbers:
                if self._lane.outcomes.get(number) is case:  # not where another broker's answer has taken its place
                    self._lane.refuse(number, in_order=self._key[1] != OUTCOME_TYPE)
        self._lanes.remember(self._key, at_once=self.lasting)


class InboundLanes:
    """All lanes of all servers. `flush` writes the outcomes that are due, once a turn."""

    def __init__(self, out: Effects, saved: Iterable[SaveLane]) -> None:
        self._out = out
        self._lanes: dict[Key, _Epochs] = {
            (each.peer, each.type): {
                epoch: _Lane(epoch, floor, sorted(outcomes.items())) for epoch, floor, outcomes in each.epochs()
            }
            for each in saved
        }
        self.due: dict[Key, None] = {}
        self._later: dict[Key, None] = {}

    def find(self, peer: str, type_: str, meta: dict[str, Any]) -> tuple[Case | str | None, LanePosition | None]:
        """Look a message up. Returns its case or outcome, None where the message is new; and its position, where it is
        new and has a lane that can be read.
        """
        found = lane_of(meta)
        if found is None:
            return None, None
        epoch, number, floor = found
        key = (peer, type_)
        epochs = self._lanes.pop(key, None)
        if epochs is None:
            epochs = {}
        lane = epochs.pop(epoch, None)
        if lane is None:
            lane = _Lane(epoch)
        self._lanes[key], epochs[epoch] = epochs, lane  # now the ones used last
        self._bound(epochs)
        if floor > lane.floor:
            self._raise(lane, floor)
        if number < lane.floor:
            return failed("expired"), None  # the sender has its answer, and does not wait for this one
        again = meta.get("again") is True
        outcome = lane.outcomes.get(number)
        if outcome is None and lane.overtakes(number):
            return NOT_NOW, None
        if outcome is None:
            # An outcome counts down a number on the disk: processed twice, it would count as two.
            return None, LanePosition(self, key, lane, number, lasting=again or type_ == OUTCOME_TYPE)
        if again:
            self.remember(key)
            if type(outcome) is Case and outcome.pending:
                _watch(outcome, LanePosition(self, key, lane, number, lasting=True))
        return outcome, None

    def add(self, position: LanePosition, case: Case) -> None:
        """Enter the case of a new message."""
        position._lane.outcomes[position._number] = case
        _watch(case, position)
        epochs = self._lanes[position._key].values()
        if sum([len(lane.outcomes) for lane in epochs]) > MAX_NUMBERS:
            outcomes = next(lane.outcomes for lane in epochs if lane.outcomes)
            del outcomes[min(outcomes)]

    def join(self, position: LanePosition, case: Case) -> None:
        """Enter the case of a message that came before under another number: its outcome stands for both."""
        self.add(position, case)
        if not case.pending:
            case.watchers = ()
            self.remember(position._key, at_once=position.lasting)

    def remember(self, key: Key, *, at_once: bool = True) -> None:
        """Have the outcomes of a lane written in this turn, or with the next tick where not `at_once`: a commit for
        each message would cost more than the rare duplicate over a crash within a tick, which is marked."""
        (self.due if at_once else self._later)[key] = None

    def tick(self) -> None:
        """Make due the lanes that could wait for a tick."""
        self.due |= self._later
        self._later.clear()

    def flush(self) -> None:
        """Write the lanes that are due."""
        for key in self.due:
            self._later.pop(key, None)
            epochs = self._lanes.get(key)
            if epochs is not None:
                ended = {epoch: _ended(lane) for epoch, lane in epochs.items()}
                epoch, last = ended.popitem()
                self._out.writes.append(SaveLane(*key, epoch, *last, ended))
        self.due.clear()

    def _bound(self, epochs: _Epochs) -> None:
        """Forget the epoch of a lane, and the lane, that were unused for longest, where there are too many."""
        if len(epochs) > MAX_EPOCHS:
            del epochs[next(iter(epochs))]
        if len(self._lanes) > MAX_LANES:
            del self._lanes[next(iter(self._lanes))]

    def adopt(self, saved: Iterable[SaveLane]) -> dict[Case, str]:
        """Take in the lanes of another broker of this server: a message that it has answered is recognized here. Return
        the answers to messages that are under way here as well, by their cases."""
        answers: dict[Case, str] = {}
        for each in saved:
            mine = self._lanes.get((each.peer, each.type), {})
            epochs = {epoch: _Lane(epoch) for epoch, _, _ in each.epochs() if epoch not in mine} | mine
            self._lanes[each.peer, each.type] = epochs
            for epoch, floor, outcomes in each.epochs():
                lane = epochs[epoch]
                under_way = {
                    number: known
                    for number in outcomes.keys() & lane.outcomes.keys()
                    if type(known := lane.outcomes[number]) is Case and known.pending
                }
                answers |= {case: outcomes[number] for number, case in under_way.items()}
                ended = {number: known for number, known in lane.outcomes.items() if number not in under_way}
                lane.outcomes = OrderedDict(sorted({**outcomes, **ended}.items()))
                self._raise(lane, max(lane.floor, floor))
            while len(epochs) > MAX_EPOCHS:
                del epochs[next(iter(epochs))]
            self._bound(epochs)
        return answers

    def _raise(self, lane: _Lane, floor: int) -> None:
        lane.floor = floor
        outcomes = lane.outcomes
        while outcomes and (number := next(iter(outcomes))) < floor:  # numbers rise, but for those sent again
            del outcomes[number]

    def inspect(self) -> dict[tuple[str, str], LaneState]:
        """Return the state of each lane, by (server, type)."""
        return {
            key: LaneState(
                epoch, lane.floor, len(lane.outcomes), min(lane.outcomes, default=None), lane.refused, len(epochs)
            )
            for key, epochs in self._lanes.items()
            for epoch, lane in list(epochs.items())[-1:]
        }


def lane_of(meta: dict[str, Any]) -> tuple[str, int, int] | None:
    """Return the epoch, number and floor in a message's meta, None where there is none that can be read."""
    value = meta.get("lane")
    if type(value) is not list or len(value) != 3:
        return None
    epoch, number, floor = value
    if type(epoch) is not str or not 0 < len(epoch) <= 64 or type(number) is not int or type(floor) is not int:
        return None
    return (epoch, number, floor) if 0 <= floor <= number <= MAX_TOKEN else None


def _watch(case: Case, position: LanePosition) -> None:
    """Watch for the end of a case at this position; all repeats of one case in one epoch share a watcher. Above the
    bound of epochs the first watcher is for the newest one: its own may be forgotten."""
    known = [watcher for watcher in case.watchers if type(watcher) is LanePosition]
    same = next((watcher for watcher in known if watcher.is_in_epoch_of(position)), None)
    if same is None and len(known) == MAX_EPOCHS:
        same = known[0]
    if same is None:
        case.watchers = (*case.watchers, position)
    else:
        same.absorb(position)


def _ended(lane: _Lane) -> LaneOutcomes:
    """Return what is written of a lane: the outcomes that came last, without a look at the thousands before them."""
    ended = ((number, text) for number, each in reversed(lane.outcomes.items()) if (text := _outcome(each)) is not None)
    return LaneOutcomes(lane.floor, dict(islice(ended, MAX_WRITTEN)))


def _outcome(entry: Case | str) -> str | None:
    """Return the outcome of a case as it is written, None of a pending one: behind a blank, how many late outcomes are
    to come."""
    if type(entry) is str:
        return entry
    assert isinstance(entry, Case)
    if entry.pending:
        return None
    return f"{entry.worst} {entry.queued}" if entry.worst == QUEUED else entry.outcome
