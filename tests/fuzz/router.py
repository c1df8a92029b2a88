"""Fuzzes the broker's core: parties that send anything, beside honest ones that must not notice.

The honest ones are a bridge with the users alice and bob, a handler of the type `good`, and a listed server s3. Each of
their messages must have its one report, and a good one, whatever the others do. In the end these fall silent, and then
only leftovers bounded by number may remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from bester.broker.core.clock import Clock
from bester.broker.core.effects import Effects, Link, Notice, Verify
from bester.broker.core.reporters import MAX_COUNTED, MAX_STRANGERS
from bester.broker.core.router import Router
from bester.broker.core.settings import Budget, Limits, Route, Settings
from bester.broker.core.symptoms import MAX_RECENT
from bester.broker.hosts import Hosts
from bester.broker.store.memory import MemoryStore
from bester.broker.store_requests import Bounds
from bester.broker.wire.codec import decode
from bester.broker.wire.messages import (
    MAX_BATCH,
    Answer,
    Ask,
    Close,
    Command,
    Confirm,
    Deliver,
    Emit,
    Error,
    Forward,
    Forwarded,
    Goodbye,
    Heartbeat,
    Hello,
    LoggedIn,
    Login,
    Malformed,
    Message,
    Meta,
    Open,
    Operation,
    Outcome,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
    Submit,
    Traced,
    Welcome,
)
from tests.fuzz.census import LENGTH, census
from tests.fuzz.odd import OUTCOMES, Odd
from tests.fuzz.play import Told, must
from tests.fuzz.wire import SPECS, check_message

LIMITS = Limits(
    handler_wait_s=2.0, handler_again_s=3.0, request_s=4.0, max_lease_s=8.0, stuck_s=1.0, fallen_s=3.0, report_s=2.0,
    relay_s=4.0, last_retry_s=20.0, remember_s=30.0, suspect_s=10.0, restart_s=5.0, max_fallen=16, max_remembered=64,
    max_remembered_of_one=32, max_relayed=64, sweep_at=16, max_parties=40, max_types=40, max_credit=64,
    max_strangers=16, max_roots=64, trace=64, max_lanes=16, max_lane=64, max_sessions=50,
    max_unacked=64, max_resumes=16,
)  # fmt: skip
BOUNDS = Bounds(ttl_s=20.0, user_messages=50, server_messages=50, messages=200, outcomes=50, dead_letters=20)
SMALL = 200
"""Entries that a table may have when all is over: more than any of the limits above."""
MOST = {
    "_peers.resumes[]._cases": 5_000,  # tidied when more comes
    "_units.figures.recent_dead._letters": MAX_RECENT,  # whatever the limits, and so are the next two
    "_units.reporters._strangers": MAX_STRANGERS,
    "_units.reporters._silent": MAX_COUNTED,
    "_peers.resumes[]._sent[][][] (length)": 5_000,  # from a bridge that does not count its reports
    "_peers.resumes[]._unacked[][][] (length)": 5_000,
}
"""The same of some tables."""
TRUSTED = ("_units.deliveries.",)
"""Tables that a bridge without confirmations fills: such a bridge is let in as the server's own, and trusted with
them."""
SHORT = 1200
"""Characters of a text that is remembered: an id of 512 that was sent on as often as may be."""
GRACE_S = 60.0
"""Seconds that outlast, by these limits, any message and any memory of a message."""
STEP_S = 0.5
HONEST_EVERY = 8
GOOD = "good"
SAYS: dict[str, frozenset[type[Any]]] = {
    "stranger": frozenset({Error, Welcome, Goodbye, Heartbeat}),
    "handler": frozenset({Request, Outcome, Answer}),
    "bridge": frozenset({LoggedIn, Close, Report, Deliver, Forward, Answer}),
    "server": frozenset({Relayed, Traced}),
    "operator": frozenset({Answer}),
    "linked": frozenset({Relay}),
}
"""Messages that a broker sends to each role, besides those to strangers."""
DOORS = ("ipc", "ipc", "tcp", "tcp")
FORWARDED: tuple[tuple[str, Meta], ...] = (
    ("delivered", {"reported": True}), ("sent", {}), ("failed:unreachable", {"unsent": True}),
    ("queued", {"queued": 1}), ("failed:unreachable", {}), ("failed:refused", {"reported": True, "note": "no"}),
)  # fmt: skip
"""Outcomes of messages to native servers."""
BENTS = (
    ("handler", "bridge", "server", "operator"), ("handler",), ("handler", "handler", "bridge"), ("server", "handler"),
    ("bridge", "operator"),
)  # fmt: skip
"""Usual roles, in one story, of the parties who are not honest."""
LINKED = Link("server", b"s2")


class Party:
    """A party on a link. `bent` is the role that the party mostly plays, `roles` are those ever asked for, and `last`
    holds the latest messages from the router, to be answered rightly or wrongly."""

    def __init__(self, link: Link, bent: str) -> None:
        self.link = link
        self.bent = bent
        self.roles: set[str] = set()
        self.last: list[Any] = []


class World:
    """A router with honest and evil parties. `now` is moved by hand."""

    def __init__(self, seed: int, told: Told) -> None:
        chance = Random(seed)
        self.told = told
        self.now = 1000.0
        self.accounts = frozenset({"alice", "bob", "carol"})
        routes = {
            "s2": Route("s2", fabric="ipc:///s2", accept_types=chance.choice((None, frozenset({"a"})))),
            "s3": Route("s3", fabric="ipc:///s3"),
            "n1": Route("n1", native="10.0.0.9:5", ordered=chance.random() < 0.5, reports=chance.random() < 0.5),
        }
        self.store = MemoryStore(epoch="store")
        self.router = Router(
            Settings(
                "s1", open_accounts=chance.random() < 0.3, accept=chance.choice(("open", "listed")), routes=routes,
                hosts={"10.0.0.9": ("n1",)}, unknown_hosts=chance.choice((frozenset(), frozenset({"n1"}))),
                declared_types=frozenset({"shared"}), budgets={"slow": Budget(1.0, 2)},
                bounds=BOUNDS, limits=LIMITS,
            ),
            epoch="e", first_token=5000, now=self.now, wall_s=self.now, boot="boot",
            accounts_of=lambda names: self.accounts & set(names), snapshot=self.store.open(), chance=chance.random,
            process_of=lambda link: sum(link.key) % 5 or None, is_stopped=lambda process: process == 3,
        )  # fmt: skip
        self.parties: dict[Link, Party] = {}
        self.honest = Honest(self)
        bents = chance.choice(BENTS)
        self.evil = [Party(Link(chance.choice(DOORS), b"%d" % n), chance.choice(bents)) for n in range(12)]
        self.parties |= {party.link: party for party in (*self.evil, Party(LINKED, "linked"))}
        self.parties[LINKED].roles.add("linked")
        self.honest.greet()
        if chance.random() < 0.7:
            self.take(self.router.on_server_ready("s2", self.now))

    def newcomer(self, odd: Odd) -> Party:
        """Return a party on a new link."""
        party = Party(Link(odd.pick(DOORS), b"n%d" % len(self.parties)), "handler")
        self.parties[party.link] = party
        return party

    # --- calls of the router ---

    def say(self, link: Link, messages: Sequence[Message | Malformed]) -> None:
        """Hand a batch of a link to the router."""
        self.take(self.router.receive_all(link, messages, self.now))

    def take(self, effects: Effects) -> None:
        """Carry out the router's effects, until there are no more."""
        waiting = [effects]
        while waiting or self.router.has_fan_out:
            effects = waiting.pop(0) if waiting else self.router.fan_out(self.now)
            if effects.writes:
                waiting.append(self.router.on_committed(effects.writes, self.store.commit(effects.writes), self.now))
            waiting += [
                self.router.on_reads([(read, self.store.read(read.request))], self.now) for read in effects.reads
            ]
            for link, messages in effects.messages.items():
                for message in messages:
                    self._heard(link, message)
            for call in effects.calls:
                if isinstance(call, Verify):
                    reason = None if call.password == "right" else "authentication-failed"
                    verified = self.router.on_verified(call.link, call.session, call.user, reason, self.now, 1.0)
                    waiting.append(verified)
                elif isinstance(call, Notice):
                    must(len(repr(call)) < 10**9 and call.event.isprintable(), "a notice can be written")

    def _heard(self, link: Link, message: Message) -> None:
        """Check a message of the router's, and let the honest answer."""
        check_message(message)
        if link in self.honest.links:
            self.honest.hear(link, message)
            return
        party = self.parties[link]
        if type(message) not in (Heartbeat, Welcome):
            self.told(f"  {link.key!r} hears {message!r:.300}")
        if type(message) is Error:
            must(message.code in CODES_SAID, f"a code of the table, not {message.code!r}")
        allowed = SAYS["stranger"].union(*(SAYS[role] for role in party.roles))
        must(type(message) in allowed, f"a {party.roles or 'stranger'} hears no {type(message).__name__}")
        party.last = [*party.last[-20:], message]

    def wait(self, seconds: float, *, evil: bool) -> None:
        """Let time pass; the honest act meanwhile, and the evil parties, where `evil`."""
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_S
            for link in self.honest.links:
                self.say(link, [Heartbeat()])
            for party in self.evil if evil else ():
                if party.roles:
                    self.say(party.link, [Heartbeat()])
            self.take(self.router.tick(self.now, self.now))


