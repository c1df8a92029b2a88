"""Groups of writes: large messages take turns, nothing overtakes a message that it names, and no message is left."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.store_groups import ENTRY_BYTES, Groups
from bester.broker.store_requests import (
    Bury,
    DeadLetter,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindDeadLetters,
    FindEntry,
    FindExpired,
    FindOutcomes,
    MarkSent,
    Read,
    RecordRemote,
    Rewrite,
    Write,
)

GROUP = 3 * (ENTRY_BYTES + 1000)
WAITING = 2 * GROUP


def keep(number: int, body: bytes | None = None, *, queue: str = "user/bob", type_: str = "chat") -> Enqueue:
    text = b"%d" % number * 1000 if body is None else body
    return Enqueue(Entry(number, queue, f"m{number}.0.0", "bob", type_, text[:1000], "alice", 9e9, {}))


def numbers(group: Sequence[Write]) -> list[int]:
    return [write.entry.number for write in group if isinstance(write, Enqueue)]


def turns(groups: Groups) -> list[list[int]]:
    """Return the groups of the next turns, until nothing waits."""
    found = []
    while groups:
        groups.begin_turn()
        found.append(numbers(groups.take([])))
    return found


def test_group_within_the_bound_is_passed_on_whole() -> None:
    groups = Groups(GROUP, WAITING)
    writes: list[Write] = [keep(1), MarkSent("user/bob", 1), keep(2), keep(3)]
    assert groups.take(writes) == writes
    assert not groups


def test_messages_above_the_bound_wait_in_their_order() -> None:
    groups = Groups(GROUP, WAITING)
    assert numbers(groups.take([keep(number) for number in range(8)])) == [0, 1, 2]
    assert not groups.is_due, "this turn has no room left"
    assert numbers(groups.take([keep(8)])) == []
    assert turns(groups) == [[3, 4, 5], [6, 7, 8]]


def test_message_larger_than_the_bound_has_a_turn_of_its_own() -> None:
    groups = Groups(GROUP, 100_000)
    large = [Enqueue(keep(n).entry._replace(body=b"%d" % n * 10_000)) for n in range(3)]
    assert numbers(groups.take(large)) == [0]
    assert turns(groups) == [[1], [2]]


def test_message_of_the_same_command_adds_no_body() -> None:
    groups = Groups(GROUP, WAITING)
    body, other = b"x" * 1000, b"y" * 1000
    writes = [keep(n, body) for n in range(6)] + [keep(n, other) for n in range(6, 8)]
    assert numbers(groups.take(writes)) == [0, 1, 2, 3]
    assert turns(groups) == [[4, 5, 6, 7]]


def test_short_messages_above_a_number_wait() -> None:
    groups = Groups(group_messages=3)
    assert numbers(groups.take([keep(number, b"x") for number in range(2)])) == [0, 1]
    assert numbers(groups.take([keep(2, b"x"), End(99, "delivered"), keep(3, b"x")])) == [2]
    assert not groups.is_due, "this turn has no room left"
    assert turns(groups) == [[3]]
    groups.begin_turn()
    assert numbers(groups.take([keep(number, b"x") for number in range(4, 12)])) == [4, 5, 6]
    assert turns(groups) == [[7, 8, 9], [10, 11]]


def test_no_more_waits_than_the_bound() -> None:
    groups = Groups(GROUP, WAITING)
    taken = numbers(groups.take([keep(number) for number in range(50)]))
    assert len(taken) == 50 - 6
    assert [*taken, *chain(*turns(groups))] == list(range(50))


def test_other_writes_do_not_wait() -> None:
    groups = Groups(GROUP, WAITING)
    letter = Bury(DeadLetter("m", "t", b"x" * 5000, "refused", 1.0, {}))
    others: list[Write] = [End(99, "delivered"), MarkSent("user/bob", 9), letter, Rewrite(98, {})]
    group = groups.take([*(keep(number) for number in range(5)), *others])
    assert list(group[3:]) == others
    assert turns(groups) == [[3, 4]]


@pytest.mark.parametrize(
    "write", [End(4, "delivered"), Rewrite(4, {}), RecordRemote(keep(4).entry, "queued"),
              RecordRemote(keep(4).entry._replace(number=77), "queued")],
)  # fmt: skip
def test_write_that_names_a_waiting_message_comes_behind_it(write: Write) -> None:
    groups = Groups(GROUP, WAITING)
    assert numbers(groups.take([keep(number) for number in range(6)])) == [0, 1, 2]
    group = groups.take([write])
    assert (numbers(group), group[-1]) == ([3, 4, 5], write)
    assert not groups


def test_late_outcome_comes_with_the_end_of_its_message() -> None:
    groups = Groups(GROUP, WAITING)
    outcome = keep(9, type_="bester.outcome", queue="user/alice")
    group = groups.take([*(keep(number) for number in range(5)), End(99, "delivered"), outcome])
    assert list(group[3:]) == [End(99, "delivered"), outcome]


@pytest.mark.parametrize(
    ("read", "concerned"),
    [
        (Fetch("user/bob", 0, 9, 9), True),
        (Fetch("user/carol", 0, 9, 9), False),
        (FindOutcomes("m4", "alice"), True),
        (FindOutcomes("m4", "carol"), False),
        (FindExpired(1.0, 9, 9), True),
        (FindEntry("m4.0.0", "s2"), True),
        (FindDeadLetters(None, None, 9), False),
    ],
)
def test_read_concerns_the_messages_that_it_would_find(read: Read, concerned: bool) -> None:
    groups = Groups(GROUP, WAITING)
    assert not groups.concerns(read)
    groups.take([keep(number) for number in range(5)])
    assert groups.concerns(read) is concerned
    assert numbers(groups.take_all()) == [3, 4]
    assert not groups.concerns(read)


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2500)), max_size=12), max_size=8))
def test_every_message_is_taken_once_and_before_what_names_it(batches: list[list[tuple[int, int]]]) -> None:
    groups = Groups(GROUP, WAITING)
    taken: list[Write] = []
    count = 0
    for batch in batches:
        writes: list[Write] = []
        for kind, size in batch:
            if kind and count:
                writes.append(End(size % count, "delivered"))
            else:
                writes.append(Enqueue(keep(count).entry._replace(body=b"x" * size)))
                count += 1
        groups.begin_turn()
        taken += groups.take(writes)
        waiting = [write.entry for write, _ in groups._waiting]
        assert sum(len(each.body) for each in waiting) <= WAITING
    while groups:
        groups.begin_turn()
        taken += groups.take([])
    assert numbers(taken) == list(range(count))
    kept: set[int] = set()
    for write in taken:
        if isinstance(write, End):
            assert write.number in kept
        elif isinstance(write, Enqueue):
            kept.add(write.entry.number)
    assert groups._waiting_bytes == 0
    assert not groups._named
