"""The network of a world: one direction of a link at a time, each with its weather."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bester.broker.wire.messages import Heartbeat, Malformed, Message
from tests.world.clock import World

Messages = Sequence[Message | Malformed]


@dataclass
class Weather:
    """Faults and delays of messages on the way: from `least_s` to `most_s` seconds each; `loss`, `repeats` and
    `shuffle` are shares of the messages, `cut` drops all. The defaults deliver everything at once and in order.

    A link between servers may lose, repeat and shuffle. The link of a bridge or handler does so only when it breaks,
    but may stall: nothing arrives before `stalled_until`.
    """

    least_s: float = 0.0
    most_s: float = 0.0
    loss: float = 0.0
    repeats: float = 0.0
    shuffle: float = 0.0
    cut: bool = False
    stalled_until: float = 0.0


class Pipe:
    """A direction of a link: in order, unless its weather shuffles; nothing arrives once the pipe is closed."""

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
