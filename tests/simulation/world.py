"""A small deterministic world: virtual time, one source of chance, a story of everything that happened; and pipes.

Nothing here waits, and nothing depends on anything but the seed: the same seed is the same story, event for event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from bester.broker.wire.messages import Heartbeat, Malformed, Message

TICK_S = 0.25
Messages = Sequence[Message | Malformed]


class BrokenRuleError(AssertionError):
    """Something happened that never may."""


class World:
    """Virtual time and chance. `story` lists what happened, as (at, who, what, about); nothing where not `telling`."""

    def __init__(self, seed: int, *, telling: bool = True) -> None:
        self.seed = seed
        self.telling = telling
        self.random = Random(seed)
        self.now = 0.0
        self.story: list[tuple[float, str, str, Any]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._keys = count(1)

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call it that much later; of two calls at one time the first that was asked for comes first."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), call))

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call it then, or now if that is past."""
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), call))

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let events happen until that time, or until it is enough (looked at once a tick)."""
        look = self.now
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            at, _, call = pop(events)
            self.now = at
            if at >= look:
                if enough():
                    heapq.heappush(events, (at, next(self._numbers), call))
                    return
                look = at + TICK_S
            call()
        if not enough():
            self.now = until

    def tell(self, who: str, what: str, about: Any = "") -> None:
        """Note a line of the story."""
        if self.telling:
            self.story.append((self.now, who, what, about))

    def new_key(self) -> bytes:
        """Return a key that no link had before."""
        return b"%d" % next(self._keys)

    def told(self) -> str:
        """Return the whole story as text."""
        return "\n".join(f"{at:9.3f}  {who:<10} {what} {about}" for at, who, what, about in self.story)


@dataclass
class Weather:
    """What happens to messages on their way: `loss`, `repeats` and `shuffle` are shares of them, `cut` drops all.

    Between servers alone: the link of a bridge or handler loses nothing unless it breaks, but it may stall: nothing
    arrives before `stalled_until`.
    """

    least_s: float = 0.0
    most_s: float = 0.0
    loss: float = 0.0
    repeats: float = 0.0
    shuffle: float = 0.0
    cut: bool = False
    stalled_until: float = 0.0


class Pipe:
    """One direction of a link: in order, unless its weather shuffles; nothing arrives once it is closed."""

    __slots__ = ("_arrive", "_last", "_weather", "_world", "closed")

    def __init__(self, world: World, weather: Weather, arrive: Callable[[Messages], None]) -> None:
        self._world = world
        self._weather = weather
        self._arrive = arrive
        self._last = 0.0
        self.closed = False

    def send(self, messages: Messages) -> None:
        """Send a batch; where the weather is bad each message has a fate of its own."""
        weather = self._weather
        if weather.cut or weather.loss or weather.shuffle or weather.repeats:
            for message in messages:
                self._send_one(message)
        else:
            self._go(messages, in_order=True)

    def _send_one(self, message: Message | Malformed) -> None:
        world, weather = self._world, self._weather
        chance = world.random.random
        if weather.cut or (weather.loss and chance() < weather.loss):
            if world.telling and type(message) is not Heartbeat:
                world.tell("network", "loses", message)
            return
        self._go((message,), in_order=not weather.shuffle or chance() >= weather.shuffle)
        if weather.repeats and chance() < weather.repeats:
            self._go((message,), in_order=False)

    def _go(self, messages: Messages, *, in_order: bool) -> None:
        world, weather = self._world, self._weather
        at = world.now + weather.least_s + (weather.most_s - weather.least_s) * world.random.random()
        if in_order:
            at = self._last = max(at, self._last, weather.stalled_until)
        world.at(at, lambda: None if self.closed else self._arrive(messages))
