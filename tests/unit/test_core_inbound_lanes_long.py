"""What is written of a lane with thousands of outcomes: the latest, once for all that a turn brings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from bester.broker.core.cases import Case
from bester.broker.core.effects import Effects
from bester.broker.core.inbound_lanes import MAX_NUMBERS, MAX_WRITTEN, InboundLanes
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.store_requests import SaveLane
from bester.broker.wire.messages import Relay, Relayed
from bester.broker.wire.outcomes import OUTCOME_TYPE
from tests.unit.core_stand import Stand

RESTART_S = Limits().restart_s + 1.0


def test_outcomes_that_came_last_are_written_without_a_look_at_those_before() -> None:
    """A server may keep its floor down, and have one message more written each time."""
    out, looks = Effects(), 0
    lanes = InboundLanes(out, [SaveLane("s2", "chat", "d2", 0, dict.fromkeys(range(MAX_NUMBERS), "delivered"))])

    class Counted(OrderedDict[int, Case | str]):
        """Outcomes that count how many of them are looked at."""

        def items(self) -> Any:
            """Return the outcomes by number."""
            return Looked(self)

    class Looked:
        """The outcomes by number, in either direction."""

        def __init__(self, outcomes: Counted) -> None:
            self.outcomes = outcomes

        def __iter__(self) -> Iterator[tuple[int, Case | str]]:
            return self._count(OrderedDict.items(self.outcomes))

        def __reversed__(self) -> Iterator[tuple[int, Case | str]]:
            return self._count(reversed(OrderedDict.items(self.outcomes)))

        def _count(self, items: Iterable[tuple[int, Case | str]]) -> Iterator[tuple[int, Case | str]]:
            nonlocal looks
            for item in items:
                looks += 1
                yield item

    lane = lanes._lanes["s2", "chat"]["d2"]
    lane.outcomes = Counted(lane.outcomes)
    lanes.remember(("s2", "chat"))
    lanes.flush()
    (written,) = out.writes
    assert isinstance(written, SaveLane)
    assert sorted(written.outcomes) == list(range(MAX_NUMBERS - MAX_WRITTEN, MAX_NUMBERS))
    assert looks <= MAX_WRITTEN + 1


def test_later_outcomes_of_one_batch_are_written_in_one_piece() -> None:
    """Each is looked up on the disk, and each changes the lane, which may have thousands of outcomes."""
    stand = Stand(Settings("s1", routes={"s2": Route("s2", fabric="ipc:///s2")}))
    peer = stand.server("s2")
    stand.wait(RESTART_S)  # a broker that has just started has such outcomes sent again
    stand.commits = False
    body = b'{"message":"s1/b-x/1.0.0","outcome":"delivered"}'
    rows = [Relay(number, OUTCOME_TYPE, body, {"lane": ["d2", number, 0]}) for number in range(1, 17)]
    stand.say(peer, *rows)
    assert len(stand.reads) == len(rows)
    answered = [(read, stand.store.read(read.request)) for read in stand.reads]
    stand.reads.clear()
    stand.take(stand.router.on_reads(answered, stand.now))
    assert [type(write) for write in stand.writes] == [SaveLane]
    stand.commits = True
    stand.commit()
    assert [answer.token for answer in stand.heard_of(peer, Relayed)] == [row.token for row in rows]