CODES_SAID = frozenset(
    {"malformed", "hello-first", "unknown-op", "unknown-token", "not-allowed", "reserved", "version", "overloaded",
     "unknown-command", "bad-reply", "frame-too-large", "schema"}
)  # fmt: skip


class Honest:
    """The bridge, the handler and the server that keep to the protocol."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.bridge, self.handler, self.server = (Link("ipc", name) for name in (b"bridge", b"handler", b"server"))
        self.links = (self.bridge, self.handler, self.server)
        self.waiting: dict[tuple[Link, int], str] = {}
        self._token = 0
        self._said: dict[Link, list[Message]] = {}

    def greet(self) -> None:
        """Send the honest parties' HELLOs, before anybody else acts."""
        say = self._world.say
        say(self.bridge, [Hello(1, "bridge", "honest", {"epoch": "honest"})])
        say(self.bridge, [Open(1, "alice"), Open(2, "bob")])
        say(self.handler, [Hello(1, "handler", "honest", {"types": [GOOD], "credit": 64})])
        say(self.server, [Hello(1, "server", "s3")])

    def submit(self, odd: Odd) -> None:
        """Send a message, as a client or as a server."""
        self._token += 1
        token, type_ = self._token, GOOD if not odd.one_in(4) else "shared"
        message: Message
        if odd.one_in(4):
            link, message = self.server, Relay(token, type_, b'"r"', {"id": f"s3/e-1/{token}"})
        else:
            meta: dict[str, Any] = {} if odd.one_in(2) else {"dedup": f"d{token}"}
            link, message = self.bridge, Submit(token, odd.pick((1, 2)), type_, b'"s"', meta)
        self.waiting[link, token] = type_
        self._world.say(link, [message])

    def hear(self, link: Link, message: Message) -> None:
        """Answer as the protocol prescribes."""
        match message:
            case Request():
                must(message.type == GOOD, "a handler is given its own types")
                command = Command("sendClients", ["bob"], message.body)
                self._answer(link, Reply(message.token, 0, [command]))
            case Deliver():
                must({session for target in message.targets for session in target[1:]} <= {1, 2}, "to its own sessions")
                self._answer(link, Confirm(message.serial))
                if message.token is not None:
                    self._ended(link, message.token, good=True)
            case Report():
                self._ended(link, message.token, good=message.status == 0)
            case Relayed():
                self._ended(link, message.token, good=not message.outcome.startswith("failed"))
            case Forward():
                became, meta = FORWARDED[message.token % len(FORWARDED)]
                self._answer(link, Forwarded(message.token, became, dict(meta)))
            case Welcome() | Heartbeat():
                pass
            case _:
                must(False, f"an honest party is told {message}")

    def _answer(self, link: Link, message: Message) -> None:
        """Queue an answer for the next turn: the router is at work now."""
        self._said.setdefault(link, []).append(message)

    def turn(self) -> None:
        """Send the waiting answers, until there are no more."""
        while self._said:
            answers, self._said = self._said, {}
            for link, messages in answers.items():
                self._world.say(link, messages)

    def _ended(self, link: Link, token: int, *, good: bool) -> None:
        type_ = self.waiting.pop((link, token), None)
        must(type_ is not None, f"one report for each message: {token} had its own")
        must(good or type_ != GOOD, f"a message of an honest handler ends well: {token}")


