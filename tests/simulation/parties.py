"""Bridges and handlers of the simulation: as simple as they can be, and as unreliable as the seed says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from bester.broker.core.values import Link
from bester.broker.wire.messages import (
    Close,
    Command,
    Confirm,
    Deliver,
    Emit,
    Error,
    Forward,
    Forwarded,
    Heartbeat,
    LoggedIn,
    Login,
    Malformed,
    Message,
    Open,
    Outcome,
    Reply,
    Report,
    Request,
    Submit,
    Welcome,
)
from bester.broker.wire.party import Party
from tests.simulation.world import SimLink, SimServer, Weather, World


class BrokenRuleError(AssertionError):
    """Something happened that never may."""


@dataclass
class Submission:
    """A message a client submitted, and the reports it got."""

    server: str
    session: int | None
    type: str
    body: bytes
    at: float
    reports: list[Report] = field(default_factory=list)


@dataclass
class Session:
    """A user's connection: what arrived, as (result id, type, body)."""

    user: str
    number: int = 0
    open: bool = False
    got: list[tuple[str, str, bytes]] = field(default_factory=list)


class SimBridge:
    """A bridge without connections: sessions are lists. `slow_s` is the longest a delivery takes to leave."""

    def __init__(
        self, world: World, server: SimServer, name: str, *, direct: bool = False, weather: Weather | None = None,
        slow_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.world = world
        self.server = server
        self.name = name
        self.slow_s = slow_s
        self.sessions: dict[int, Session] = {}
        self.submissions: dict[int, Submission] = {}
        self.stray: list[Report] = []
        self.forward: Callable[[Forward], str | None] = lambda message: "failed:unreachable"
        self._waiting: dict[int, Submission] = {}
        self._numbers = count(1)
        self._tokens = count(1)
        self._life = 0
        self._done: dict[int, list[tuple[int, str]]] = {}
        self._upto = 0
        self._early: set[int] = set()
        weather = weather or Weather()
        self._hello = Party("bridge", name, {"epoch": f"{name}{world.new_key().decode()}"})
        self._ready = False
        self.link: SimLink | None = None
        self._direct: Link | None = None
        if direct:
            server.on_restart.append(self._greet)
            self._greet()
        else:
            self.link = SimLink(
                world, server, self._hello, weather, weather,
                on_message=self._received, on_ready=self._on_ready, on_lost=self._on_lost,
            )  # fmt: skip

    def _greet(self) -> None:
        if self._ready:
            self._on_lost("the broker has restarted")
        link = self._direct = Link("direct", self.world.new_key())
        self.server.direct = {link: lambda message: self.world.after(0.0, lambda: self._received(message))}
        self.server.receive(link, self._hello.hello)
        self._on_ready()

    # --- what clients do ---

    def login(self, user: str, password: str = "secret") -> Session:
        """Connect a user; the session opens when the broker agrees."""
        session = Session(user, next(self._numbers))
        self.sessions[session.number] = session
        self._say(Login(session.number, user, password, "127.0.0.1"))
        return session

    def close(self, session: Session) -> None:
        """The user goes."""
        session.open = False
        self.sessions.pop(session.number, None)
        self._say(Close(session.number))

    def submit(self, session: Session | None, type_: str, body: bytes, **meta: Any) -> Submission:
        """Submit a message of a session, or of a native server."""
        token = next(self._tokens)
        number = session.number if session else None
        submission = self.submissions[token] = Submission(self.server.name, number, type_, body, self.world.now)
        self._waiting[token] = submission
        if not self._say(Submit(token, number, type_, body, meta)):
            self._report(Report(token, 1, "unreachable", None, {}))
        return submission

    def forwarded(self, token: int, outcome: str) -> None:
        """What became of a forward."""
        self._say(Forwarded(token, outcome))

    # --- the link ---

    def _say(self, message: Message) -> bool:
        if self._direct is not None:
            self.server.receive(self._direct, message)
            return True
        return self.link is not None and self.link.send(message)

    def _on_ready(self) -> None:
        if self._ready:
            self._on_lost("welcomed again")
        self._ready = True
        for session in list(self.sessions.values()):
            if session.open:
                self._say(Open(session.number, session.user))
            else:
                self._say(Login(session.number, session.user, "secret", "127.0.0.1"))

    def _on_lost(self, why: str) -> None:
        self._ready = False
        self._life += 1
        self._done.clear()
        self._early.clear()
        self._upto = 0
        for token in list(self._waiting):
            self._report(Report(token, 1, "unreachable", None, {}))

    def _received(self, message: Message | Malformed) -> None:
        match message:
            case LoggedIn():
                session = self.sessions.get(message.session)
                if session is not None and message.status == 0:
                    session.open = True
            case Report():
                self._report(message)
            case Deliver():
                life = self._life
                self.world.after(self.world.random.uniform(0, self.slow_s), lambda: self._deliver(message, life))
            case Forward():
                outcome = self.forward(message)
                if outcome is not None:
                    self.forwarded(message.token, outcome)
            case Error() | Heartbeat() | Welcome():
                pass
            case _:
                raise BrokenRuleError(f"{self.name} was sent {message}")

    # --- what it promises ---

    def _deliver(self, message: Deliver, life: int) -> None:
        failed: list[tuple[int, str]] = []
        for t, *numbers in message.targets:
            there = [self.sessions[number] for number in numbers if number in self.sessions]
            there = [session for session in there if session.open]
            for session in there:
                session.got.append((f"{message.id}.{t}", message.type, message.body))
            if not there:
                failed.append((t, "not-connected"))
        self.world.tell(self.name, "delivers", (message.serial, message.id, message.targets, failed))
        if life != self._life:
            return
        if message.token is not None and not failed and message.token in self._waiting:
            self._report(Report(message.token, 0, None, message.meta["message"], {}))
        if not self._done:
            self.world.after(0.0, lambda: self._confirm(life))
        self._done[message.serial] = failed

    def _confirm(self, life: int) -> None:
        if life != self._life or not self._done:
            return
        done, self._done = self._done, {}
        early = set(done) | self._early
        while self._upto + 1 in early:
            self._upto += 1
            early.discard(self._upto)
        self._early = early
        rows: list[list[Any]] = [[serial, t, reason] for serial, failed in done.items() for t, reason in failed]
        self._say(Confirm(self._upto, sorted(set(done) & early), rows))

    def _report(self, report: Report) -> None:
        submission = self._waiting.pop(report.token, None)
        if submission is None:
            # Of an earlier life of the link, whose messages were reported as unreachable; else it is one too many.
            told = self.submissions.get(report.token)
            if told is None or told.reports[0].reason != "unreachable" or told.reports[0].message is not None:
                raise BrokenRuleError(f"{self.name}: a second report {report}, after {told and told.reports}")
            self.stray.append(report)
            return
        submission.reports.append(report)


Behaviour = Callable[[Request], "list[Command] | str | None"]
"""What a handler does with a request: commands; None: it failed; `silent`: never answers; `die`: its process ends."""


class SimHandler:
    """A worker. `fastest_s` to `slowest_s` is how long it takes over a request."""

    def __init__(
        self, world: World, server: SimServer, name: str, types: list[str], behaviour: Behaviour, *, credit: int = 4,
        weather: Weather | None = None, fastest_s: float = 0.0, slowest_s: float = 0.0, order: bool = False,
    ) -> None:  # fmt: skip
        self.world = world
        self.name = name
        self.credit = credit
        self.behaviour = behaviour
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], None] = lambda request: None
        self.outcomes: dict[int, Outcome] = {}
        self._tokens = count(1)
        self._took = (fastest_s, slowest_s)
        self._held: dict[int, Request] = {}
        self._life = 0
        self._thaw_at = 0.0
        options: dict[str, Any] = {"types": types, "credit": credit}
        if order:
            options["order"] = dict.fromkeys(types, "user")
        weather = weather or Weather()
        self.link = SimLink(
            world, server, Party("handler", name, options), weather, weather,
            on_message=self._received, on_ready=lambda: None, on_lost=self._on_lost,
        )  # fmt: skip

    def _on_lost(self, why: str) -> None:
        self._held.clear()
        self._life += 1

    def die(self) -> None:
        """The process ends, and comes back under a new link."""
        self.world.tell(self.name, "DIES")
        self.link.crash()

    def freeze(self, seconds: float) -> None:
        """The process is stopped for a while; then it goes on where it was."""
        self.world.tell(self.name, "FREEZES", f"for {seconds:.1f} s")
        self._thaw_at = max(self._thaw_at, self.world.now + seconds)
        self.link.party.sent(self._thaw_at)  # no heartbeats meanwhile

    def emit(self, type_: str, said: list[Command], id_: str) -> int:
        """Act of its own initiative; returns the token that the outcome will have."""
        token = next(self._tokens)
        self.link.send(Emit(token, type_, said, {"id": id_}))
        return token

    def _received(self, message: Message | Malformed) -> None:
        match message:
            case Request():
                self._held[message.token] = message
                if len(self._held) > self.credit:
                    raise BrokenRuleError(f"{self.name} holds {len(self._held)} requests; its credit is {self.credit}")
                self.requests.append(message)
                self.on_request(message)
                life = self._life
                self._after(self.world.random.uniform(*self._took), lambda: self._work(message, life))
            case Outcome():
                if message.token in self.outcomes:
                    raise BrokenRuleError(f"{self.name}: a second outcome {message}")
                self.outcomes[message.token] = message
            case Error():
                if message.code != "unknown-token":
                    self.world.tell(self.name, "is told", message)
            case Heartbeat():
                pass
            case _:
                raise BrokenRuleError(f"{self.name} was sent {message}")

    def _after(self, delay_s: float, call: Callable[[], None]) -> None:
        def when_awake() -> None:
            if self.world.now < self._thaw_at:
                self.world.after(self._thaw_at - self.world.now, when_awake)
            else:
                call()

        self.world.after(delay_s, when_awake)

    def _work(self, request: Request, life: int) -> None:
        said = self.behaviour(request)
        if said == "die":
            if life == self._life:
                self.die()
            return
        if said == "silent":
            return
        reply = Reply(request.token, 1, [], "failed") if said is None else Reply(request.token, 0, said)  # type: ignore[arg-type]  # the other strings were dealt with
        if life == self._life or self.world.random.random() < 0.5:  # a confused one answers on the new link
            self._held.pop(request.token, None)
            self.link.send(reply)
