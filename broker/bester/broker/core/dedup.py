"""Messages that may come again: by a key of the sender's own, and from a bridge that has lost its broker. Pure.

Whoever sends a message twice, because it had no report, must not have it done twice: it is told what became of the
first. Nothing is known longer, or more of, than the limits say.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from bester.broker.core.cases import Case
from bester.broker.core.effects import Link
from bester.broker.core.inspection import ResumeState
from bester.broker.wire.messages import Message, Report

Key = tuple[str, str, str]
"""Whose it is, in two parts (what kind of key and whose, or which server and type), and the key itself."""


class DedupCache:
    """Cases by the key their sender gave them, for `remember_s`; at most so many, and so many of one owner.

    A case that ended badly before anything was done for it is forgotten: to try again is what its sender then wants.
    """

    def __init__(self, remember_s: float, most: int, most_of_one: int) -> None:
        self._remember_s = remember_s
        self._most = most
        self._most_of_one = most_of_one
        self._cases: OrderedDict[Key, tuple[Case, float]] = OrderedDict()
        self._owned: dict[tuple[str, str], OrderedDict[Key, None]] = {}

    @property
    def count(self) -> int:
        """How many are known."""
        return len(self._cases)

    def find(self, key: Key, now: float) -> Case | None:
        """Return the case that was entered under this key."""
        self._age(now)
        found = self._cases.get(key)
        if found is None:
            return None
        case = found[0]
        if case.pending == 0 and case.reason is not None and not case.carried:
            self._drop(key)
            return None
        return case

    def add(self, key: Key, case: Case, now: float) -> None:
        """A case has begun. Of one owner's too many his own oldest is forgotten, not another's."""
        self._cases[key] = (case, now)
        own = self._owned.setdefault(key[:2], OrderedDict())
        own[key] = None
        if len(own) > self._most_of_one:
            self._drop(next(iter(own)))
        if len(self._cases) > self._most:
            self._drop(next(iter(self._cases)))

    def _drop(self, key: Key) -> None:
        del self._cases[key]
        own = self._owned[key[:2]]
        del own[key]
        if not own:
            del self._owned[key[:2]]

    def _age(self, now: float) -> None:
        before = now - self._remember_s
        while self._cases:
            key, (case, since) = next(iter(self._cases.items()))
            if since > before or case.pending:
                return
            self._drop(key)


class BridgeResume:
    """One life of a bridge, over all its links: which of its messages are under way, and what it may not have heard.

    A bridge that comes back on a new link submits again what it has no report on, under the same tokens. Reports on a
    link are counted by the bridge, so only those still on their way are remembered. `link` is None while it has none.
    Cases that are over are thrown out many at a time, once there are `sweep_at` or more: to take each out as it ends
    would cost every message more.
    """

    def __init__(self, link: Link, sweep_at: int, max_unacked: int) -> None:
        self._max_unacked = max_unacked
        self.link: Link | None = link
        self.since: float | None = None
        """Since when its link is gone, or what it may not have heard on an earlier one is remembered."""
        self._cases: dict[int, Case] = {}  # by token; some are over
        self._sweep_at = self._swept_at = sweep_at
        self._sent: deque[Report] = deque()
        self._sent_tokens: set[int] = set()  # their tokens
        self._counted = 0
        self._unacked: dict[int, Report] = {}  # of earlier links

    def inspect(self) -> ResumeState:
        """Return what is remembered for the bridge."""
        recipients = sum(len(case.recipients) for case in self._cases.values())
        return ResumeState(self.link is not None, len(self._cases), len(self._sent), len(self._unacked), recipients)

    def add(self, token: int, case: Case) -> None:
        """A message was submitted for the first time, as far as is known here."""
        if len(self._cases) >= self._swept_at:
            self._sweep()  # before it is in: it is owed nothing yet
        self._cases[token] = case

    def remove(self, token: int) -> None:
        """It is another case that will answer for it."""
        self._cases.pop(token, None)

    def _sweep(self) -> None:
        self._cases = {token: case for token, case in self._cases.items() if case.pending}
        self._swept_at = max(self._sweep_at, 2 * len(self._cases))

    def on_case_ended(self, case: Case, answer: Message | None) -> None:
        """A case is over that was under way when a link was lost: unless it was asked for again on the link of now, its
        bridge cannot be sent the report."""
        if self._cases.pop(case.token, None) is not None and type(answer) is Report and case.link != self.link:
            self._unacked[case.token] = answer
            self._forget_some()

    def on_reports_sent(self, messages: Iterable[Message]) -> None:
        """This is sent on the bridge's link: the reports among it may be lost with the link, whatever they are on."""
        reports = [message for message in messages if type(message) is Report]
        self._sent += reports
        self._sent_tokens.update(report.token for report in reports)
        if len(self._sent) > self._max_unacked:
            self.on_reports_counted(self._counted + len(self._sent) - self._max_unacked)

    def on_reports_counted(self, reports: int) -> None:
        """So many reports have come to the bridge on this link."""
        while self._counted < reports and self._sent:
            self._sent_tokens.discard(self._sent.popleft().token)
            self._counted += 1

    def on_link_lost(self, said: Iterable[Message], now: float) -> None:
        """Its link is gone, or void: what the bridge has not confirmed, and what is `said` on it in this turn, it may
        never hear."""
        self.on_reports_sent(said)
        self._unacked.update((report.token, report) for report in self._sent)
        self._forget_some()
        self._sent.clear()
        self._sent_tokens.clear()
        self._counted = 0
        self._sweep()
        for case in self._cases.values():
            if self not in case.watchers:
                case.watchers = (*case.watchers, self)
        self.link, self.since = None, now

    def _forget_some(self) -> None:
        """A bridge that counts no reports, and asks for none again, has us remember no more for it."""
        while len(self._unacked) > self._max_unacked:
            del self._unacked[next(iter(self._unacked))]

    def relink(self, link: Link, now: float) -> None:
        """The bridge is back."""
        self.link, self.since = link, now

    def find(self, token: int) -> Case | Report | None:
        """Return the case that still runs, or the report that may have been lost."""
        case = self._cases.get(token)
        return case if case is not None and case.pending else self._unacked.pop(token, None)

    def is_reporting(self, token: int) -> bool:
        """Is a report on it on its way to the bridge on this very link?"""
        return token in self._sent_tokens

    def forget(self) -> None:
        """It was long enough: whatever the bridge wanted to submit again, it has."""
        self.since = None
        self._unacked.clear()
