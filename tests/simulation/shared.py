"""The scenario of a server whose handlers serve both of its brokers, and many messages that kill them.

Nothing but handlers and their links fails, so that a message is given up for its own deaths alone: a broker does not
know what a handler has of the other one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bester.broker.core.settings import Budget
from bester.broker.wire.messages import Meta
from bester.client.frames import Terms
from tests.simulation import programs
from tests.simulation.cluster import HEALED_S, TRAFFIC_S, Cluster
from tests.simulation.scenario import TYPES
from tests.world.handlers import SharedProcess, SimHandler
from tests.world.network import Weather
from tests.world.servers import SimServer

PROCESSES = 3
"""Handlers that serve both brokers: one of them is isolated at most."""


class Shared(Cluster):
    """A scenario, see Cluster."""

    option = " --brokers 2 --shared"
    budgets = {type_: Budget(None, 1) for type_ in TYPES}
    """A single death that is counted over a message gives it up."""

    def _staff(self, server: SimServer) -> None:
        if server not in self.pair:
            super()._staff(server)
        elif server is self.pair[0]:
            for number in range(PROCESSES):
                self._hire(f"s1h{number}")

    def _hire(self, name: str) -> None:
        """Start a process with a link to each broker of the pair."""
        chance = self.random
        credit, slowest_s = chance.choice((2, 8)), chance.choice((0.5, 1.0))
        options: Meta = {"types": TYPES, "credit": credit, "order": {"o": "user"}, "shared": name}
        process = SharedProcess(
            SimHandler(
                self.world, broker, f"{name}@{broker.name}", options, self._behave,
                weather=Weather(0.0, chance.choice((0.001, 0.05))), slowest_s=slowest_s,
            )
            for broker in self.pair
        )  # fmt: skip
        for part in process.parts:
            part.on_request = partial(self._requested, part)
            self.handlers.append(part)

    def _plan(self) -> None:
        chance = self.random
        for _ in range(chance.randrange(40, 80)):
            self.world.after(chance.uniform(0.5, TRAFFIC_S), self._submit)
        for _ in range(chance.choice((1, 2, 2))):
            self.world.after(chance.uniform(0.5, TRAFFIC_S), self._outbreak)
        faults: list[Callable[[], None]] = [self._stall_handler]
        for _ in range(chance.choice((0, 0, 1, 2))):
            self._faults += 1
            self.world.after(chance.uniform(1.0, TRAFFIC_S), chance.choice(faults))
        self.world.after(HEALED_S, self._heal)

    def _outbreak(self) -> None:
        """Messages that kill come at both brokers, and others beside them."""
        for _ in range(10):
            self.world.after(self.random.uniform(0.0, 10.0), self._poison)
            self.world.after(self.random.uniform(0.0, 10.0), self._submit)

    def _poison(self) -> None:
        """A device of the pair sends a message that kills."""
        chance = self.random
        device = chance.choice([each for each in self.clients if each.server.name == "s1"])
        self._numbers += 1
        device.say(
            self._numbers,
            chance.choice(TYPES),
            programs.body_of(self._numbers, "", [["die"]]),
            Terms(None, None, False),
        )

    def _stall_handler(self) -> None:
        """A link of a handler is slow for less than a silence that counts."""
        part = self.random.choice([each for each in self.handlers if each.process is not None])
        for weather in part.link.weather:
            weather.stalled_until = self.world.now + self._some_time(2.0)