def play(steps: Sequence[int], told: Told) -> int:
    """Play a story. Returns the number of messages from the parties who are not honest."""
    world = World(steps[0], told)
    chance = Random()
    odd = Odd(chance)
    count = 0
    for step in steps:
        chance.seed(step)
        if odd.one_in(HONEST_EVERY):
            world.honest.submit(odd)
        elif odd.one_in(25):
            world.told("time passes")
            world.wait(odd.pick((0.5, 1.0, 3.0, 7.0)), evil=not odd.one_in(4))
        else:
            count += _evil(world, odd)
        world.honest.turn()
    _end(world)
    return count


def _evil(world: World, odd: Odd) -> int:
    """Let an evil party act."""
    if odd.one_in(40):
        return _happens(world, odd)
    if odd.one_in(60):
        return _flood(world, odd)
    party = world.parties[LINKED] if odd.one_in(12) else odd.pick(world.evil)
    rows = [_row_of(party, odd) for _ in range(odd.pick((1, 1, 2, 3)))]
    if odd.one_in(300):
        rows *= 400
    messages = [each for each in decode(odd.frames(rows[:MAX_BATCH])) if not claims_honest(each)]
    world.told(f"{party.link.door} {party.link.key!r} says {messages!r:.600}")
    for message in messages:
        if type(message) is Hello and message.role in _BY_ROLE:
            party.roles.add(message.role)
    world.say(party.link, messages)
    return len(messages)


