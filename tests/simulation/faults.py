"""Faults of a scenario, planned ahead: processes, networks, disks, clocks. All faults end when the world is healed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.world.disks import TRAPS
from tests.world.links import SimLink
from tests.world.network import Weather
from tests.world.servers import SimServer

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


class Faults:
    """The faults of one scenario. `count` is their number; a calm scenario has none, and loses nothing."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.world = scenario.world
        self.random = scenario.random
        self.count = 0
        self.healed_s = 0.0

    def plan(self, until_s: float, healed_s: float) -> None:
        """Plan the faults; no fault lasts beyond `healed_s`."""
        self.healed_s = healed_s
        chance = self.random
        faults = [
            self._kill_handler,
            self._freeze_handler,
            self._freeze_server,
            self._jump,
            self._set_clock,
            self._set_clock,
            self._cut_servers,
            self._stall,
            self._reconnect,
            self._crash_broker,
            self._crash_broker,
            self._crash_bridge,
            self._crash_server,
            self._crash_server,
            self._fill_disk,
            self._lock_store,
            self._lock_store,
            self._slow_disk,
            self._kill_native,
            self._kill_native,
            self._cut_client,
            self._cut_client,
            self._kill_client,
        ]
        self.count = chance.choice((0, 1, 2, 4, 8, 12))
        for _ in range(self.count):
            self.world.after(chance.uniform(0.5, until_s), chance.choice(faults))
        self.world.after(healed_s, self._heal)
        self.scenario.neighbour.plan_faults(until_s)

    @property
    def calm(self) -> bool:
        """Return whether the scenario has no faults, neither planned nor on any link."""
        quiet = all(not (each.loss or each.repeats or each.shuffle) for each in self.scenario.weathers)
        return self.count == 0 and quiet

    def _some_time(self, longest_s: float) -> float:
        return min(self.random.uniform(0.05, longest_s), max(0.0, self.healed_s - self.world.now - 0.5))

    # --- processes ---

    def _kill_handler(self) -> None:
        self.random.choice(self.scenario.handlers).die()

    def _freeze_handler(self) -> None:
        self.random.choice(self.scenario.handlers).freeze(self._some_time(9.0))

    def _some_server(self) -> SimServer:
        return self.random.choice(self.scenario.servers)

    def _freeze_server(self) -> None:
        self._some_server().freeze(self._some_time(8.0))

    def _crash_broker(self) -> None:
        """The broker alone, unless its bridge is in the same process; in the middle of a turn, mostly."""
        server, down_s = self._some_server(), self._some_time(4.0)
        if self.random.random() < 0.7:
            server.lay_trap(self.random.choice(TRAPS), down_s)
        else:
            server.crash(down_s, self._wall_jump())

    def _crash_server(self) -> None:
        """The whole of a server: its broker and its bridges at once."""
        server, down_s = self._some_server(), self._some_time(4.0)

        def take_along(broker_down_s: float) -> None:
            for bridge in self.scenario.bridges:
                if bridge.server is server and not bridge.direct:
                    bridge.crash(max(0.05, broker_down_s * self.random.uniform(0.5, 1.5)))
            server.on_crash.remove(take_along)

        if not server.up:
            return
        server.on_crash.append(take_along)
        if self.random.random() < 0.7:
            server.lay_trap(self.random.choice(TRAPS), down_s)
        else:
            server.crash(down_s, self._wall_jump())

    def _wall_jump(self) -> float | None:
        """None: the process alone dies, and its machine goes on; else by how much the clock is off after the boot."""
        return self.random.choice((None, 0.0, self.random.uniform(-HOUR_S, HOUR_S)))

    def _crash_bridge(self) -> None:
        bridges = [bridge for bridge in self.scenario.bridges if not bridge.direct]
        if bridges:
            self.random.choice(bridges).crash(self._some_time(3.0))

    def _kill_native(self) -> None:
        """In the middle of its work, mostly."""
        natives = list(self.scenario.natives.values())
        working = [native for native in natives if native.busy]
        self.random.choice(working or natives).die(self._some_time(4.0))

    def _kill_client(self) -> None:
        client = self.random.choice(self.scenario.clients)
        client.die()
        self.world.after(self._some_time(5.0), client.come)

    def _jump(self) -> None:
        self._some_server().jump(self.random.uniform(1.0, 30.0))

    def _set_clock(self) -> None:
        """Put right by years, or wrong, or by hand."""
        server = self._some_server()
        by_s = self.random.choice((HOUR_S, 30 * DAY_S, 10 * 365 * DAY_S)) * self.random.uniform(-1.0, 1.0)
        server.set_clock(by_s)

    def _fill_disk(self) -> None:
        self._some_server().disk.fill(self._some_time(6.0), wholly=self.random.random() < 0.5)

    def _lock_store(self) -> None:
        """Another process holds the lock for writing: for a moment, some seconds, or longer than the broker waits."""
        seconds = self._some_time(self.random.choice((0.3, 4.0, 9.0)))
        self._some_server().disk.lock(seconds)

    def _slow_disk(self) -> None:
        self._some_server().disk.slow_down(self._some_time(6.0))

    # --- networks ---

    def _cut_client(self) -> None:
        chance = self.random
        client = chance.choice(self.scenario.clients)
        client.cut(chance.choice((0.0, 0.1, 3.0)), chance.choice((0.0, 0.1, 3.0)))

    def _some_link(self) -> SimLink:
        bridges = [bridge.link for bridge in self.scenario.bridges if bridge.link is not None]
        return self.random.choice(bridges + [handler.link for handler in self.scenario.handlers])

    def _stall(self) -> None:
        link, seconds = self._some_link(), self._some_time(9.0)
        self.world.tell(link.name, "STALLS", f"for {seconds:.1f} s")
        for weather in link.weather:
            weather.stalled_until = self.world.now + seconds

    def _reconnect(self) -> None:
        link = self._some_link()
        self.world.tell(link.name, "BREAKS")
        link.reidentify()

    def _cut_servers(self) -> None:
        """Between servers, one direction or more."""
        for weather in self.random.sample(self.scenario.weathers, self.random.choice((1, 2))):
            self._cut_for(weather, self._some_time(9.0))

    def _cut_for(self, weather: Weather, seconds: float) -> None:
        self.world.tell("network", "IS CUT", f"for {seconds:.1f} s")
        weather.cut = True

        def mend() -> None:
            self.world.tell("network", "is mended")
            weather.cut = False

        self.world.after(seconds, mend)

    def _heal(self) -> None:
        for weather in self.scenario.weathers:
            weather.cut, weather.loss, weather.repeats = False, 0.0, 0.0
