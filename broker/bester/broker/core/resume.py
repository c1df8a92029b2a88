"""The state of a bridge that survives the loss of its link: unfinished submits, and unacknowledged reports. Pure.

A bridge that comes back on a new link submits again, under the same tokens, every message without a report. A message
that is still processed is not processed again, and a report that was lost with the link is sent again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from bester.broker.core.cases import Case, in_doubt
from bester.broker.core.effects import Link
from bester.broker.core.inspection import ResumeState
from bester.broker.core.unwritten_letters import NO_LETTER
from bester.broker.wire.messages import Message, Report

Unsent = tuple[Message, int]
"""A message that was not sent, and the dead letter that it waits for."""
SECOND = 2
"""Attempt of a message that a bridge submits again after its first loss of a link."""


class BridgeResume:
    """State of one bridge process that survives reconnects: its unfinished submits, and the reports it has not
    acknowledged.

    `link` is None between two links, `owner` the first one, whose party alone may come back; `since` is when the link
    was lost, or when reports of an earlier link began to be remembered. A bridge counts the reports on a link, so only
    the unacknowledged ones are remembered. Cases that have ended are swept out together, once there are `sweep_at` or
    more: taking out each as it ends would cost every message more. At most `max_unacked` reports are remembered for a
    bridge that counts none: the oldest are forgotten, and counted in `reached`. `is_shared`: the server may have other
    brokers, to which the bridge may turn.
    """

    def __init__(self, link: Link, sweep_at: int, max_unacked: int, reached: Counter[str], *, is_shared: bool) -> None:
        self._reached = reached
        self.is_shared = is_shared
        self._max_unacked = max_unacked
        self.link: Link | None = link
        self.owner = link
        self.since: float | None = None
        self._cases: dict[int, Case] = {}  # by token; some have ended
        self._sweep_at = self._swept_at = sweep_at
        self._sent: deque[Report] = deque()  # on this link
        self._sent_tokens: set[int] = set()  # their tokens
        self._counted = 0
        self._unacked: dict[int, tuple[Report, int]] = {}  # reports of earlier links and their letters, by token

    def inspect(self) -> ResumeState:
        """Return how much is remembered for the bridge."""
        recipients = sum(len(case.recipients or ()) for case in self._cases.values())
        return ResumeState(self.link is not None, len(self._cases), len(self._sent), len(self._unacked), recipients)

    def add(self, token: int, case: Case) -> None:
        """Remember a message that is submitted for the first time, or whose sender's name was looked up: the bridge may
        be away by then."""
        if len(self._cases) >= self._swept_at:
            self._sweep()  # before the case is in: nothing is pending for it yet
        self._cases[token] = case
        if self.link is None:
            self._watch(case)

    def remove(self, token: int) -> None:
        """Forget a case: another one stands for the message from now on."""
        self._cases.pop(token, None)

    def _sweep(self) -> None:
        self._cases = {token: case for token, case in self._cases.items() if case.pending}
        self._swept_at = max(self._sweep_at, 2 * len(self._cases))

    def on_case_ended(self, case: Case, answer: Message | None) -> None:
        """Remember the report of a case that was pending when a link was lost, unless the message was submitted again
        on the present link."""
        if self._cases.pop(case.token, None) is not None and type(answer) is Report and case.link != self.link:
            self._unacked[case.token] = answer, case.letter
            self._forget_oldest()

    def on_reports_sent(self, messages: Iterable[Message]) -> None:
        """Remember the reports among the messages that are sent on the bridge's link now."""
        reports = [message for message in messages if type(message) is Report]
        self._sent += reports
        self._sent_tokens.update(report.token for report in reports)
        if (over := len(self._sent) - self._max_unacked) > 0:
            self._reached["max_unacked"] += over
            self.on_reports_counted(self._counted + over)

    def on_reports_counted(self, reports: int) -> None:
        """Forget the first `reports` reports of this link: the bridge has received as many."""
        while self._counted < reports and self._sent:
            self._sent_tokens.discard(self._sent.popleft().token)
            self._counted += 1

    def on_link_lost(self, unsent: Iterable[Unsent], now: float) -> None:
        """Take in that the link is lost, or void: the bridge may have received none of its unacknowledged reports, nor
        those among the messages `unsent`, which this turn was about to send."""
        self._unacked.update((report.token, (report, NO_LETTER)) for report in self._sent)
        self._unacked.update((report.token, (report, letter)) for report, letter in unsent if type(report) is Report)
        self._forget_oldest()
        self._sent.clear()
        self._sent_tokens.clear()
        self._counted = 0
        self._sweep()
        for case in self._cases.values():
            case.moved = self.is_shared
            self._watch(case)
        self.link, self.since = None, now

    def _watch(self, case: Case) -> None:
        """Be told of the end of a case: its report cannot be sent on the link that the message came on."""
        if self not in case.watchers:
            case.watchers = (*case.watchers, self)

    def _forget_oldest(self) -> None:
        while len(self._unacked) > self._max_unacked:
            self._reached["max_unacked"] += 1
            del self._unacked[next(iter(self._unacked))]

    def relink(self, link: Link, now: float) -> None:
        """Take in that the bridge is back on a new link."""
        self.link, self.since = link, now

    def find(self, token: int, attempt: int) -> Case | tuple[Report, int] | None:
        """Return the pending case of a message that is submitted again, or its unacknowledged report and the dead
        letter that the report waits for, None where the message is new.

        A bridge counts its attempts at all brokers: with the second one here, no other broker has had the message.
        Another one may have processed it before a later attempt: then neither case nor report is a mere refusal.
        """
        was_elsewhere = self.is_shared and attempt > SECOND
        case = self._cases.get(token)
        if case is not None and case.pending:
            case.moved = was_elsewhere
            case.resubmitted |= was_elsewhere
            return case
        unacked = self._unacked.pop(token, None)
        if unacked is None or not was_elsewhere:
            return unacked
        report, letter = unacked
        return in_doubt(report), letter

    def is_reporting(self, token: int) -> bool:
        """Return whether a report on this message is on the present link, unacknowledged."""
        return token in self._sent_tokens

    def forget(self) -> None:
        """Forget the reports of earlier links: the bridge has had the time to submit its messages again."""
        self.since = None
        self._unacked.clear()
