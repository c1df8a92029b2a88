"""One seed's scenario: who is there, what is sent, what goes wrong; and the rules that hold whatever does.

Everything comes from the seed. Faults end at HEALED_S; from then on the servers have PATIENCE_S to report all that was
submitted and to hold nothing any more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from bester.broker.core.values import Limits, Route, Settings
from bester.broker.wire.messages import HOP_LIMIT, Command, Forward, Heartbeat, Request
from tests.simulation import programs
from tests.simulation.parties import Behaviour, BrokenRuleError, Session, SimBridge, SimHandler, Submission
from tests.simulation.programs import NATIVE, Leaf
from tests.simulation.world import SimLink, SimServer, Weather, World

TRAFFIC_S = 15.0
HEALED_S = 25.0
PATIENCE_S = 120.0
LIMITS = Limits(request_s=8.0, relay_s=16.0)
USERS = ["alice", "bob", "carol"]
TYPES = ["a", "b", "o"]
"""`o` is asked for in order."""
NATIVE_HOST = "10.0.0.9"


class Scenario:
    """Build it, `run` it; BrokenRuleError says which rule does not hold, `world.told()` is the whole story."""

    def __init__(self, seed: int, *, servers: int = 2) -> None:
        self.world = World(seed)
        self.random = self.world.random
        self.servers: list[SimServer] = []
        self.bridges: list[SimBridge] = []
        self.handlers: list[SimHandler] = []
        self.sessions: list[tuple[SimBridge, Session]] = []
        self.emissions: list[tuple[SimHandler, SimServer, int, bytes]] = []
        self.weathers: list[Weather] = []
        self.arrived: set[str] = set()  # ids of messages that some handler was given
        self.sent: set[int] = set()  # numbers of messages of which something went where nothing is answered
        self._numbers = 0
        self._names = [f"s{number + 1}" for number in range(servers)]
        self._build()
        self._plan_traffic()
        self._plan_faults()

    # --- who is there ---

    def _build(self) -> None:
        chance = self.random
        routes = {name: Route(name, fabric=f"ipc:///{name}") for name in self._names}
        routes[NATIVE] = Route(NATIVE, native=f"{NATIVE_HOST}:2223")
        for name in self._names:
            others = {other: route for other, route in routes.items() if other != name}
            settings = Settings(name, open_accounts=True, routes=others, hosts={NATIVE_HOST: (NATIVE,)}, limits=LIMITS)
            self.servers.append(SimServer(self.world, settings))
        for server in self.servers:
            for other in self.servers:
                if other is not server:
                    server.link_to(other, self._weather(), self._weather())
            self._staff(server)
            for number in range(chance.choice((1, 1, 2))):
                direct = number == 0 and chance.random() < 0.5
                bridge = SimBridge(
                    self.world, server, f"{server.name}b{number}", direct=direct,
                    weather=Weather(0.0, 0.01), slow_s=chance.choice((0.0, 0.05, 1.0)),
                )  # fmt: skip
                bridge.forward = self._forward(bridge)
                self.bridges.append(bridge)
                for user in chance.sample(USERS, chance.choice((1, 2, 3))) * chance.choice((1, 1, 2)):
                    self.sessions.append((bridge, bridge.login(user)))

    def _weather(self) -> Weather:
        chance = self.random
        weather = Weather(
            0.001, chance.choice((0.002, 0.05, 0.5)), chance.choice((0.0, 0.0, 0.02, 0.2)), chance.choice((0.0, 0.3))
        )
        self.weathers.append(weather)
        return weather

    def _staff(self, server: SimServer) -> None:
        chance = self.random
        for type_ in TYPES:
            for number in range(chance.choice((1, 1, 2, 3))):
                handler = SimHandler(
                    self.world, server, f"{server.name}{type_}{number}", [type_], self._behaviour(server),
                    credit=chance.choice((1, 2, 8)), weather=Weather(0.0, chance.choice((0.001, 0.1))),
                    slowest_s=chance.choice((0.0, 0.1, 1.0)), order=type_ == "o",
                )  # fmt: skip
                handler.on_request = partial(self._requested, handler)
                self.handlers.append(handler)

    def _behaviour(self, server: SimServer) -> Behaviour:
        chance = self.random
        dies, mute = chance.choice((0.0, 0.0, 0.03)), chance.choice((0.0, 0.0, 0.03))
        next_server = self._names[(self._names.index(server.name) + 1) % len(self._names)]

        def behave(request: Request) -> list[Command] | str | None:
            luck = chance.random()
            if luck < dies:
                return "die"
            if luck < dies + mute:
                return "silent"
            return programs.commands(request.body, request.type, next_server)

        return behave

    def _forward(self, bridge: SimBridge) -> Callable[[Forward], str | None]:
        def forward(message: Forward) -> str | None:
            outcome = self.random.choice(("delivered", "sent", "sent", "failed:unreachable", None))
            if outcome != "sent":
                return outcome
            self.sent.add(programs.read(message.body)[0])
            self.world.after(1.0, lambda: bridge.forwarded(message.token, "sent"))
            return None

        return forward

    # --- what is sent ---

    def _plan_traffic(self) -> None:
        for _ in range(self.random.randrange(20, 60)):
            act = self._submit if self.random.random() < 0.9 else self._emit
            self.world.after(self.random.uniform(0.5, TRAFFIC_S), act)
        for _ in range(self.random.randrange(4)):
            self.world.after(self.random.uniform(0.5, TRAFFIC_S), self._come_and_go)

    def _program(self) -> programs.Program:
        return programs.invent(self.random, [*USERS, "nobody"], [*self._names, NATIVE], [*TYPES, "x"])

    def _submit(self) -> None:
        self._numbers += 1
        body = programs.body_of(self._numbers, "", self._program())
        bridge, session = self.random.choice(self.sessions)
        if self.random.random() < 0.1:
            bridge.submit(None, self.random.choice(TYPES), body, scope="server", address=NATIVE_HOST)
        elif session.open:
            bridge.submit(session, self.random.choice(TYPES), body)

    def _emit(self) -> None:
        self._numbers += 1
        handler = self.random.choice(self.handlers)
        server = next(server for server in self.servers if handler.name.startswith(server.name))
        body = programs.body_of(self._numbers, "", self._program())
        said = programs.commands(body, "a", server.name)
        if said is None:
            return
        type_ = handler.link.party.hello.options["types"][0]
        for _ in range(self.random.choice((1, 1, 2))):  # the second is a resend
            token = handler.emit(type_, said, f"{handler.name}/{self._numbers}")
            self.emissions.append((handler, server, token, body))

    def _come_and_go(self) -> None:
        bridge, session = self.random.choice(self.sessions)
        if session.number in bridge.sessions:
            self.world.tell(session.user, "goes from", bridge.name)
            bridge.close(session)
        self.sessions.append((bridge, bridge.login(session.user)))

    # --- what goes wrong ---

    def _plan_faults(self) -> None:
        faults = [
            self._kill,
            self._kill,
            self._freeze,
            self._freeze_server,
            self._cut,
            self._restart,
            self._stall,
            self._reconnect,
        ]
        for _ in range(self.random.choice((0, 1, 2, 4, 8))):
            self.world.after(self.random.uniform(0.5, TRAFFIC_S), self.random.choice(faults))
        self.world.after(HEALED_S, self._heal)

    def _kill(self) -> None:
        self.random.choice(self.handlers).die()

    def _freeze(self) -> None:
        self.random.choice(self.handlers).freeze(self.random.uniform(1.0, 10.0))

    def _freeze_server(self) -> None:
        self.random.choice(self.servers).freeze(self.random.uniform(1.0, 9.0))

    def _restart(self) -> None:
        self.random.choice(self.servers).restart()

    def _some_link(self) -> SimLink:
        bridges = [bridge.link for bridge in self.bridges if bridge.link is not None]
        return self.random.choice(bridges + [handler.link for handler in self.handlers])

    def _stall(self) -> None:
        link, seconds = self._some_link(), self.random.uniform(1.0, 9.0)
        self.world.tell(link.name, "STALLS", f"for {seconds:.1f} s")
        for weather in link.weather:
            weather.stalled_until = self.world.now + seconds

    def _reconnect(self) -> None:
        link = self._some_link()
        self.world.tell(link.name, "BREAKS")
        link.reidentify()

    def _cut(self) -> None:
        """Between servers, one direction or more."""
        for weather in self.random.sample(self.weathers, self.random.choice((1, 2))):
            self._cut_for(weather, self.random.uniform(1.0, 9.0))

    def _cut_for(self, weather: Weather, seconds: float) -> None:
        self.world.tell("network", "IS CUT", f"for {seconds:.1f} s")
        weather.cut = True

        def mend() -> None:
            self.world.tell("network", "is mended")
            weather.cut = False

        self.world.after(seconds, mend)

    def _heal(self) -> None:
        self.world.tell("world", "IS HEALED")
        for weather in self.weathers:
            weather.cut, weather.loss = False, 0.0

    # --- the rules ---

    def run(self) -> None:
        """Let it all happen. Raises BrokenRuleError."""
        self.world.run(HEALED_S)
        self.world.run(HEALED_S + PATIENCE_S, enough=self._quiet)
        self.world.run(self.world.now + 2.0)
        self._all_is_reported()
        self._nothing_is_held()
        self._deliveries_are_right()
        self._good_is_true()

    def _quiet(self) -> bool:
        told = all(one.reports for bridge in self.bridges for one in bridge.submissions.values())
        return told and all(server.router.idle for server in self.servers)

    def _requested(self, handler: SimHandler, request: Request) -> None:
        path, id_ = request.meta["path"], request.meta["id"]
        if len(path) >= HOP_LIMIT:
            raise BrokenRuleError(f"{handler.name} was given {id_} after {len(path)} steps")
        if not 1 <= request.meta["attempt"] <= LIMITS.attempts:
            raise BrokenRuleError(f"{handler.name} was given {id_} as attempt {request.meta['attempt']}")
        if request.type == "o" and not path and request.meta["scope"] == "client":
            self._in_order(handler, request)
        self.arrived.add(id_)

    def _in_order(self, handler: SimHandler, request: Request) -> None:
        """Whatever one session sent before was given to somebody before, or is over."""
        prefix, _, token = request.meta["id"].rpartition("/")
        for bridge in self.bridges:
            mine = bridge.submissions.get(int(token))
            if mine is None or mine.body != request.body:
                continue
            for earlier, one in bridge.submissions.items():
                if earlier >= int(token) or one.reports or (one.type, one.session) != ("o", mine.session):
                    continue
                if f"{prefix}/{earlier}" not in self.arrived:
                    raise BrokenRuleError(f"{handler.name} was given {request.meta['id']} before {earlier}")

    def _all_is_reported(self) -> None:
        for bridge in self.bridges:
            for token, one in bridge.submissions.items():
                if len(one.reports) != 1:
                    raise BrokenRuleError(f"{bridge.name}: {len(one.reports)} reports of {token}: {one}")

    def _nothing_is_held(self) -> None:
        for server in self.servers:
            if not server.router.idle:
                raise BrokenRuleError(f"{server.name} still owes {server.router._exchange.cases} reports")
            exchange = server.router._exchange
            if exchange.commands.deliveries.count or exchange.commands.legs.count or exchange.workers.waiting:
                raise BrokenRuleError(f"{server.name} still waits for something nobody is owed")
            for link in list(server.links):  # those who never answer keep what they were given until they are gone
                server.router.undeliverable(link, Heartbeat(), self.world.now)
            if exchange._held or exchange._held_bytes:
                raise BrokenRuleError(f"{server.name} counts {exchange._held} messages, and has none")

    def _sources(self) -> list[tuple[str, bytes]]:
        sent = [(one.server, one.body) for bridge in self.bridges for one in bridge.submissions.values()]
        return sent + [(server.name, body) for _, server, _, body in self.emissions]

    def _deliveries_are_right(self) -> None:
        """Nobody gets what was not addressed to them, nothing comes twice to one session, no result comes too often."""
        meant: Counter[Leaf] = Counter()
        again: set[int] = set()
        for server, body in dict.fromkeys(self._sources()):
            number, _, program = programs.read(body)
            if any(step[0] in ("loop", "ring") for step in programs.steps(program)):
                again.add(number)
            found = list(programs.leaves(server, body))
            meant.update(found)
            if number in again:  # round the ring, at every server
                meant.update((name, user, leaf) for name in self._names for _, user, leaf in found)
        for leaf, ids in self._delivered().items():
            if leaf not in meant:
                raise BrokenRuleError(f"{leaf[1]} of {leaf[0]} got what was not for them: {leaf[2]!r}")
            if len(ids) > meant[leaf] and programs.read(leaf[2])[0] not in again:
                raise BrokenRuleError(f"{leaf} was delivered as {ids}; {meant[leaf]} were meant")

    def _delivered(self) -> dict[Leaf, set[str]]:
        """Return the result ids under which each leaf arrived."""
        found: dict[Leaf, set[str]] = defaultdict(set)
        for bridge, session in self.sessions:
            ids = [id_ for id_, _, _ in session.got]
            if len(ids) != len(set(ids)):
                raise BrokenRuleError(f"{session.user} at {bridge.name} got something twice: {ids}")
            for id_, _, body in session.got:
                found[bridge.server.name, session.user, body].add(id_)
        return found

    def _good_is_true(self) -> None:
        """What was called good was delivered, whole; what was called delivered was, too."""
        delivered = self._delivered()

        def check(server: str, body: bytes, status: int, recipients: dict[str, str], about: Any) -> None:
            number, _, program = programs.read(body)
            if status == 0 and number in self.sent and "sent" not in recipients.values():
                raise BrokenRuleError(f"good, without naming who answers nothing: {about}")
            if status == 0 and any(step[0] in ("fail", "bad", "loop", "ring") for step in programs.steps(program)):
                raise BrokenRuleError(f"good, but it cannot be: {about}")
            promised: Counter[Leaf] = Counter(
                leaf
                for name, leaf in programs.named_leaves(server, body, deep=status == 0)
                if status == 0 or recipients.get(name) == "delivered"
            )
            for leaf, times in promised.items():
                if len(delivered.get(leaf, ())) < times:
                    raise BrokenRuleError(f"called delivered, and was not: {leaf}, in {about}")

        for bridge in self.bridges:
            for one in bridge.submissions.values():
                check(one.server, one.body, one.reports[0].status, one.reports[0].recipients, one)
        for handler, server, token, body in self.emissions:
            outcome = handler.outcomes.get(token)
            if outcome is not None:
                check(server.name, body, outcome.status, outcome.recipients, outcome)


def play(seed: int) -> Scenario:
    """Play a seed to its end. Raises BrokenRuleError with the whole story and how to see it again."""
    scenario = Scenario(seed)
    try:
        scenario.run()
    except Exception as error:
        text = f"{scenario.world.told()}\n\nseed {seed}: {error}\nagain: python -m tests.simulation --seed {seed}"
        raise BrokenRuleError(text) from error
    return scenario


def submissions_of(scenario: Scenario) -> list[Submission]:
    """Return all that was submitted."""
    return [one for bridge in scenario.bridges for one in bridge.submissions.values()]
