"""The scenario of one seed: its parties and their messages. Everything comes from the seed.

Faults end at HEALED_S; then all known users log in, and the servers have PATIENCE_S to report all submitted messages,
to deliver all queued ones, and to hold nothing any more. `faults` plans the faults, `rules` checks the invariants.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from functools import partial
from random import Random

from bester.bridge.limits import Limits as BridgeLimits
from bester.broker.core.settings import Budget, Grant, Limits, Route, Settings
from bester.broker.wire.messages import Forward, Meta, Reply, Request
from bester.client.frames import Terms
from tests.simulation import programs
from tests.simulation.clients import SimClient, Submission
from tests.simulation.faults import Faults
from tests.simulation.neighbour import Neighbour
from tests.simulation.programs import MUTE, NATIVE, NATIVES
from tests.simulation.rules import Rules
from tests.world.bridges import Peer, SimBridge
from tests.world.clock import BrokenRuleError, World
from tests.world.handlers import Behaviour, Fate, SimHandler
from tests.world.natives import Done, NativeServer
from tests.world.network import Weather
from tests.world.servers import SimServer

TRAFFIC_S = 9.0
HEALED_S = 16.0
PATIENCE_S = 180.0
"""A handler that dies four times over each of several messages is found to be dead after 9 s each time."""
LIMITS = Limits(
    heartbeat_s=3.0, request_s=6.0, handler_again_s=6.0, relay_s=9.0, report_s=2.0, restart_s=5.0, sweep_at=4,
    max_lane_of_one=1,
)  # fmt: skip
FAN_OUTS = 8
"""In one of so many scenarios, by their seeds, each of several users is sent to in a turn of its own."""
BRIDGE_LIMITS = BridgeLimits(drain_s=15.0)
USERS = ["ann", "bob", "cat", "dan", "eve"]
"""Users known at each server; an unknown `nobody` is added."""
CLIENTS = 20
TYPES = ["a", "b", "o"]
"""`o` is asked for in order."""
ADDRESSES = {NATIVE: "n1.example:2223", MUTE: "n2.example:2223"}


def limits_of(limits: Limits, seed: int) -> Limits:
    """Return the limits of the servers in the scenario of a seed."""
    return replace(limits, targets_at_once=1) if seed % FAN_OUTS == FAN_OUTS - 1 else limits


class Scenario:
    """A scenario, played by `run`; BrokenRuleError names the broken rule, `world.told()` is the whole story.

    `option` chooses this kind of scenario on the command line.
    """

    option = ""
    bridges_mark = False  # the second of two brokers' copies of a message

    def __init__(self, seed: int, *, telling: bool = True) -> None:
        self.world = World(seed, telling=telling)
        self.random = self.world.random
        self.servers: list[SimServer] = []
        self.bridges: list[SimBridge] = []
        self.handlers: list[SimHandler] = []
        self.clients: list[SimClient] = []
        self.peers: list[Peer] = []
        self.emissions: list[tuple[SimHandler, SimServer, int, bytes]] = []
        self.weathers: list[Weather] = []
        self.natives = {name: NativeServer(self.world, name, at, mute=name == MUTE) for name, at in ADDRESSES.items()}
        self._numbers = 0
        self.neighbour = Neighbour(self.world, Random(f"native {seed}"))
        self._names = ["s1", "s2", "s3"]
        self.faults = Faults(self)
        self.rules = Rules(self)
        self._build()
        self._plan_traffic()
        self.faults.plan(TRAFFIC_S, HEALED_S)

    # --- what a scenario with more parties adds ---

    def more_routes(self) -> dict[str, Route]:
        """Return servers that all servers list, besides each other."""
        return {}

    def grants(self) -> dict[str, Grant]:
        """Return the keys that all servers know, with what each is good for."""
        return {}

    def key_of(self, handler: str) -> str:
        """Return a handler's key, empty for one whose link is not encrypted."""
        return ""

    # --- parties ---

    def _build(self) -> None:
        chance = self.random
        routes = {name: Route(name, fabric=f"ipc:///{name}") for name in self._names}
        for name, address in ADDRESSES.items():
            is_known_mute = name == MUTE and chance.random() < 0.3
            routes[name] = Route(name, native=address, reports=not is_known_mute, ordered=chance.random() < 0.3)
        self.ordered = {name for name in ADDRESSES if routes[name].ordered}
        accounts = frozenset(USERS)
        for name in self._names:
            others = {other: route for other, route in routes.items() if other != name}
            budgets = {"b": Budget(2.0, 2)} if chance.random() < 0.3 else {}
            limits = limits_of(LIMITS, self.world.seed)
            settings = Settings(
                name, routes=others | self.more_routes(), unknown_hosts=frozenset({NATIVE}), limits=limits,
                budgets=budgets, grants=self.grants(),
            )  # fmt: skip
            turn_s = chance.choice((0.0, 0.0, 0.002, 0.02))
            self.servers.append(SimServer(self.world, settings, accounts, turn_s=turn_s))
            self.neighbour.listed_by(self.servers[-1])
        for number, server in enumerate(self.servers):
            for other in self.servers:
                if other is not server:
                    server.link_to(other.name, partial(_itself, other), self._weather(), self._weather())
            self._staff(server)
            bridges = self._bridges(server)
            self.bridges += bridges
            for place in range(number, CLIENTS, len(self.servers)):
                user = USERS[place // 3] if place // 3 < len(USERS) else chance.choice(USERS)
                client = SimClient(self.world, bridges, f"c{place}", user, ack=chance.random() < 0.5)
                client.alien = self.rules.pried
                self.clients.append(client)
                if chance.random() < 0.7:
                    self.world.after(chance.uniform(0.0, 1.0), client.come)

    def _weather(self) -> Weather:
        chance = self.random
        weather = Weather(
            0.001, chance.choice((0.002, 0.05, 0.5)), chance.choice((0.0, 0.0, 0.02, 0.2)),
            chance.choice((0.0, 0.0, 0.1)), chance.choice((0.0, 0.0, 0.3)),
        )  # fmt: skip
        self.weathers.append(weather)
        return weather

    def _bridges(self, server: SimServer) -> list[SimBridge]:
        chance = self.random
        bridges = []
        direct = chance.random() < 0.5
        for number in range(1 if direct else chance.choice((1, 1, 2))):
            bridge = SimBridge(
                self.world, server, f"{server.name}b{number}", BRIDGE_LIMITS, direct=direct,
                weather=Weather(0.0, chance.choice((0.001, 0.01))), slow_s=chance.choice((0.0, 0.05, 1.0)),
            )  # fmt: skip
            bridge.on_forward = self._forward
            bridges.append(bridge)
        return bridges

    def _staff(self, server: SimServer) -> None:
        """Two handlers a server; each type is served, if by one of them alone."""
        chance = self.random
        for number, types in enumerate(
            chance.choice(((["a", "o"], ["b", "o"]), (["a", "b"], ["a", "o"]), (TYPES, TYPES)))
        ):
            behaviour = self._behaviour(server)
            options: Meta = {"types": types, "credit": chance.choice((1, 2, 8))}
            if "o" in types:
                options["order"] = {"o": "user"}
            handler = SimHandler(
                self.world, server, f"{server.name}h{number}", options, behaviour,
                weather=Weather(0.0, chance.choice((0.001, 0.1))), slowest_s=chance.choice((0.0, 0.1, 0.5)),
                key=self.key_of(f"{server.name}h{number}"),
            )  # fmt: skip
            handler.on_request = partial(self.rules.requested, handler)
            self.handlers.append(handler)

    def _behaviour(self, server: SimServer) -> Behaviour:
        chance = self.random
        dies, mute = chance.choice((0.0, 0.0, 0.03)), chance.choice((0.0, 0.0, 0.03))
        next_server = self._names[(self._names.index(server.name) + 1) % len(self._names)]

        def behave(request: Request) -> Reply | Fate:
            if programs.kills(request.body):
                return Fate.DIES
            luck = chance.random() if self.world.now < HEALED_S else 1.0
            if luck < dies:
                return Fate.DIES
            if luck < dies + mute:
                return Fate.SILENT
            commands = programs.commands(request.body, request.type, next_server)
            return Reply(request.token, 1, [], "failed") if commands is None else Reply(request.token, 0, commands)

        return behave

    def _forward(self, server: SimServer, message: Forward, done: Done) -> None:
        """A bridge of this server hands a message to a native one."""
        (native_server,) = [each for each in self.natives.values() if each.address == message.address]
        native_server.take(server, message, done)

    # --- messages ---

    def _plan_traffic(self) -> None:
        chance = self.random
        for _ in range(chance.randrange(20, 50)):
            act = chance.choice((self._submit,) * 8 + (self._say, self._emit))
            self.world.after(chance.uniform(0.5, TRAFFIC_S), act)
        for _ in range(chance.randrange(6)):
            self.world.after(chance.uniform(0.5, TRAFFIC_S), self._come_or_go)
        for _ in range(chance.randrange(4)):
            self.world.after(chance.uniform(0.5, TRAFFIC_S), self._ask)

    def _body(self) -> bytes:
        self._numbers += 1
        users = [*USERS, "nobody"] if self.random.random() < 0.2 else USERS
        servers = [*self._names, *NATIVES]
        return programs.body_of(self._numbers, "", programs.invent(self.random, users, servers, [*TYPES * 4, "x"]))

    def _submit(self) -> None:
        chance = self.random
        client = chance.choice(self.clients)
        type_ = chance.choice(TYPES)
        for _ in range(chance.choice((1, 1, 1, 4))):
            ttl_s = chance.choice((1.0, 3.0, 30.0)) if chance.random() < 0.1 else None
            terms = Terms(None, ttl_s, chance.random() < 0.3)
            client.say(self._numbers + 1, type_, self._body(), terms)

    def _say(self) -> None:
        """A native server's message."""
        chance = self.random
        body = self._body()
        peer = self.neighbour.says(chance.choice(self.bridges), self._numbers, chance.choice(TYPES), body)
        self.peers.append(peer)

    def _emit(self) -> None:
        chance = self.random
        handler = chance.choice(self.handlers)
        body = self._body()
        commands = programs.commands(body, "a", handler.server.name)
        if commands is None:
            return
        for _ in range(chance.choice((1, 1, 2))):  # the second is a resend
            token = handler.emit(handler.types[0], commands, f"{handler.name}/{self._numbers}")
            self.emissions.append((handler, handler.server, token, body))

    def _come_or_go(self) -> None:
        client = self.random.choice(self.clients)
        if client.here:
            client.go()
        else:
            client.come()

    def _ask(self) -> None:
        """Ask for the outcome of a message, as its sender or as another user."""
        reported = [one for one in submissions_of(self) if one.reports and one.reports[0].message]
        if not reported:
            return
        submission = self.random.choice(reported)
        asker = self.random.choice(self.clients)
        if asker.user == submission.client.user and asker.server is submission.client.server:
            asker.learn(submission)
        else:
            asker.pry(submission.reports[0].message or "")

    # --- the play ---

    def run(self) -> None:
        """Play the scenario to its end. Raises BrokenRuleError."""
        world = self.world
        world.run(HEALED_S)
        world.tell("world", "IS HEALED")
        for native_server in self.natives.values():
            native_server.healed = True
        for handler in self.handlers:
            if handler.owes:  # some request was never answered: the operator restarts the handler
                handler.die()
        for client in self.clients:
            client.come()
        self._run_until_quiet()
        self.rules.ask_what_became()
        world.run(world.now + 5.0, enough=self.rules.all_answered)
        self.rules.check()

    def _run_until_quiet(self) -> None:
        """Run until nothing is owed for a second: the report on its way to a native server may make that server send
        its message again."""
        world = self.world
        is_quiet = False
        while not is_quiet and world.now < HEALED_S + PATIENCE_S:
            world.run(HEALED_S + PATIENCE_S, enough=self.rules.quiet)
            world.run(world.now + 1.0)
            is_quiet = self.rules.quiet()


def play(seed: int, kind: type[Scenario] = Scenario) -> Scenario:
    """Play a seed to its end. Raises BrokenRuleError with the whole story and the command that repeats the seed.

    The story is told only where it is wanted: a seed that fails is played a second time, and goes the same way.
    """
    try:
        scenario = kind(seed, telling=False)
        scenario.run()
    except Exception:
        _tell(seed, kind)
        raise  # a good second run is worth knowing, too: then chance is not the seed's alone
    return scenario


def _tell(seed: int, kind: type[Scenario]) -> None:
    scenario: Scenario | None = None
    try:
        scenario = kind(seed)
        scenario.run()
    except Exception as error:
        story = scenario.world.told() if scenario is not None else ""
        where = "" if isinstance(error, BrokenRuleError) else "".join(traceback.format_exception(error))
        text = f"{story}\n{where}\nseed {seed}: {error}\nagain: python -m tests.simulation --seed {seed}{kind.option}"
        raise BrokenRuleError(text) from error


def _itself(server: SimServer) -> SimServer:
    """Return the server itself as a door: always there; messages wait where the process is not."""
    return server


def submissions_of(scenario: Scenario) -> list[Submission]:
    """Return all that clients submitted."""
    return [submission for client in scenario.clients for submission in client.submissions]
