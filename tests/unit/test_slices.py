"""Long batches of an encrypted door are handled over several turns, each of bounded time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import pytest

from bester.broker.core.effects import Link
from bester.broker.slices import SLICE, SLICE_S, Slices

ONE = Link("curve", b"0:one", "key")


class Door:
    """A door on virtual time, where each message costs `cost_s`; `turns` holds the seconds of each turn."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.now = 0.0
        self.taken: list[int] = []
        self.turns: list[float] = []
        self.paused = False
        self.resumed = 0
        self._soon: deque[Callable[[], None]] = deque()
        self.slices = Slices(
            self._take, clock=lambda: self.now, soon=self._soon.append, pause=self._pause, resume=self._resume
        )

    def _take(self, link: Link, messages: Sequence[int]) -> None:
        assert link == ONE
        self.taken += messages
        self.now += self.cost_s * len(messages)

    def _pause(self, link: Link) -> None:
        assert link == ONE
        self.paused = True

    def _resume(self, link: Link) -> None:
        assert self.paused and link == ONE
        self.paused = False
        self.resumed += 1

    def read(self, *messages: int) -> None:
        """Read a batch in a turn of its own."""
        assert not self.paused
        began = self.now
        self.slices.take_in(ONE, messages)
        self.turns.append(self.now - began)

    def turn(self) -> bool:
        """Run the next turn; return whether there was one."""
        if not self._soon:
            return False
        began = self.now
        self._soon.popleft()()
        self.turns.append(self.now - began)
        return True

    def run(self) -> None:
        """Run turns until nothing waits."""
        while self.turn():
            pass


@pytest.mark.parametrize("cost_s", [0.00001, 0.0001, 0.001, 0.03])
@pytest.mark.parametrize("count", [17, 500, 1024])
def test_turn_is_bounded_and_order_is_kept(cost_s: float, count: int) -> None:
    door = Door(cost_s)
    door.read(*range(count))
    door.run()
    assert door.taken == list(range(count))
    assert max(door.turns) <= SLICE_S + SLICE * cost_s + 1e-9
    assert not door.paused
    assert door.resumed == (len(door.turns) > 1)


def test_door_is_read_again_after_the_rest() -> None:
    door = Door(0.001)
    door.read(*range(100))
    assert (door.paused, len(door.taken)) == (True, SLICE)
    door.run()
    assert (door.paused, len(door.taken)) == (False, 100)
    door.read(100)
    assert door.taken[-1] == 100
    assert not door.turn()


@pytest.mark.parametrize("count", [1, SLICE])
def test_short_batch_is_handled_whole_and_at_once(count: int) -> None:
    door = Door(1.0)
    door.read(*range(count))
    assert door.taken == list(range(count))
    assert not door.paused
    assert not door.turn()


def test_cheap_batch_is_handled_in_one_turn() -> None:
    door = Door(0.0)
    door.read(*range(1024))
    assert door.taken == list(range(1024))
    assert not door.paused
    assert not door.turn()


def test_rest_is_dropped_with_its_door() -> None:
    door = Door(0.001)
    door.read(*range(100))
    door.slices.drop()
    door.run()
    assert len(door.taken) == SLICE
    assert door.resumed == 0
