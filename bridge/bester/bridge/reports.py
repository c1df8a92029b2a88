"""Reports on their way to the senders of messages: the brokers' own, and those of the bridge. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from bester.bridge.brokers import Broker, Brokers
from bester.bridge.intake import Intake
from bester.bridge.outbound import Outbound
from bester.bridge.ports import ClientConnection
from bester.bridge.states import State
from bester.bridge.steps import Step
from bester.bridge.submission import Submission
from bester.bridge.submissions import Submissions

_OPEN = State.OPEN


class Reports:
    """Writer of one bridge's reports. `connections` are all of them, by session; `apply` carries out the step of a
    session, where a report lets held frames go on."""

    def __init__(
        self, brokers: Brokers, connections: Mapping[int, ClientConnection], intake: Intake, outbound: Outbound,
        apply: Callable[[ClientConnection, Step, float], None],
    ) -> None:  # fmt: skip
        self._brokers = brokers
        self._connections = connections
        self._intake = intake
        self._push = outbound.push
        self._apply = apply
        self.turn_to(brokers.first)

    def turn_to(self, broker: Broker) -> None:
        """Look for reported messages among those of this broker first, from now on."""
        self._submissions: Submissions = broker.submissions
        self._unreported: MutableMapping[int, Submission] = broker.submissions.by_token

    def on_reports(self, reports: Sequence[Any], now: float) -> None:
        """Pass on reports of a broker, in order."""
        for report in reports:
            token, status, reason, id_, recipients, note = report
            self.report(token, status, reason, id_, recipients, now, note)

    def report(
        self,
        token: int,
        status: int,
        reason: str | None,
        message: str | None,
        recipients: dict[str, str] | None,
        now: float,
        note: str | None = None,
    ) -> None:
        """Write the report on a message to its sender, unless there is one already, or the sender has gone."""
        submissions, submission = self._submissions, self._unreported.pop(token, None)
        if submission is None:
            found = self._brokers.take(token)
            if found is None:
                return  # reported already, by the bridge itself
            submissions, submission = found
        connection = self._connections.get(submission.session)
        if connection is None:
            submissions.release(submission)
            return
        session = connection.session
        self._push(connection, session.window.on_report(submission, status, reason, message, recipients, note))
        self.go_on(connection, now)

    def go_on(self, connection: ClientConnection, now: float) -> None:
        """Let frames of a connection that waited for room in the window go on, or the end that waited for reports."""
        session = connection.session
        if (session.held or session.state is not _OPEN) and session.has_more:
            if not session.has_waiting:
                self._apply(connection, session.proceed(now, 0), now)
            elif connection not in session.window.sender.blocked:  # or the intake looks at it in each turn
                self._intake.add(connection)
