"""A stand for the broker's core: parties that speak to one Router by hand, a store in memory, a clock moved by hand.

Whatever the router wants written is committed before what it says is heard, as its shell does; `disk = False` holds
that back until `commit` is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from bester.broker.core.router import Router
from bester.broker.core.values import Action, Limits, Link, LookUp, Notice, Restart, Send, Settings, Verify
from bester.broker.store.memory import MemoryStore
from bester.broker.store_requests import Entry, Fetch, Read, Write, mailbox
from bester.broker.wire.messages import (
    Answer,
    Ask,
    Command,
    Confirm,
    Deliver,
    Emit,
    Heartbeat,
    Hello,
    Malformed,
    Message,
    Open,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
    Submit,
    Welcome,
)

START = 1000.0
M = TypeVar("M")


def clients(*names: str, body: bytes = b'"hi"') -> Command:
    return Command("sendClients", list(names), body)


def servers(*names: str, body: bytes = b'"hi"', as_type: str | None = None) -> Command:
    return Command("sendServers", list(names), body, as_type)


def handler(type_: str, body: bytes = b'"hi"') -> Command:
    return Command("sendHandler", [type_], body)


@dataclass
class Stand:
    """One router with everything it says sorted by link. `inbox` holds what was not looked at yet."""

    settings: Settings = field(default_factory=lambda: Settings("s1", open_accounts=True))
    accounts: frozenset[str] = frozenset()
    now: float = START
    store: MemoryStore = field(default_factory=lambda: MemoryStore(epoch="store"))
    disk: bool = True
    wall_offset_s: float = 0.0
    boot: str = "boot"
    processes: dict[Link, int] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.begin()
        self.inbox: dict[Link, list[Message]] = {}
        self.notices: list[Notice] = []
        self.verifies: list[Verify] = []
        self.looked_up: list[frozenset[str]] = []
        self.restarts: list[Restart] = []
        self.alive: dict[Link, None] = {}
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self._said: list[Send] = []
        self._keys = count()
        self._tokens = count(1)

    # --- what happens ---

    @property
    def wall_s(self) -> float:
        """What the wall clock shows."""
        return self.now + self.wall_offset_s

    def tick(self) -> None:
        """Let the router notice the time."""
        self.take(self.router.tick(self.now, self.wall_s))

    def begin(self, epoch: str = "e") -> None:
        """Start the router, with what the store holds."""
        self.router = Router(
            self.settings, epoch=epoch, first_token=5000, now=self.now, wall_s=self.wall_s, boot=self.boot,
            is_account=lambda name: name in self.accounts,
            snapshot=self.store.open(), chance=lambda: 1.0,
            process_of=self.processes.get, is_stopped=self.stopped.__contains__,
        )  # fmt: skip

    def restart(self, epoch: str = "e2") -> None:
        """The broker is killed and started again: what it had not written is gone, and so are all links."""
        self.writes.clear()
        self.reads.clear()
        self._said.clear()
        self.inbox.clear()
        self.alive.clear()
        self.begin(epoch)

    def take(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._said.append(action)
            elif isinstance(action, Notice):
                self.notices.append(action)
            elif isinstance(action, Verify):
                self.verifies.append(action)
            elif isinstance(action, LookUp):
                self.looked_up.append(action.servers)
            elif isinstance(action, Restart):
                self.restarts.append(action)
            elif isinstance(action, Read):
                self.reads.append(action)
            else:
                self.writes.append(action)
        if self.disk:
            self.commit()

    def commit(self) -> None:
        """Write what is to be written, read what is to be read, and let hear what was said."""
        disk, self.disk = self.disk, False
        while self.writes or self.reads:
            writes, self.writes = self.writes, []
            if writes:
                self.take(self.router.on_committed(writes, self.store.commit(writes), self.now))
            reads, self.reads = self.reads, []
            for read in reads:
                self.take(self.router.on_read(read, self.store.read(read), self.now))
        self.disk = disk
        said, self._said = self._said, []
        for action in said:
            self.inbox.setdefault(action.link, []).append(action.message)

    def kept(self, queue: str) -> list[Entry]:
        """Return what waits in a box, on the disk."""
        found: list[Entry] = self.store.read(Fetch(queue, 0, 10_000, 2**40))
        return found

    def mail(self, user: str) -> list[bytes]:
        """Return the bodies that wait for a user."""
        return [entry.body for entry in self.kept(mailbox(user))]

    def say(self, link: Link, message: Message | Malformed) -> None:
        self.take(self.router.receive(link, message, self.now))

    def wait(self, seconds: float, step_s: float = 0.5) -> None:
        """Let time pass; whoever is alive is heard in every step."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + step_s, end)
            for link in self.alive:
                self.say(link, Heartbeat())
            self.tick()

    # --- what was said ---

    def heard(self, link: Link) -> list[Message]:
        """Return and forget what was said to a link, heartbeats aside."""
        return [message for message in self.inbox.pop(link, []) if not isinstance(message, Heartbeat)]

    def heard_of(self, link: Link, kind: type[M]) -> list[M]:
        """Return and forget what of this kind was said to a link; the rest stays."""
        found: list[M] = [message for message in self.inbox.get(link, []) if isinstance(message, kind)]
        self.inbox[link] = [message for message in self.inbox.get(link, []) if not isinstance(message, kind)]
        return found

    def one(self, link: Link, kind: type[M]) -> M:
        """Return the only message of this kind that was said to a link."""
        found = self.heard_of(link, kind)
        assert len(found) == 1, f"{len(found)} of {kind.__name__}: {found}"
        return found[0]

    # --- parties ---

    def link(self, door: str = "ipc") -> Link:
        return Link(door, b"%d" % next(self._keys))

    def join(self, role: str, name: str, options: dict[str, Any] | None = None, *, door: str = "ipc") -> Link:
        link = self.link(door)
        self.say(link, Hello(1, role, name, options or {}))
        assert isinstance(self.inbox[link][0], Welcome), self.inbox[link]
        del self.inbox[link][0]
        self.alive[link] = None
        return link

    def handler(self, *types: str, credit: int = 100, name: str = "h", **options: Any) -> Link:
        return self.join("handler", name, {"types": list(types), "credit": credit, **options})

    def bridge(self, *users: str, name: str = "b", door: str = "ipc") -> Link:
        """A bridge whose sessions 1, 2, … are these users'."""
        link = self.join("bridge", name, {"epoch": f"x{next(self._keys)}"}, door=door)
        for session, user in enumerate(users, 1):
            self.say(link, Open(session, user))
        return link

    def server(self, name: str, door: str = "ipc") -> Link:
        return self.join("server", name, door=door)

    # --- what parties do ---

    def submit(self, bridge: Link, type_: str, body: bytes = b"1", *, session: int | None = 1, **meta: Any) -> int:
        token = next(self._tokens)
        self.say(bridge, Submit(token, session, type_, body, meta))
        return token

    def request(self, link: Link) -> Request:
        return self.one(link, Request)

    def reply(self, link: Link, token: int, *commands: Command, status: int = 0) -> None:
        self.say(link, Reply(token, status, list(commands)))

    def answer(self, link: Link, *commands: Command) -> Request:
        """Answer the only request that this handler was given."""
        request = self.request(link)
        self.reply(link, request.token, *commands)
        return request

    def emit(self, link: Link, type_: str, *commands: Command, **meta: Any) -> int:
        token = next(self._tokens)
        self.say(link, Emit(token, type_, list(commands), meta))
        return token

    def relay(self, link: Link, type_: str, body: bytes = b"1", **meta: Any) -> int:
        token = next(self._tokens)
        self.say(link, Relay(token, type_, body, meta))
        return token

    def relayed(self, server: str, token: int, outcome: str) -> None:
        """The server that this broker is linked to has answered."""
        self.say(Link("server", server.encode()), Relayed(token, outcome))

    def ask(self, link: Link, question: str, argument: Any = None) -> Answer:
        token = next(self._tokens)
        self.say(link, Ask(token, question, argument))
        answer = self.one(link, Answer)
        assert answer.token == token
        return answer

    def deliver(self, bridge: Link, *failed: tuple[int, str]) -> Deliver:
        """The bridge delivers the only delivery it was given, all but (t, reason)."""
        delivery = self.one(bridge, Deliver)
        self.say(bridge, Confirm(delivery.serial, [], [[delivery.serial, t, reason] for t, reason in failed]))
        return delivery

    def report(self, bridge: Link, token: int | None = None) -> Report:
        report = self.one(bridge, Report)
        assert token is None or report.token == token
        return report


def limited(**limits: Any) -> Settings:
    """Settings of a server with these limits."""
    return Settings("s1", open_accounts=True, limits=Limits(**limits))