def claims_honest(message: Message | Malformed) -> bool:
    """Return whether a bridge's message claims an honest user, who may come over tcp from nobody but the honest
    bridge."""
    return isinstance(message, Open | Login) and message.user in ("alice", "bob")


def _happens(world: World, odd: Odd) -> int:
    """Something that the shell finds out."""
    what = odd.chance.randrange(6)
    world.told(f"happens: {what}")
    router, now = world.router, world.now
    if what == 0:
        world.take(router.on_undeliverable(odd.pick(world.evil).link, Heartbeat(), now))
    elif what == 1:
        world.take(router.on_server_ready("s2", now))
    elif what == 2:
        world.take(router.on_server_lost("s2", odd.text()[:100], now))
    elif what == 3:
        world.take(router.on_account_removed(odd.pick(("carol", "eve", "nobody")), now))
    elif what == 4:
        hosts = Hosts(
            odd.pick(({}, {"10.0.0.9": ("n1",)}, {"10.0.0.10": ("n1",)})), odd.pick((frozenset(), frozenset({"n1"})))
        )
        world.take(router.on_hosts_changed(hosts, now))
    else:
        world.take(router.tick(now, now + odd.pick((0.0, 3600.0, -3600.0))))
    return 1


Flood = Callable[[int], Message]
FLOODS: dict[str, tuple[str, Flood]] = {
    "types": ("handler", lambda n: Hello(1, "handler", "eve", {"types": [f"t{n}"], "order": {f"t{n}": "user"}})),
    "epochs": ("bridge", lambda n: Hello(1, "bridge", "eve", {"epoch": f"x{n}"})),
    "bridges": ("bridge", lambda n: Hello(1, "bridge", f"eve{n}", {})),
    "sessions": ("bridge", lambda n: Open(n, f"u{n}")),
    "connections": ("bridge", lambda n: Open(n, "eve")),
    "logins": ("bridge", lambda n: Login(n, f"u{n}", "right", f"10.1.0.{n}")),
    "submits": ("bridge", lambda n: Submit(n, 1, "none", b"1", {"dedup": f"d{n}"})),
    "refused": ("bridge", lambda n: Submit(n, 10**6, "shared", b"1", {})),
    "strangers": ("bridge", lambda n: Submit(n, None, "a", b"1", {"address": f"10.0.1.{n}", "server": "n1"})),
    "confirms": ("bridge", lambda n: Confirm(n, [n], [[n, n, "timeout"]], n)),
    "questions": ("bridge", lambda n: Ask(n, "outcome", [1, f"s1/x/{n}"])),
    "emits": ("handler", lambda n: Emit(n, "a", [Command("sendClients", ["carol"], b"1")], {"id": f"e{n}"})),
    "senders": ("handler", lambda n: Emit(n, "a", [Command("sendServers", [f"h{n}:5"], b"1")], {})),
    "lanes": ("handler", lambda n: Emit(n, "a", [Command("sendServers", ["s2"], b"1", f"t{n}")], {})),
    "replies": ("handler", lambda n: Reply(5000 + n, 0, [])),
    "relays": ("server", lambda n: Relay(n, "shared", b"1", {"id": f"s2/e-1/{n}", "lane": ["e", n, 0]})),
    "epochs of lanes": ("server", lambda n: Relay(n, "shared", b"1", {"lane": [f"e{n}", n, 0]})),
    "types of relays": ("server", lambda n: Relay(n, f"t{n}", b"1", {"id": f"s2/e-1/{n}"})),
    "letters": ("operator", lambda n: Ask(n, "deadReplay", None)),
}
"""Messages to be sent many times over, each a little different, and the role that may send them."""
FLOOD = 250


