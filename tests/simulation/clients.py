"""Clients of the simulation: the real client core, one connection after the other, and all that it sent and got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from bester.bridge.frames import frame
from bester.client.core import Core
from bester.client.events import Answered, Arrived, Ended, Event, Failed, Lost, Ready, Reported
from bester.client.frames import Message, Report, Terms
from bester.client.states import State
from tests.simulation.bridges import Connection, SimBridge
from tests.simulation.world import BrokenRuleError, World

AGAIN_S = 1.0
"""A client that never was logged in is told so, and whoever runs it tries again."""


@dataclass
class Submission:
    """A message that was submitted, and how it ended: by reports, or by `failed`, or by nothing (`forgiven`: whoever
    submitted it is dead)."""

    client: SimClient
    life: int
    number: int
    type: str
    body: bytes
    terms: Terms
    at: float
    crashes: int
    reports: list[Report] = field(default_factory=list)
    failed: str | None = None
    forgiven: bool = False
    answers: list[dict[str, str] | None] = field(default_factory=list)

    def __repr__(self) -> str:
        said = [(report.good, report.reason, report.message, report.recipients) for report in self.reports]
        end = "forgiven" if self.forgiven else self.failed or said
        return (
            f"number {self.number} of {self.client.name} ({self.client.user} at {self.client.server.name}), "
            f"{self.type} {self.body.decode()} {self.terms}: {end}, and then {self.answers}"
        )


@dataclass
class Arrival:
    """What came on a connection: the result's id, its type and body, and whether it is marked as a repetition."""

    at: float
    life: int
    id: str
    type: str
    body: bytes
    marked: bool


class _Core(Core):
    """Tells of every message that comes, those too that it passes over because they came before."""

    seen: Callable[[Message, bool], None]

    def _message(self, message: Message) -> list[Event]:
        self.seen(message, self.state is State.READY)
        return super()._message(message)


