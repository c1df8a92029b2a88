"""Long steps of the loop: one in a turn, by party in turn, and made up for by turns without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bester.bridge.long_steps import MADE_UP_S, TURN_S, LongSteps


class Loop:
    """A loop whose clock goes on by what its steps take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = 0
        self.done: list[str] = []
        self._soon: list[Callable[[], None]] = []
        self.steps = LongSteps(lambda: self.now, self._soon.append)

    def step(self, name: str, took_s: float) -> Callable[[], None]:
        def take() -> None:
            self.now += took_s
            self.done.append(name)

        return take

    def turn(self, others_s: float = 0.0) -> bool:
        """Carry out a turn of the loop, in which others have some time; return whether there is another one to come."""
        soon, self._soon[:] = [*self._soon], []
        self.turns += 1
        self.now += others_s
        for call in soon:
            call()
        return bool(self._soon)


def test_parties_take_turns_one_step_in_each() -> None:
    loop = Loop()
    for name in ("a1", "a2", "a3", "b1"):
        loop.steps.add(name[0], loop.step(name, 0.0))
    while loop.turn():
        assert len(loop.done) == loop.turns
    assert loop.done == ["a1", "b1", "a2", "a3"]


def test_step_is_made_up_for_by_turns_without_one() -> None:
    loop = Loop()
    for _ in range(2):
        loop.steps.add("a", loop.step("a", 20 * TURN_S))
    while loop.turn():
        pass
    assert loop.turns == 1 + 19 + 1
    loop = Loop()
    for _ in range(2):
        loop.steps.add("a", loop.step("a", 20 * TURN_S))
    while loop.turn(others_s=8 * TURN_S):  # a quarter of long turns counts
        pass
    assert 20 * TURN_S / (8 * TURN_S / 4) <= loop.turns <= 1 + 19 + 1 - 5


def test_no_more_than_a_bound_is_made_up_for() -> None:
    loop = Loop()
    for _ in range(2):
        loop.steps.add("a", loop.step("a", 60.0))
    while loop.turn():
        pass
    assert loop.turns == 1 + round(MADE_UP_S / TURN_S) + 1


def test_step_that_raises_holds_up_no_other() -> None:
    loop = Loop()

    def raises() -> None:
        raise ValueError("a")

    loop.steps.add("a", raises)
    loop.steps.add("a", loop.step("a", 0.0))
    with pytest.raises(ValueError, match="a"):
        loop.turn()
    loop.turn()
    assert loop.done == ["a"]


def test_step_may_ask_for_another_one() -> None:
    loop = Loop()
    loop.steps.add("a", lambda: loop.steps.add("a", loop.step("a", 0.0)))
    assert loop.turn()
    assert not loop.turn()
    assert loop.done == ["a"]
