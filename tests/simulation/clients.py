"""Clients of the simulation: devices that remember all that they sent and got, for the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bester.bridge.frames import frame
from bester.client.frames import Message, Report, Terms
from tests.world.bridges import SimBridge
from tests.world.clock import BrokenRuleError, World
from tests.world.connections import Connection
from tests.world.users import Device


@dataclass
class Submission:
    """A message that was submitted, and its end: reports, `failed`, or nothing (`forgiven`: its sender is dead)."""

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
        reports = [(report.good, report.reason, report.message, report.recipients) for report in self.reports]
        end = "forgiven" if self.forgiven else self.failed or reports
        return (
            f"number {self.number} of {self.client.name} ({self.client.user} at {self.client.server.name}), "
            f"{self.type} {self.body.decode()} {self.terms}: {end}, and then {self.answers}"
        )


@dataclass
class Arrival:
    """A message that came on a connection: the result's id, its type and body, and whether it is marked as
    redelivered."""

    at: float
    life: int
    id: str
    type: str
    body: bytes
    marked: bool


class SimClient(Device):
    """A device; `alien` takes the answers to questions about another user's messages."""

    def __init__(self, world: World, bridges: list[SimBridge], name: str, user: str, *, ack: bool) -> None:
        super().__init__(world, bridges, name, user, host=f"10.1.0.{name[1:]}", ack=ack)
        self.submissions: list[Submission] = []
        self.arrivals: list[Arrival] = []
        self.outcomes: list[Arrival] = []
        self.lost: list[bytes] = []  # lives without acks: bytes that left a bridge and never came
        self.alien: Callable[[str, dict[str, str] | None], None] = lambda message, recipients: None
        self._waiting: dict[str, Submission] = {}
        self._asked: dict[str, Submission] = {}
        self._aliens: dict[str, str] = {}

    @property
    def unreported(self) -> int:
        """The number of this client's messages that wait for their end."""
        return len(self._waiting)

    def die(self) -> None:
        """End the client's process: nobody waits for the reports any more."""
        if self.here:
            for submission in self._waiting.values():
                submission.forgiven = True
            self._waiting.clear()
            self._asked.clear()
            self._aliens.clear()
        super().die()

    def say(self, number: int, type_: str, body: bytes, terms: Terms) -> None:
        """Submit a message, where the client may."""
        if not self.may_submit:
            return
        crashes = self.server.crashes + sum(bridge.crashes for bridge in self.bridges)
        submission = Submission(self, self.life, number, type_, body, terms, self.world.now, crashes)
        self.submissions.append(submission)
        self._waiting[self.submit(type_, body, terms)] = submission

    def learn(self, submission: Submission) -> bool:
        """Ask for the outcome of a message of this user's; return whether the question was sent."""
        message = submission.reports[0].message
        if not self.ready or message is None:
            return False
        self._asked[self.ask(message)] = submission
        return True

    def pry(self, message: str) -> None:
        """Ask for the outcome of another user's message."""
        if self.ready:
            self._aliens[self.ask(message)] = message

    # --- callbacks ---

    def reported(self, id_: str, report: Report) -> None:
        submission = self._waiting.pop(id_, None)
        if submission is None:
            raise BrokenRuleError(f"{self.name} was given a second report, on {id_}: {report}")
        submission.reports.append(report)
        self.world.tell(self.name, f"is told of {id_}", report)

    def failed(self, id_: str, code: str) -> None:
        submission = self._waiting.pop(id_, None)
        if submission is not None:
            submission.failed = code
            self.world.tell(self.name, f"gives up {id_}", code)
        self._asked.pop(id_, None)
        self._aliens.pop(id_, None)

    def answered(self, id_: str, recipients: dict[str, str] | None) -> None:
        submission = self._asked.pop(id_, None)
        if submission is not None:
            self.world.tell(self.name, "learns", (submission.number, recipients))
            submission.answers.append(recipients)
        elif id_ in self._aliens:
            self.alien(self._aliens.pop(id_), recipients)

    def seen(self, message: Message, listening: bool) -> None:
        if message.id is None:
            raise BrokenRuleError(f"{self.name} got a message without an id: {message}")
        if not listening:  # a client that has said goodbye is given no messages any more
            self.world.tell(self.name, "passes over", message)
            if not self.ack:
                self.lost.append(frame(message.frame))
            return
        arrival = Arrival(self.world.now, self.life, message.id, message.type, message.raw, message.redelivered)
        outcome = message.outcome
        self.world.tell(self.name, "GETS", arrival)
        (self.arrivals if outcome is None else self.outcomes).append(arrival)

    def dropped(self, connection: Connection) -> None:
        if not self.ack:
            self.lost += connection.lost
            connection.lost = self.lost  # later losses of the connection are counted, too
