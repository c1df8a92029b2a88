"""A queue in which senders take turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.core.fair_queue import NEWCOMERS, FairQueue

Item = tuple[str, int]


def queue_of(*items: Item, quantum: int = 1) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(lambda item: item[0], quantum)
    for item in items:
        queue.append(item)
    return queue


def drained(queue: FairQueue[Item]) -> list[Item]:
    return [queue.popleft() for _ in range(len(queue))]


def test_senders_take_turns() -> None:
    queue = queue_of(("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1), ("c", 2))
    assert drained(queue) == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("c", 2), ("a", 3)]


def test_some_items_of_a_sender_are_taken_in_a_row() -> None:
    queue = queue_of(*[("a", n) for n in range(5)], *[("b", n) for n in range(3)], quantum=2)
    assert [sender for sender, _ in drained(queue)] == ["a", "a", "b", "b", "a", "a", "b", "a"]


@pytest.mark.parametrize("by", ["popleft", "take"])
def test_sender_that_says_less_than_its_share_waits_for_no_round_of_the_others(by: str) -> None:
    queue = queue_of(*[(sender, n) for n in range(100) for sender in "abcdefgh"], quantum=4)
    queue.take(8 * 4 + 1)
    for _ in range(10):
        queue.append(("z", 1))
        taken = queue.take(5) if by == "take" else [queue.popleft() for _ in range(5)]
        assert ("z", 1) in taken, "after the turn that has begun"
        queue.take(18)  # twice the share of one


@pytest.mark.parametrize("burst", [5, 8, 20])
def test_sender_that_says_little_goes_before_all_who_come_back(burst: int) -> None:
    """Senders whose items are all taken between two bursts of theirs have their share all the same."""
    queue, crowd = queue_of(quantum=8), [str(number) for number in range(50)]
    for number in range(40):
        for sender in crowd if number % 2 else reversed(crowd):
            for _ in range(burst):
                queue.append((sender, number))
        queue.append(("z", number))
        queue.append((f"new {number}", number))
        taken = drained(queue)
        assert number < 5 or taken.index(("z", number)) <= 8 + 1, "first, or behind the newcomer"


def test_endless_row_of_newcomers_is_not_always_first() -> None:
    queue = queue_of(*[("a", n) for n in range(100)], quantum=4)
    queue.take(4)
    waited = 0
    while queue.count_of("a") > 88:
        queue.append((f"new {waited}", 0))
        queue.popleft()
        waited += 1
    assert waited < 2 * 8 * NEWCOMERS


def test_sender_that_always_comes_back_has_no_more_than_its_share() -> None:
    queue = queue_of(*[(sender, n) for n in range(1000) for sender in "abc"], quantum=4)
    taken = 0
    for number in range(1000):
        if not queue.count_of("z"):
            queue.append(("z", number))
        taken += queue.popleft()[0] == "z"
    assert 0 < taken <= 1000 / 4 + 4


def test_only_senders_above_their_share_are_remembered() -> None:
    queue = queue_of(*[("a", n) for n in range(10)])
    for number in range(10_000):
        queue.append((str(number), 1))
        while queue.count_of(str(number)):
            queue.append(("a", 0))
            queue.popleft()
    assert len(queue._resting) < 1_000


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


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)) | st.none() | st.integers(1, 5), max_size=60),
    st.integers(1, 4),
)
def test_each_sender_keeps_its_order_and_nobody_waits_for_more_than_a_round(
    script: list[Item | int | None], quantum: int
) -> None:
    queue = queue_of(quantum=quantum)
    entered: dict[str, list[Item]] = {sender: [] for sender in "abc"}
    taken: dict[str, list[Item]] = {sender: [] for sender in "abc"}
    passed: dict[str, int] = dict.fromkeys("abc", 0)
    for step in script:
        if isinstance(step, tuple):
            queue.append(step)
            entered[step[0]].append(step)
            continue
        waiting = [sender for sender in "abc" if queue.count_of(sender)]
        for item in [queue.popleft()] if step is None and queue else queue.take(step or 0):
            taken[item[0]].append(item)
            for sender in waiting:
                passed[sender] = passed[sender] + 1 if sender != item[0] else 0
                assert passed[sender] <= 2 * 2 * quantum
        for sender in "abc":
            if not queue.count_of(sender):
                passed[sender] = 0
    for item in drained(queue):
        taken[item[0]].append(item)
    assert taken == entered
    assert len(queue) == 0
