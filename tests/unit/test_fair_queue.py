"""A queue in which senders take turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.core.fair_queue import FairQueue

Item = tuple[str, int]


def queue_of(*items: Item) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(lambda item: item[0])
    for item in items:
        queue.append(item)
    return queue


def drained(queue: FairQueue[Item]) -> list[Item]:
    return [queue.popleft() for _ in range(len(queue))]


def test_senders_take_turns() -> None:
    queue = queue_of(("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("c", 2))
    assert drained(queue) == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("c", 2), ("a", 3)]


def test_sender_that_comes_late_waits_for_one_round() -> None:
    queue = queue_of(*[("a", n) for n in range(1000)])
    queue.popleft()
    queue.append(("b", 1))
    assert ("b", 1) in [queue.popleft() for _ in range(2)]


def test_requeued_items_come_first_in_their_order() -> None:
    queue = queue_of(("a", 3), ("b", 1))
    queue.extendleft([("a", 2), ("a", 1)])
    assert drained(queue) == [("a", 1), ("a", 2), ("a", 3), ("b", 1)]


def test_sweep_takes_out_what_does_not_stay() -> None:
    queue = queue_of(("a", 1), ("a", 5), ("a", 2), ("b", 1), ("c", 7))
    queue.appendleft(("c", 2))
    queue.sweep(lambda item: item[1] >= 5)
    assert drained(queue) == [("a", 5), ("c", 7), ("a", 2)], "nothing behind an item that stays"


@pytest.mark.parametrize("head", [True, False])
def test_removed_item_is_gone(head: bool) -> None:
    queue = queue_of(("a", 1), ("b", 1))
    if head:
        queue.appendleft(("a", 0))
        queue.remove(("a", 0))
    else:
        queue.remove(("b", 1))
        assert queue.count_of("b") == 0
        with pytest.raises(ValueError, match="b"):
            queue.remove(("b", 1))
        queue.append(("b", 1))
    assert drained(queue) == [("a", 1), ("b", 1)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)) | st.none(), max_size=60))
def test_each_sender_keeps_its_order_and_nobody_waits_for_more_than_a_round(script: list[Item | None]) -> None:
    queue = queue_of()
    entered: dict[str, list[Item]] = {sender: [] for sender in "abc"}
    taken: dict[str, list[Item]] = {sender: [] for sender in "abc"}
    passed: dict[str, int] = dict.fromkeys("abc", 0)
    for step in script:
        if step is not None:
            queue.append(step)
            entered[step[0]].append(step)
        elif queue:
            item = queue.popleft()
            taken[item[0]].append(item)
            for sender in "abc":
                passed[sender] = passed[sender] + 1 if queue.count_of(sender) and sender != item[0] else 0
                assert passed[sender] <= 2
    for item in drained(queue):
        taken[item[0]].append(item)
    assert taken == entered
    assert len(queue) == 0
