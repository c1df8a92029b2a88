"""Messages of the brokers: each goes to the part of the bridge that it concerns, in order. Pure.

Deliveries of more copies than a turn may make go on in the next turns, where users take turns; all else passes by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from bester.bridge.brokers import Broker, Brokers
from bester.bridge.deliveries import Deliveries
from bester.bridge.forwards import Forwards
from bester.bridge.intake import Intake
from bester.bridge.limits import Limits
from bester.bridge.logins import Logins
from bester.bridge.marked import Marked
from bester.bridge.ports import ClientConnection, Shell
from bester.bridge.registry import Registry
from bester.bridge.reports import Reports
from bester.bridge.steps import Step
from bester.broker.wire.messages import (
    OP_OF,
    Answer,
    Ask,
    Close,
    Deliver,
    Error,
    Forward,
    Goodbye,
    Heartbeat,
    LoggedIn,
    Login,
    Malformed,
    Message,
    Meta,
    Report,
    Submit,
    Welcome,
)


class Incoming:
    """Receiver of the brokers' messages, of one broker at a time. `apply` carries out the step of a session, `ready`
    and `lost` take in the beginning and the end of a direct link, and `wake` makes held messages be sent at the end of
    this turn."""

    def __init__(
        self, limits: Limits, shell: Shell, brokers: Brokers, registry: Registry, intake: Intake, logins: Logins,
        forwards: Forwards, reports: Reports, deliveries: Deliveries,
        *, apply: Callable[[ClientConnection, Step, float], None], ready: Callable[[Meta, Broker], None],
        lost: Callable[[str, Broker], None], wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._clock, self._later, self._notice = shell.clock, shell.later or shell.soon, shell.notice
        self._turn_frames, self._turn_write_s, self._brief = limits.turn_frames, limits.turn_write_s, shell.brief
        self._are_several = brokers.are_several
        self._targets = registry.targets
        self._intake = intake
        self._logins = logins
        self._forwards = forwards
        self._reports = reports
        self._on_reports, self._count_reports = reports.on_reports, deliveries.on_reports
        self._deliveries = deliveries
        self._marked = Marked()
        self._apply, self._ready, self._lost, self._wake = apply, ready, lost, wake
        self._broker = brokers.first

    def _turn_to(self, broker: Broker) -> None:
        """Handle messages of a broker from now on."""
        self._broker = broker
        self._reports.turn_to(broker)
        self._deliveries.turn_to(broker)

    def on_link_lost(self, broker: Broker) -> None:
        """Take in that the messages of a broker come by a new link from now on."""
        if broker is self._broker:
            self._turn_to(broker)

    def receive(self, messages: Sequence[Message | Malformed], broker: Broker | None = None) -> None:
        """Handle messages of a broker, in order. Deliveries of more copies than a turn may make go on in the next
        turns, where users take turns."""
        if broker is not None and broker is not self._broker:
            self._turn_to(broker)
        broker = self._broker
        if broker.backlog.waits:
            messages = broker.backlog.take_in(messages)
        now = self._clock()
        left = self._handle(messages, now)
        if left:
            passing = broker.backlog.take_in(left)
            self._later(partial(self._go_on, broker))
            self._handle(passing, now)

    def _handle(self, messages: Sequence[Message | Malformed], now: float) -> list[Message | Malformed]:
        """Handle messages of the broker, in order; return those that the turn has no time for."""
        frames = self._turn_frames
        left: list[Message | Malformed] = []
        for kind, run in _runs(messages):
            if frames <= 0:
                left.extend(run)
            elif kind is Deliver:
                deliveries = self._marked.take(run) if self._are_several else run
                handled, frames = self._deliveries.deliver(deliveries, now, frames)
                if frames <= 0:
                    left = list(deliveries[handled:])
            elif kind is Report:
                self._on_reports(run, now)
                self._count_reports(len(run))
                if self._broker.submissions.has_held or self._intake.has_more:  # for credit, which there is again
                    self._wake()
            else:
                for message in run:
                    self._receive_rarer(message, now)
        return left

    def _go_on(self, broker: Broker) -> None:
        """Handle deliveries that an earlier turn has left, within the budget of a turn."""
        if broker is not self._broker:
            self._turn_to(broker)
        backlog, frames = broker.backlog, self._turn_frames
        now = self._clock()
        enough = now + self._brief.part(self._turn_write_s, now)
        while backlog.is_ready and frames > 0 and self._clock() < enough:
            message = backlog.pop()
            if isinstance(message, Deliver):
                _, frames = self._deliveries.deliver(self._marked.take((message,)), now, frames - 1)
            else:
                self._receive_rarer(message, now)
        if backlog.is_ready:
            self._later(partial(self._go_on, broker))
        else:
            self.receive(backlog.take_behind(), broker)

    def _receive_rarer(self, message: Message | Malformed, now: float) -> None:
        match message:
            case LoggedIn():
                self._logins.on_answer(message, self._broker, now)
            case Answer():
                self._broker.link.on_answer(message.token, message.status, message.value)
            case Forward():
                self._forwards.begin(message, self._broker)
            case Close():
                connection = self._targets.get(message.session)
                if connection is not None:
                    self._apply(connection, connection.session.shut_down(now), now)
            case Error():
                self._on_error(message, now)
            case Welcome():  # on a direct link; a FabricLink calls the bridge's `on_link_ready` itself
                self._ready(message.options, self._broker)
            case Goodbye():
                self._lost("it sent GOODBYE", self._broker)
            case Heartbeat():
                if message.options:
                    self.on_credit(self._broker, message.options)
            case _:
                self._notice(f"the broker sent a message that is not for a bridge: {type(message).__name__}")

    def on_credit(self, broker: Broker, options: Meta) -> None:
        """Take in what a broker tells of its credit; without options, that there is none to keep to."""
        if broker.submissions.on_credit(options):
            self._intake.on_credit()

    def _on_error(self, error: Error, now: float) -> None:
        """Report a message, a login or a question that the broker could not take to its sender."""
        if error.token is not None and error.op == OP_OF[Submit]:
            self._reports.report(error.token, 1, error.code, None, {}, now)
        elif error.token is not None and error.op == OP_OF[Login]:
            self._logins.on_answer(LoggedIn(error.token, 1, error.code), self._broker, now)
        elif error.token is not None and error.op == OP_OF[Ask]:
            self._broker.link.on_answer(error.token, 1, None)
        else:
            self._notice(f"the broker refused: {error.code}: {error.text}")


def _runs(messages: Sequence[Any]) -> Iterable[tuple[type[Any], Sequence[Any]]]:
    """Return the runs of messages of one class, in order."""
    if len(messages) == 1:
        return ((type(messages[0]), messages),)
    return [(kind, list(run)) for kind, run in groupby(messages, type)]
