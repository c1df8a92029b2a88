"""The ledger of a chaos run: what was sent, what was reported, what was received, and whether that is in order. Pure.

The rules, each checked for every message and every one of its recipients:

- what a report calls `delivered` or `queued` has been received, unless the sender was told later that it failed for a
  reason that the run's faults give;
- every message has exactly one report, unless its sender was killed first or its client gave it up;
- nothing is received that was not sent, by somebody it was not for, or with another text;
- of what a report calls `queued` the sender, who has asked for it, hears later what became of it;
- what a user receives again under the same id is marked as redelivered; and of all that a user receives of a message,
  whatever its ids, one at most is not marked: a server that died with its memory of a message gives what is sent again
  another id and the mark, and that may overtake the first. A user has one connection at a time here, and all of them
  are in the journals: no second receipt is a copy for another device.

It must never ask a server what happened: only what clients saw counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.faults import INJECTED
from tests.chaos.journal import Closed, GivenUp, Got, Later, Record, Sent, Told

PROMISES = ("delivered", "queued", "sent")
"""Outcomes after which a message must not be lost."""


@dataclass
class Entry:
    """Everything known of one message."""

    sent: Sent
    journal: str
    told: list[Told] = field(default_factory=list)
    given_up: GivenUp | None = None
    got: dict[str, list[Got]] = field(default_factory=dict)
    later: dict[str, list[Later]] = field(default_factory=dict)

    def promised(self) -> Iterator[str]:
        """The users who must have it, by what its reports say."""
        for report in self.told:
            for target, users in self.sent.targets.items():
                outcome = report.recipients.get(target, "delivered" if report.good else "failed")
                if outcome in PROMISES and not self._failed_later(target):
                    yield from users

    def queued(self) -> Iterator[str]:
        """The recipients of which the sender is to be told later what became."""
        for report in self.told:
            yield from (target for target, outcome in report.recipients.items() if outcome == "queued")

    def _failed_later(self, target: str) -> bool:
        return any(_excused(later.outcome) for later in self.later.get(target, []))

    def story(self) -> str:
        """What happened to it, for people."""
        lines = [f"message {self.sent.number} ({self.sent.type}) of {self.journal} to {self.sent.targets}"]
        events: list[tuple[float, str]] = [(self.sent.at_s, "sent")]
        for told in self.told:
            verdict = "good" if told.good else f"bad {told.reason}"
            events.append((told.at_s, f"reported {verdict} {told.recipients or ''} as {told.message}"))
        for user, receipts in self.got.items():
            for got in receipts:
                mark = ", marked" if got.marked else ""
                events.append((got.at_s, f"received by {user} on {got.link} as {got.id}{mark}"))
        if self.given_up is not None:
            events.append((self.given_up.at_s, f"given up: {self.given_up.why}"))
        for target, news in self.later.items():
            events += [(later.at_s, f"told later of {target}: {later.outcome}") for later in news]
        return "\n".join([*lines, *(f"    {at_s:12.3f}  {what}" for at_s, what in sorted(events))])


def _excused(outcome: str) -> bool:
    """Say whether a later outcome is a failure that the run itself has brought about."""
    kind, _, reason = outcome.partition(":")
    return kind == "failed" and reason in INJECTED


@dataclass(frozen=True)
class Verdict:
    """What the ledger says in the end. `promises`: (message, user) pairs that a report vouched for."""

    promises: int
    lost: list[tuple[int, str]]
    wrong: list[str]
    marked: int
    messages: int
    good: int
    bad: Counter[str]
    unclaimed: int

    @property
    def clean(self) -> bool:
        return not self.lost and not self.wrong


class Ledger:
    """Takes records in any order, from any journal."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self._early: dict[int, list[Told | GivenUp | Got]] = {}
        self._by_id: dict[str, int] = {}
        self._later: dict[str, list[Later]] = {}
        self._closed: set[str] = set()

    def take(self, journal: str, record: Record) -> None:
        """Enter a record of a journal."""
        if isinstance(record, Closed):
            self._closed.add(journal)
        elif isinstance(record, Later):
            self._later.setdefault(record.message, []).append(record)
            self._apply_later(record.message)
        elif isinstance(record, Sent):
            self.entries[record.number] = entry = Entry(record, journal)
            for early in self._early.pop(record.number, []):
                self._enter(entry, early)
        elif record.number in self.entries:
            self._enter(self.entries[record.number], record)
        else:  # the journal of its sender has not been read so far
            self._early.setdefault(record.number, []).append(record)

    def _enter(self, entry: Entry, record: Told | GivenUp | Got) -> None:
        if isinstance(record, Told):
            entry.told.append(record)
            if record.message is not None:
                self._by_id[record.message] = entry.sent.number
                self._apply_later(record.message)
        elif isinstance(record, GivenUp):
            entry.given_up = record
        else:
            entry.got.setdefault(record.user, []).append(record)

    def _apply_later(self, message: str) -> None:
        number = self._by_id.get(message)
        if number is not None:
            for later in self._later.pop(message, []):
                self.entries[number].later.setdefault(later.recipient, []).append(later)

    def owed(self) -> list[tuple[int, str]]:
        """The (message, user) pairs that a report vouched for and nobody received so far."""
        return [
            (number, user)
            for number, entry in self.entries.items()
            for user in dict.fromkeys(entry.promised())
            if user not in entry.got
        ]

    def untold(self) -> list[tuple[int, str]]:
        """The (message, recipient) pairs that were reported as queued, and of which the sender heard no more."""
        return [
            (number, target)
            for number, entry in self.entries.items()
            for target in dict.fromkeys(entry.queued())
            if target not in entry.later
        ]

    def verdict(self) -> Verdict:
        """Judge everything that was entered."""
        wrong = [f"received, but never sent: {one}" for early in self._early.values() for one in early]
        wrong += [
            f"never told what became of {target}: {self.entries[number].story()}" for number, target in self.untold()
        ]
        marked = promises = unclaimed = 0
        bad: Counter[str] = Counter()
        for entry in self.entries.values():
            wrong += self._faults(entry)
            promises += len(set(entry.promised()))
            unclaimed += not entry.told
            bad.update((report.reason or "no reason given") for report in entry.told if not report.good)
            for receipts in entry.got.values():
                marked += sum(got.marked for got in _again(receipts))
        good = sum(report.good for entry in self.entries.values() for report in entry.told)
        return Verdict(promises, self.owed(), wrong, marked, len(self.entries), good, bad, unclaimed)

    def _faults(self, entry: Entry) -> Iterator[str]:
        if len(entry.told) > 1:
            yield f"reported {len(entry.told)} times: {entry.story()}"
        if not entry.told and entry.given_up is None and entry.journal in self._closed:
            yield f"never reported: {entry.story()}"
        meant = {user for users in entry.sent.targets.values() for user in users}
        for user, receipts in entry.got.items():
            if user not in meant:
                yield f"received by {user}, whom it was not for: {entry.story()}"
            if not all(got.sound for got in receipts):
                yield f"received by {user} with another text: {entry.story()}"
            if not _told_apart(receipts):
                yield f"received again by {user} without the mark: {entry.story()}"
        for target, news in entry.later.items():
            for later in news:
                if later.outcome.startswith("failed") and not _excused(later.outcome):
                    yield f"of {target} failed later, which no fault explains: {entry.story()}"


def _told_apart(receipts: list[Got]) -> bool:
    """Say whether a user's receipts of a message bear the marks that they must."""
    known: set[str | None] = set()
    for got in sorted(receipts, key=lambda got: got.at_s):
        if got.id in known and not got.marked:
            return False
        known.add(got.id)
    return sum(not got.marked for got in receipts) <= 1


def _again(receipts: list[Got]) -> list[Got]:
    """Return all of one user's receipts of a message but the first."""
    return sorted(receipts, key=lambda got: got.at_s)[1:]
