"""The order of password checks, and the logins that a full queue turns away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.check_queue import MANY, MAX_WAITING, CheckQueue

RANKS = 4


def popped(queue: CheckQueue[str]) -> list[str]:
    found = []
    while (waiting := queue.pop()) is not None:
        found.append(waiting.item)
    return found


def test_lowest_rank_goes_first_and_then_the_oldest() -> None:
    queue: CheckQueue[str] = CheckQueue()
    for rank, what in ((2, "c"), (0, "a"), (2, "d"), (3, "e"), (1, "b")):
        assert queue.add(rank, "user", "net", what) is None
    assert popped(queue) == ["a", "b", "c", "d", "e"]
    assert queue.pop() is None


def test_full_queue_turns_away_the_worst() -> None:
    queue: CheckQueue[str] = CheckQueue(most=2)
    queue.add(2, "u1", "n1", "first")
    queue.add(3, "u2", "n2", "failed before")
    assert queue.add(2, "u3", "n3", "second") == "failed before"
    assert queue.add(3, "u4", "n4", "worse") == "worse"
    assert queue.add(2, "u5", "n5", "third") == "third"  # the newest of equals
    assert queue.add(0, "u6", "n6", "known") == "second"
    assert popped(queue) == ["known", "first"]


def test_flood_turns_away_its_own() -> None:
    queue: CheckQueue[str] = CheckQueue(most=4)
    for number in range(4):
        queue.add(2, "alice", f"n{number}", f"guess {number}")
    assert queue.add(2, "bob", "n9", "bob") == "guess 3"
    queue = CheckQueue(most=4)
    for number in range(4):
        queue.add(2, f"u{number}", "here", f"spray {number}")
    assert queue.add(2, "bob", "there", "bob") == "spray 3"
    assert queue.add(2, "carol", "here", "carol") == "carol"


def test_discarded_login_frees_its_room() -> None:
    queue: CheckQueue[object] = CheckQueue(most=2)
    gone, there = object(), object()
    queue.add(1, "a", "n", gone)
    queue.add(1, "a", "n", there)
    queue.discard(gone)
    queue.discard(gone)
    assert len(queue) == 1
    assert queue.add(1, "a", "n", object()) is None


@given(st.lists(st.tuples(st.integers(0, RANKS), st.sampled_from("ab"), st.sampled_from("xyz")), max_size=60))
def test_queue_never_exceeds_its_limit_and_returns_each_login_once(steps: list[tuple[int, str, str]]) -> None:
    queue: CheckQueue[int] = CheckQueue(most=5)
    inside: dict[int, int] = {}
    for number, (rank, user, net) in enumerate(steps):
        if rank == RANKS:
            waiting = queue.pop()
            assert (waiting is None) == (not inside)
            if waiting is not None:
                assert inside.pop(waiting.item) == waiting.rank == min([waiting.rank, *inside.values()])
            continue
        inside[number] = rank
        worst = max(inside.values())
        turned_away = queue.add(rank, user, net, number)
        if turned_away is not None:
            assert inside.pop(turned_away) == worst
        assert len(queue) == len(inside) <= 5


def test_users_of_one_rank_take_turns() -> None:
    queue: CheckQueue[str] = CheckQueue()
    for number in range(4):
        queue.add(0, "alice", "net", f"a{number}")
    queue.add(0, "bob", "net", "b")
    order = [waiting.item for _ in range(5) if (waiting := queue.pop()) is not None]
    assert order == ["a0", "b", "a1", "a2", "a3"]


@pytest.mark.parametrize("storm", [1_500, 5_000])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_storm_of_one_user_neither_delays_nor_turns_away_others(rank: int, storm: int) -> None:
    """Of one user or address, even with the right password: others, of whom less is known, have their turn."""
    queue: CheckQueue[str] = CheckQueue()
    away: list[str] = []
    checked: list[str] = []
    honest = ["carol", "dan", "eve"]
    for number in range(storm):
        turned_away = queue.add(rank, "greedy", "net", f"greedy {number}")
        if number % 500 == 250:
            away += [each for each in [queue.add(2, honest[number // 500 % 3], "net", f"honest {number}")] if each]
        away += [turned_away] if turned_away is not None else []
        if number % 20 == 0 and (waiting := queue.pop()) is not None:
            checked.append(waiting.item)
    assert not [each for each in away if each.startswith("honest")]
    assert len([each for each in checked if each.startswith("honest")]) >= storm // 500 - (rank < 2)
    assert len(queue) <= MAX_WAITING
    assert MANY < MAX_WAITING
