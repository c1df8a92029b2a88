"""The clock of a world, its one source of chance, and the story of its events.

Nothing here waits, and everything depends on the seed alone: the same seed is the same story, event for event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

LOOK_S = 0.25
"""Virtual seconds between two calls of `enough` in `run`."""
PATIENCE_S = 120.0
"""Virtual seconds until something must have happened: more than any timeout of the core."""
MAX_EVENTS = 1_000_000
"""Events in one moment: more are a loop without end."""


class BrokenRuleError(AssertionError):
    """Something happened that never may."""


class World:
    """Virtual time and chance. `story` lists the events as (at, who, what, about); empty unless `telling`."""

    def __init__(self, seed: int = 0, *, telling: bool = False, start_s: float = 0.0) -> None:
        self.seed = seed
        self.telling = telling
        self.random = Random(seed)
        self.now = start_s
        self.story: list[tuple[float, str, str, Any]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._keys = count(1)

    # --- events to come ---

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call `call` after `delay_s` seconds; calls at the same time run in the order in which they were scheduled."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), call))

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call `call` at that time, or now if the time is past."""
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), call))

    # --- time passes ---

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let events happen until that time, or until `enough` returns true (asked once every LOOK_S)."""
        look = self.now
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            at, _, call = pop(events)
            if at > self.now:
                self.now = at
            if at >= look:
                if enough():
                    heapq.heappush(events, (at, next(self._numbers), call))
                    return
                look = at + LOOK_S
            call()
        if self.now < until and not enough():
            self.now = until

    def rest(self, seconds: float = 0.0) -> None:
        """Let everything happen that is to happen now and in the next seconds."""
        self.run(self.now + seconds)

    def until(self, done: Callable[[], object], what: str) -> None:
        """Let things happen, and time pass, until `done`. Raises AssertionError where that takes PATIENCE_S."""
        deadline, in_a_moment = self.now + PATIENCE_S, 0
        while not done():
            assert self._events and self._events[0][0] <= deadline, f"in vain: {what}"
            at, _, call = heapq.heappop(self._events)
            in_a_moment = 0 if at > self.now else in_a_moment + 1
            assert in_a_moment < MAX_EVENTS, f"there is no end to it: {what}"
            self.now = max(self.now, at)
            call()

    # --- names and stories ---

    def new_key(self) -> bytes:
        """Return a key that no link had before."""
        return b"%d" % next(self._keys)

    def tell(self, who: str, what: str, about: Any = "") -> None:
        """Note a line of the story."""
        if self.telling:
            self.story.append((self.now, who, what, about))

    def told(self) -> str:
        """Return the whole story as text."""
        return "\n".join(f"{at:9.3f}  {who:<10} {what} {about}" for at, who, what, about in self.story)
