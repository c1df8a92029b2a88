"""The scenario of a server with two brokers on one store: leases, fencing and adoption under every fault.

`s1` has the brokers b1 and b2 and two bridges, `s2` is one broker with a bridge; both servers send to each other. The
rules are those of the other scenarios: what was called good arrives, and what comes again is marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from bester.broker.core.effects import Link, Notice, ShellCall
from bester.broker.core.settings import Budget, Route, Settings
from bester.broker.store.memory_shared import SharedMemory, SharedMemoryStore
from bester.broker.store_requests import SaveLane, Write
from bester.broker.wire.messages import Meta, Relay, Reply, Request
from bester.client.frames import Terms
from tests.simulation import programs
from tests.simulation.cluster_bridge import ClusterBridge, Device
from tests.simulation.rules import Rules
from tests.simulation.scenario import LIMITS, TYPES, USERS, limits_of
from tests.world.clock import BrokenRuleError, World
from tests.world.disks import TRAPS
from tests.world.handlers import Fate, SimHandler
from tests.world.links import SimLink
from tests.world.network import Messages, Weather
from tests.world.servers import SimServer

TRAFFIC_S = 25.0
HEALED_S = 45.0
PATIENCE_S = 240.0
LEASE_S = 10.0
CLUSTER_LIMITS = replace(LIMITS, adopted_at_once=3)
"""An adoption in many parts: each seed has a few messages."""
DEVICES = 9
HOUR_S, DAY_S = 3600.0, 86400.0


class _Quiet:
    """The part of a scenario that has no parties here."""

    repeated: frozenset[str] = frozenset()
    coming = 0


class Ledger:
    """Messages of the other server that brokers have answered, as written in their inbound lanes.

    What a broker has written or adopted is not given to a handler there again: a repeat is answered from the lane. And
    no process writes into a namespace that another broker has adopted from it: `fault` names one that did.
    """

    def __init__(self) -> None:
        self.fault = ""
        self._written: dict[str, dict[tuple[str, str], set[int]]] = {}  # by broker, and lane
        self._answered: dict[str, set[str]] = {}  # ids of such messages that have come again, by broker

    def on_written(self, broker: str, write: SaveLane) -> None:
        """Take in a committed lane."""
        self._written.setdefault(broker, {})[write.peer, write.type] = set(write.outcomes)

    def on_adopted(self, broker: str, other: str) -> None:
        """Take in that a broker has what another one had."""
        mine = self._written.setdefault(broker, {})
        for key, numbers in self._written.pop(other, {}).items():
            mine[key] = mine.get(key, set()) | numbers

    def on_relay(self, broker: str, relay: Relay) -> None:
        """Take in a message that comes; a number that is written is that of a repeat. A message of a life of the other
        server that is gone comes under another number, and is none."""
        answered = self._answered.setdefault(broker, set())
        is_written = relay.meta["lane"][1] in self._written.get(broker, {}).get(("s2", relay.type), ())
        (answered.add if is_written else answered.discard)(relay.meta["id"])

    def on_request(self, broker: str, id_: str) -> None:
        """Check that a request is none that was answered."""
        if id_ in self._answered.get(broker, ()):
            raise BrokenRuleError(f"a handler of {broker} was given {id_}, which was answered before")


class Broker(SimServer):
    """A broker of the pair, which tells the ledger."""

    def __init__(self, ledger: Ledger, *args: Any, **options: Any) -> None:
        self.ledger = ledger
        super().__init__(*args, **options)
        self.disk.is_remote = True  # a process may be stopped between a commit and what follows from it
        self.disk.on_committed = self._committed

    def _committed(self, writes: Sequence[Write]) -> None:
        store = self.store
        if isinstance(store, SharedMemoryStore) and store.held != store.lease_epoch:
            self.ledger.fault = f"{self.name} wrote into its namespace at {self.now}, which another broker had adopted"
        for write in writes:
            if type(write) is SaveLane:
                self.ledger.on_written(self.name, write)

    def loses_promises(self) -> bool:
        """Return whether reports rest on writes that were held back: those for which the disk had no room, and those
        that have waited for the store for longer than a report waits for them."""
        disk = self.disk
        if disk.held_since is None:
            return False
        return disk.held_for_room or self.now - disk.held_since >= self.settings.limits.record_s

    def receive(self, link: Link, messages: Messages) -> None:
        for message in messages:
            if type(message) is Relay and not self.frozen:
                self.ledger.on_relay(self.name, message)
        super().receive(link, messages)

    def do_call(self, call: ShellCall) -> None:
        if isinstance(call, Notice) and call.event == "adopted":
            self.ledger.on_adopted(self.name, f"s1.{call.fields['broker']}")
        super().do_call(call)


class Cluster:
    """A scenario, played by `run`; BrokenRuleError names the broken rule, `world.told()` is the whole story."""

    option = " --brokers 2"
    bridges_mark = True
    budgets: Mapping[str, Budget] = {}

    def __init__(self, seed: int, *, telling: bool = True) -> None:
        self.world = World(seed, telling=telling)
        self.random = self.world.random
        self.database = SharedMemory(lambda: self.world.now, lease_s=LEASE_S)
        self.natives: dict[str, Any] = {}
        self.ordered: set[str] = set()
        self.peers: list[Any] = []
        self.emissions: list[Any] = []
        self.weathers: list[Weather] = []
        self.handlers: list[SimHandler] = []
        self.bridges: list[ClusterBridge] = []
        self.clients: list[Device] = []
        self.neighbour = _Quiet()
        self.faults = self
        self.ledger = Ledger()
        self._numbers = 0
        self._faults = 0
        self._losses = 0
        self._is_calm = False
        self.rules = Rules(self)  # type: ignore[arg-type]  # it has the parties that the rules look at
        self._build()
        self._plan()

    # --- parties ---

    def _build(self) -> None:
        chance = self.random
        accounts, limits = frozenset(USERS), limits_of(CLUSTER_LIMITS, self.world.seed)
        settings = [
            Settings(
                name, routes={other: Route(other, fabric=f"ipc:///{other}")}, limits=limits,
                budgets=self.budgets,
            )
            for name, other in (("s1", "s2"), ("s2", "s1"))
        ]  # fmt: skip
        self.pair = [
            Broker(
                self.ledger, self.world, settings[0], accounts, turn_s=chance.choice((0.0, 0.002, 0.02)),
                called=f"s1.{name}", store=self.database.namespace(name),
            )
            for name in ("b1", "b2")
        ]  # fmt: skip
        self.other = SimServer(self.world, settings[1], accounts, turn_s=chance.choice((0.0, 0.002)))
        self.servers = [*self.pair, self.other]
        for broker in self.pair:
            broker.link_to("s2", lambda: self.other, self._weather(), self._weather())
        self.other.link_to("s1", self._living, self._weather(), self._weather())
        for server in self.servers:
            self._staff(server)
        for name, brokers, bridges in (("s1", self.pair, 2), ("s2", [self.other], 1)):
            found = [
                ClusterBridge(
                    self.world, brokers, f"{name}g{number}", weather=Weather(0.0, chance.choice((0.001, 0.05))),
                    slow_s=chance.choice((0.0, 0.05, 1.0)),
                )
                for number in range(bridges)
            ]  # fmt: skip
            self.bridges += found
            for place in range(DEVICES if name == "s1" else len(USERS)):
                user = USERS[place] if place < len(USERS) else chance.choice(USERS)
                device = Device(self.world, found, name, f"{name}c{place}", user)
                self.clients.append(device)
                if chance.random() < 0.6:
                    self.world.after(chance.uniform(0.0, 1.0), device.come)

    def _living(self) -> SimServer:
        """Return the broker that the other server reaches now: any of the living."""
        return self.random.choice([broker for broker in self.pair if broker.up] or self.pair)

    def _weather(self) -> Weather:
        chance = self.random
        weather = Weather(0.001, chance.choice((0.002, 0.05, 0.5)), chance.choice((0.0, 0.0, 0.05)))
        self.weathers.append(weather)
        return weather

    def _staff(self, server: SimServer) -> None:
        chance = self.random
        for number, types in enumerate(chance.choice(((["a", "o"], ["b", "o"]), (TYPES, TYPES)))):
            options: Meta = {"types": types, "credit": chance.choice((1, 4)), "order": {"o": "user"}}
            handler = SimHandler(
                self.world, server, f"{server.name}h{number}", options, self._behave,
                weather=Weather(0.0, chance.choice((0.001, 0.05))), slowest_s=chance.choice((0.0, 0.1, 0.5)),
            )  # fmt: skip
            handler.on_request = partial(self._requested, handler)
            self.handlers.append(handler)

    def _requested(self, handler: SimHandler, request: Request) -> None:
        self.rules.requested(handler, request)
        self.ledger.on_request(handler.server.name, request.meta["id"])

    def _behave(self, request: Request) -> Reply | Fate:
        if programs.kills(request.body):
            return Fate.DIES
        commands = programs.commands(request.body, request.type, "s2")
        return Reply(request.token, 1, [], "failed") if commands is None else Reply(request.token, 0, commands)

    # --- messages ---

    def _plan(self) -> None:
        chance = self.random
        for _ in range(chance.randrange(20, 50)):
            self.world.after(chance.uniform(0.5, TRAFFIC_S), self._submit)
        for _ in range(chance.randrange(8)):
            self.world.after(chance.uniform(0.5, TRAFFIC_S), self._come_or_go)
        self._faults = chance.choice((0, 1, 2, 4, 8))
        self._is_calm = self._faults == 0 and not any(
            each.loss for each in self.weathers
        )  # which end when it is healed
        faults = [
            self._pause, self._pause, self._pause, self._pause, self._crash, self._crash, self._crash,
            self._crash_unanswered, self._crash_unanswered, self._crash_bridge,
            self._break_link, self._kill_handler, self._jump, self._set_clock, self._lock, self._slow, self._fill,
            self._cut_servers, self._lose_database, self._lose_database,
        ]  # fmt: skip
        for _ in range(self._faults):
            self.world.after(chance.uniform(1.0, TRAFFIC_S), chance.choice(faults))
        self.world.after(HEALED_S, self._heal)

    @property
    def calm(self) -> bool:
        """Return whether the scenario has no faults, neither planned nor on any link."""
        return self._is_calm

    def _submit(self) -> None:
        chance = self.random
        device = chance.choice(self.clients)
        type_ = chance.choice(TYPES)
        for _ in range(chance.choice((1, 1, 1, 4))):
            self._numbers += 1
            program = programs.invent(Random(chance.random()), USERS, ["s1", "s2"], [*TYPES * 4, "x"])
            if programs.endless(programs.body_of(0, "", program)):
                continue
            ttl_s = chance.choice((3.0, 30.0)) if chance.random() < 0.05 else None
            body = programs.body_of(self._numbers, "", program)
            device.say(self._numbers, type_, body, Terms(None, ttl_s, chance.random() < 0.3))

    def _come_or_go(self) -> None:
        device = self.random.choice(self.clients)
        if device.wanted:
            device.go()
        else:
            device.come()

    # --- faults ---

    def _some_time(self, longest_s: float) -> float:
        return min(self.random.uniform(0.05, longest_s), max(0.0, HEALED_S - self.world.now - 0.5))

    def _some_broker(self) -> SimServer:
        return self.random.choice([*self.pair, *self.pair, self.other])

    def _pause(self) -> None:
        """A broker stands still, mostly for longer than its lease, and mostly with a commit or a read in hand."""
        broker, seconds = self._some_broker(), self._some_time(self.random.choice((5.0, 25.0, 25.0)))
        if broker is not self.other and self.random.random() < 0.7:
            broker.lay_pause(seconds)
        else:
            broker.freeze(seconds)

    def _crash_unanswered(self) -> None:
        """The broker that the other server sends to ends for longer than its lease, mostly, after some messages of
        that server; no answer has come back from a while before until the messages have been adopted."""
        chance, link = self.random, self.other.out["s1"]
        broker = next((each for each in self.pair if each is link.server), self.pair[0])
        down_s = self._some_time(chance.choice((25.0, 40.0)))
        weather = link.weather[1]
        weather.cut = True
        for _ in range(chance.choice((2, 4))):
            self.world.after(chance.uniform(0.0, 1.0), self._relay)
        self.world.after(chance.uniform(0.1, 2.5), lambda: broker.crash(down_s))

        def mend() -> None:
            weather.cut = False

        self.world.after(min(self._some_time(0.1) + LEASE_S + 5.0, max(0.0, HEALED_S - self.world.now)), mend)

    def _relay(self) -> None:
        """A device of the other server writes to a user of the pair."""
        chance = self.random
        device = chance.choice([each for each in self.clients if each.server.name == "s2"])
        self._numbers += 1
        program = [["servers", ["s1"], chance.choice(TYPES), [["clients", [chance.choice(USERS)]]]]]
        body = programs.body_of(self._numbers, "", program)
        device.say(self._numbers, chance.choice(TYPES), body, Terms(None, None, False))

    def _crash(self) -> None:
        broker, down_s = self._some_broker(), self._some_time(self.random.choice((3.0, 25.0, 25.0)))
        if self.random.random() < 0.6:
            broker.lay_trap(self.random.choice(TRAPS), down_s)
        else:
            broker.crash(down_s, self.random.choice((None, 0.0, self.random.uniform(-HOUR_S, HOUR_S))))

    def _crash_bridge(self) -> None:
        self.random.choice(self.bridges).crash(self._some_time(3.0))

    def _break_link(self) -> None:
        links: list[SimLink] = [link for bridge in self.bridges for link in bridge.links]
        link = self.random.choice([*links, *(handler.link for handler in self.handlers)])
        if self.random.random() < 0.5:
            link.reidentify()
            return
        seconds = self._some_time(12.0)
        for weather in link.weather:
            weather.stalled_until = self.world.now + seconds

    def _kill_handler(self) -> None:
        self.random.choice(self.handlers).die()

    def _jump(self) -> None:
        self._some_broker().jump(self.random.uniform(1.0, 30.0))

    def _set_clock(self) -> None:
        by_s = self.random.choice((HOUR_S, 30 * DAY_S)) * self.random.uniform(-1.0, 1.0)
        self._some_broker().set_clock(by_s)

    def _lock(self) -> None:
        self._some_broker().disk.lock(self._some_time(self.random.choice((0.3, 9.0))))

    def _slow(self) -> None:
        self._some_broker().disk.slow_down(self._some_time(6.0))

    def _fill(self) -> None:
        self._some_broker().disk.fill(self._some_time(6.0), wholly=self.random.random() < 0.5)

    def _lose_database(self) -> None:
        """The database is away for a while, mostly for less than a lease; one of its brokers may die meanwhile."""
        seconds = self._some_time(self.random.choice((3.0, 8.0, 25.0)))
        self.world.tell("database", "IS AWAY", f"for {seconds:.1f} s")
        self._losses += 1
        self._reach("the database cannot be reached")
        if self.random.random() < 0.5:
            victim, after_s = self.random.choice(self.pair), seconds * self.random.random()
            down_s = min(seconds + 1.0, HEALED_S - self.world.now - 0.5) - after_s  # no broker starts without it
            self.world.after(after_s, lambda: victim.crash(max(0.0, down_s)))

        def back() -> None:
            self._losses -= 1
            if not self._losses:
                self.world.tell("database", "IS BACK")
                self._reach("")

        self.world.after(seconds, back)

    def _reach(self, away: str) -> None:
        for store in self.database.namespaces.values():
            store.away = away

    def _cut_servers(self) -> None:
        weather, seconds = self.random.choice(self.weathers), self._some_time(9.0)
        weather.cut = True

        def mend() -> None:
            weather.cut = False

        self.world.after(seconds, mend)

    def _heal(self) -> None:
        for weather in self.weathers:
            weather.cut, weather.loss = False, 0.0

    # --- the play ---

    def _is_quiet(self) -> bool:
        """Return whether the rules find everything settled, every bridge has a broker to ask, and no broker stands
        still, or is about to end because its lease was taken."""
        awake = all(broker.up and not broker.frozen and not broker.store.fenced for broker in self.pair)
        return awake and all(bridge.is_linked for bridge in self.bridges) and self.rules.quiet()

    def run(self) -> None:
        """Play the scenario to its end. Raises BrokenRuleError."""
        world = self.world
        world.run(HEALED_S)
        world.tell("world", "IS HEALED")
        for client in self.clients:
            client.come()
        is_quiet = False
        while not is_quiet and world.now < HEALED_S + PATIENCE_S:
            world.run(HEALED_S + PATIENCE_S, enough=self._is_quiet)
            world.run(world.now + 1.0)
            is_quiet = self._is_quiet()
        self.rules.ask_what_became()
        world.run(world.now + 5.0, enough=self.rules.all_answered)
        if self.ledger.fault:
            raise BrokenRuleError(self.ledger.fault)
        self.rules.check()