def _flood(world: World, odd: Odd) -> int:
    """Send one message again and again from one party; or let many parties come and send one each."""
    name = odd.pick(sorted(FLOODS))
    role, make = FLOODS[name]
    start = odd.chance.randrange(10_000)
    messages = [make(n) for n in range(start, start + FLOOD)]
    hello = Hello(1, role, odd.pick(("s2", "eve")), {"types": ["a"], "credit": 30, "epoch": "flood"})
    if odd.one_in(3):
        world.told(f"{FLOOD} come and say {messages[0]!r:.200}")
        for message in messages:
            party = world.newcomer(odd)
            party.roles.add(role)
            world.say(party.link, [hello, message] if odd.one_in(2) else [message])
            world.honest.turn()
        return FLOOD
    party = odd.pick(world.evil)
    party.roles.add(role)
    world.told(f"{party.link.door} {party.link.key!r} says {FLOOD} times the like of {messages[0]!r:.200}")
    world.say(party.link, [hello, *messages])
    return FLOOD


_BY_ROLE: dict[str, tuple[int, ...]] = {
    "handler": (1, 4, 11, 11, 11, 12, 14),
    "bridge": (1, 20, 22, 23, 24, 24, 27, 27, 33, 14),
    "server": (1, 30, 30, 30),
    "operator": (14,),
    "linked": (31, 31, 5),
}


def _row_of(party: Party, odd: Odd) -> Any:
    """Return a row for a party: an answer to a received message, an operation of its role, or anything."""
    spec: Operation | None = None
    if not party.roles and not odd.one_in(3):
        spec = SPECS[1]
    elif party.roles and not odd.one_in(6):
        spec = SPECS[odd.pick(_BY_ROLE[party.bent])]
    row = odd.row(spec)
    if row[0] == 1 and len(row) > 3 and not odd.one_in(5):
        row[1:4] = 1, party.bent, "s2" if party.bent == "server" else row[3]
    if party.last and not odd.one_in(4):
        row = _answering(party, row, odd)
    return odd.mutated(row) if odd.one_in(4) else row


def _answering(party: Party, row: list[Any], odd: Odd) -> list[Any]:
    """Put a received token or serial into a row, as its first field."""
    received = odd.pick(party.last)
    if row[0] == 30 and odd.one_in(4):
        return [30, row[1], "bester.outcome", b'{"message":"%b","outcome":"%b"}' % _news(odd), {}]
    if len(row) > 1 and type(row[1]) is int and type(received) in (Request, Relay, Forward, Deliver, LoggedIn):
        row[1] = received[0]
        if row[0] in (31, 33) and odd.one_in(2):
            return [*row[:2], "queued", {"queued": 1, "reported": True}]
        if row[0] == 27 and len(row) > 3:
            row[2], row[3] = [received[0]], [[received[0], 0, odd.pick(("not-connected", "unconfirmed", odd.text()))]]
    return row


def _news(odd: Odd) -> tuple[bytes, bytes]:
    """Return a later outcome that a server may send: the message's id, and the outcome."""
    return b"s1/emit-e/%d.0.0" % odd.chance.randrange(1, 60), odd.pick(OUTCOMES).encode()


def _end(world: World) -> None:
    """Check the end: the evil parties live on in silence, then leave. Every honest party has its reports.

    A bridge is trusted to confirm its deliveries, which have no deadline: a bridge knows its clients, and ends those
    that read nothing. So a report waits for the end of an evil bridge where an evil handler has sent to users of that
    bridge. No other report does: as many deliveries are unconfirmed as reports are due, and none of an honest handler's
    messages is among these.
    """
    world.told("the others say nothing more")
    world.honest.turn()
    world.wait(GRACE_S, evil=True)
    world.honest.turn()
    waiting = world.honest.waiting
    must(GOOD not in waiting.values(), f"everybody honest has a report: {waiting}")
    unconfirmed = world.router.inspect().deliveries
    must(len(waiting) <= unconfirmed, f"reports wait for evil bridges alone: {waiting}, {unconfirmed} deliveries")
    _look(world, "while the others live")
    world.told("the others are gone")
    world.wait(2 * GRACE_S, evil=False)
    must(not world.honest.waiting, f"everybody honest has a report in the end: {world.honest.waiting}")
    must(world.router.idle, "nothing is owed a report")
    _look(world, "when the others are gone")


def _look(world: World, when: str) -> None:
    sizes = census(world.router, (Clock, Settings, MemoryStore))
    sizes = {way: size for way, size in sizes.items() if not way.startswith(TRUSTED)}
    large = {way: size for way, size in sizes.items() if size > MOST.get(way, SHORT if way.endswith(LENGTH) else SMALL)}
    must(not large, f"tables are bounded {when}: {large}")