class SimClient:
    """One device of a user. `ack`: it acknowledges what it got, after a while."""

    def __init__(self, world: World, bridges: list[SimBridge], name: str, user: str, *, ack: bool) -> None:
        self.world = world
        self.bridges = bridges
        self.server = bridges[0].server
        self.name = name
        self.user = user
        self.ack = ack
        self.life = 0
        self.submissions: list[Submission] = []
        self.arrivals: list[Arrival] = []
        self.outcomes: list[Arrival] = []
        self.lost: list[bytes] = []  # what had left a bridge for it and never came, of lives that did not acknowledge
        self.connections = 0
        self.alien: Callable[[str, dict[str, str] | None], None] = lambda message, recipients: None
        self._core: _Core | None = None
        self._connection: Connection | None = None
        self._waiting: dict[str, Submission] = {}
        self._asked: dict[str, Submission] = {}
        self._aliens: dict[str, str] = {}
        self._timer = 0
        self._flushing = False

    # --- coming and going ---

    @property
    def here(self) -> bool:
        """Is its process running?"""
        return self._core is not None

    @property
    def ready(self) -> bool:
        """Is it logged in?"""
        return self._core is not None and self._core.state is State.READY

    @property
    def unreported(self) -> int:
        """How many of its messages wait for their end."""
        return len(self._waiting)

    def come(self) -> None:
        """Its process starts."""
        if self._core is not None:
            return
        self.life += 1
        core = self._core = _Core(
            server=self.server.name, user=self.user, password="secret", dedup_prefix=f"{self.name}-{self.life}",
            random=self.world.random.random, ack=self.ack,
        )  # fmt: skip
        core.seen = self._seen
        self._dial_later(core, 0.0)

    def go(self) -> None:
        """The user leaves, politely: what was sent is still reported."""
        if self._core is not None:
            self.world.tell(self.name, "goes")
            self._act(self._core, self._core.leave(self.world.now, 5.0))
            self._wake()

    def die(self) -> None:
        """Its process ends: nobody waits for the reports any more."""
        if self._core is None:
            return
        self.world.tell(self.name, "DIES")
        self._core = None
        for submission in self._waiting.values():
            submission.forgiven = True
        self._waiting.clear()
        self._asked.clear()
        self._aliens.clear()
        self._drop()

    def cut(self, bridge_notices_s: float, client_notices_s: float) -> None:
        """Its connection breaks."""
        if self._connection is not None:
            self.world.tell(self.name, "IS CUT OFF")
            self._connection.cut(bridge_notices_s, client_notices_s)

    # --- what the application does ---

    def submit(self, number: int, type_: str, body: bytes, terms: Terms) -> None:
        """Submit a message, if it is running and was logged in."""
        core = self._core
        if core is None or not core.open or not core.room or not self._was_ready:
            return
        submission = Submission(
            self, self.life, number, type_, body, terms, self.world.now, self.server.crashes + self._bridge_crashes()
        )
        self.submissions.append(submission)
        id_ = core.submit(type_, body, terms)
        self._waiting[id_] = submission
        self.world.tell(self.name, f"submits {id_}", (type_, body, terms))
        self._wake()

    def ask(self, submission: Submission) -> bool:
        """Ask what became of a message of this user's."""
        message = submission.reports[0].message
        if not self.ready or message is None:
            return False
        assert self._core is not None
        self._asked[self._core.outcome(message)] = submission
        self._wake()
        return True

    def pry(self, message: str) -> None:
        """Ask what became of somebody else's message."""
        if self.ready:
            assert self._core is not None
            self._aliens[self._core.outcome(message)] = message
            self._wake()

    # --- its shell ---

    def _bridge_crashes(self) -> int:
        return sum(bridge.crashes for bridge in self.bridges)

    def _dial_later(self, core: _Core, delay_s: float) -> None:
        self.world.after(delay_s, partial(self._dial, core))

    def _dial(self, core: _Core) -> None:
        if core is not self._core or not core.dial():
            return
        bridge = self.world.random.choice(self.bridges)
        connection: list[Connection] = []

        def lost() -> None:
            if connection and self._connection is connection[0]:
                self._act(core, core.lost("it is gone", self.world.now))

        def came(data: bytes) -> None:
            if connection and self._connection is connection[0]:
                self._act(core, core.receive(data, self.world.now))
                self._wake()

        opened = bridge.connect(f"10.1.0.{self.name[1:]}", came, lost)
        if opened is None:
            self._act(core, core.lost("nobody listens", self.world.now))
            return
        self.connections += 1
        connection.append(opened)
        self._connection = opened
        core.opened(self.world.now)
        self._wake()

    def _act(self, core: _Core, events: list[Event]) -> None:
        for event in events:
            match event:
                case Reported():
                    self._reported(event.id, event.report)
                case Failed():
                    self._failed(event.id, event.error.code)
                case Arrived():
                    if event.message.id is not None and self.ack:
                        self._acknowledge_later(core, event.message.id)
                case Answered():
                    self._answered(event.id, event.recipients)
                case Ready():
                    self._was_ready = True
                    self.world.tell(self.name, "IS LOGGED IN")
                case Lost():
                    self._drop()
                    self._dial_later(core, event.retry_at - self.world.now)
                case Ended():
                    self._flush()
                    self._drop()
                    self._core = None
                    self._was_ready = False
                    if event.error is not None:
                        self.world.after(AGAIN_S, self.come)

    _was_ready = False

    def _acknowledge_later(self, core: _Core, id_: str) -> None:
        def acknowledge() -> None:
            if self._core is core:
                core.acknowledge(id_)
                self._wake()

        self.world.after(self.world.random.random() * 0.5, acknowledge)

    def _reported(self, id_: str, report: Report) -> None:
        submission = self._waiting.pop(id_, None)
        if submission is None:
            raise BrokenRuleError(f"{self.name} was given a second report, on {id_}: {report}")
        submission.reports.append(report)
        self.world.tell(self.name, f"is told of {id_}", report)

    def _failed(self, id_: str, code: str) -> None:
        submission = self._waiting.pop(id_, None)
        if submission is not None:
            submission.failed = code
            self.world.tell(self.name, f"gives up {id_}", code)
        self._asked.pop(id_, None)
        self._aliens.pop(id_, None)

    def _answered(self, id_: str, recipients: dict[str, str] | None) -> None:
        submission = self._asked.pop(id_, None)
        if submission is not None:
            self.world.tell(self.name, "learns", (submission.number, recipients))
            submission.answers.append(recipients)
        elif id_ in self._aliens:
            self.alien(self._aliens.pop(id_), recipients)

    def _seen(self, message: Message, listening: bool) -> None:
        if message.id is None:
            raise BrokenRuleError(f"{self.name} got a message without an id: {message}")
        if not listening:  # who has said goodbye is given what comes no more
            self.world.tell(self.name, "passes over", message)
            if not self.ack:
                self.lost.append(frame(message.frame))
            return
        arrival = Arrival(self.world.now, self.life, message.id, message.type, message.raw, message.redelivered)
        outcome = message.outcome
        self.world.tell(self.name, "GETS", arrival)
        (self.arrivals if outcome is None else self.outcomes).append(arrival)

    def _wake(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.world.after(0.0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        core, connection = self._core, self._connection
        if core is None:
            return
        if connection is not None:
            frames = core.take()
            if frames:
                connection.write(b"".join(frames))
        due = core.next_timer()
        if due is not None:
            self._timer += 1
            self.world.at(due, partial(self._tick, core, self._timer))

    def _tick(self, core: _Core, timer: int) -> None:
        if core is self._core and timer == self._timer:
            self._act(core, core.tick(self.world.now))
            self._wake()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.hang_up()
            if not self.ack:
                self.lost += connection.lost
                connection.lost = self.lost  # what follows
