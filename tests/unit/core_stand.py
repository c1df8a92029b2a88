"""A stand for the broker's core: parties that speak to one Router by hand, and a clock that moves when told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from bester.broker.core.router import Router
from bester.broker.core.values import Action, Limits, Link, Notice, Send, Settings, Verify
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

    def __post_init__(self) -> None:
        self.router = Router(
            self.settings, epoch="e", first_token=5000, now=self.now, is_account=lambda name: name in self.accounts
        )
        self.inbox: dict[Link, list[Message]] = {}
        self.notices: list[Notice] = []
        self.verifies: list[Verify] = []
        self.alive: dict[Link, None] = {}
        self._keys = count()
        self._tokens = count(1)

    # --- what happens ---

    def take(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.inbox.setdefault(action.link, []).append(action.message)
            elif isinstance(action, Notice):
                self.notices.append(action)
            else:
                self.verifies.append(action)

    def say(self, link: Link, message: Message | Malformed) -> None:
        self.take(self.router.receive(link, message, self.now))

    def wait(self, seconds: float, step_s: float = 0.5) -> None:
        """Let time pass; whoever is alive is heard in every step."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(self.now + step_s, end)
            for link in self.alive:
                self.say(link, Heartbeat())
            self.take(self.router.tick(self.now))

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
