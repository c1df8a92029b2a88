"""The ledger of a chaos run: messages sent, reported and received, and the judgement on them. Pure.

The rules, each checked for every message and every one of its recipients:

- a result that a report calls `delivered`, `queued` or `sent` has been received, unless the sender learnt later that it
  failed for a reason that the run itself gives (see `entries`);
- every message has exactly one report, unless its sender was killed first or its client gave the message up; a bad
  report needs a fault that explains its reason;
- no message is received that was not sent, by a user who is no recipient, or with another text;
- the sender of a message with a `queued` recipient, having asked for it, learns the later outcome;
- a message that a user or a native server receives again under the same id is marked as redelivered; and of all copies
  of a message, whatever their ids, at most one is not marked: a server that died with its memory of a message gives
  the message that is sent again another id and the mark, and the marked copy may overtake the first. A user has one
  connection at a time here, and all of them are in the journals: no second receipt is a copy for another device;
- a reporting native server never gets the outcome `sent`, and a mute one never `delivered`;
- ordered messages come in order (`order`); time to live is kept to, whatever the clocks show, and messages are given up
  for their own deeds, not for those of others (`blame`).

No server is asked for the truth: the receipts of clients and native servers count, and dead letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.chaos import blame, order
from tests.chaos.entries import Entry
from tests.chaos.happened import CLUSTER_BROKERS, Happened
from tests.chaos.journal import Closed, Died, GivenUp, Got, Later, Record, Sent, Told
from tests.chaos.letters import DeadLetter

STOOD_STILL_S = 30.0
"""Seconds after a broker of a cluster was frozen in which a copy may come that it had before: its user may be away."""


@dataclass(frozen=True)
class Verdict:
    """The ledger's result. `promises`: (message, user) pairs that a report vouched for. `poison`: messages that killed
    a handler, and the number of their kills."""

    promises: int
    lost: list[tuple[int, str]]
    wrong: list[str]
    marked: int
    messages: int
    good: int
    bad: Counter[str]
    unclaimed: int
    expired: int = 0
    poison: int = 0
    deaths: int = 0

    @property
    def clean(self) -> bool:
        return not self.lost and not self.wrong


class Ledger:
    """A ledger that takes records in any order, from any journal. `happened` has the faults of the run itself."""

    def __init__(self, happened: Happened | None = None) -> None:
        self.entries: dict[int, Entry] = {}
        self._happened = happened or Happened()
        self._early: dict[int, list[Told | GivenUp | Got | Died]] = {}
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
            self.entries[record.number] = entry = Entry(record, journal, self._happened)
            for early in self._early.pop(record.number, []):
                self._enter(entry, early)
        elif record.number in self.entries:
            self._enter(self.entries[record.number], record)
        else:  # the journal of its sender has not been read so far
            self._early.setdefault(record.number, []).append(record)

    def _enter(self, entry: Entry, record: Told | GivenUp | Got | Died) -> None:
        if isinstance(record, Told):
            entry.told.append(record)
            if record.message is not None:
                self._by_id[record.message] = entry.sent.number
                self._apply_later(record.message)
        elif isinstance(record, GivenUp):
            entry.given_up = record
        elif isinstance(record, Died):
            entry.died.append(record)
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
        """The (message, recipient) pairs that were reported as queued, and whose sender got no later outcome."""
        return [
            (number, target)
            for number, entry in self.entries.items()
            if entry.sent.asks
            for target in dict.fromkeys(entry.queued())
            if target not in entry.later
        ]

    def verdict(self, letters: Iterable[DeadLetter] = ()) -> Verdict:
        """Judge all records, and the dead letters that were left."""
        wrong = [f"received, but never sent: {receipt}" for early in self._early.values() for receipt in early]
        wrong += [
            f"never told what became of {target}: {self.entries[number].story()}" for number, target in self.untold()
        ]
        count = _Count()
        for entry in self.entries.values():
            wrong += self._faults(entry)
            count.add(entry)
        wrong += order.faults(self.entries.values())
        wrong += blame.faults(self.entries, letters, self._happened)
        return Verdict(
            count.promises, self.owed(), wrong, count.marked, len(self.entries), count.good, count.bad, count.unclaimed,
            count.expired, count.poison, count.deaths,
        )  # fmt: skip

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
            if not _told_apart(receipts, self._happened):
                yield f"received again by {user} without the mark: {entry.story()}"
        for failure in entry.unexplained():
            yield f"{failure}, which no fault explains: {entry.story()}"


@dataclass
class _Count:
    """Sums over all messages."""

    promises: int = 0
    marked: int = 0
    good: int = 0
    unclaimed: int = 0
    expired: int = 0
    poison: int = 0
    deaths: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        self.promises += len(set(entry.promised()))
        self.unclaimed += not entry.told
        self.bad.update((report.reason or "no reason given") for report in entry.told if not report.good)
        self.good += sum(report.good for report in entry.told)
        self.expired += sum(outcomes[-1].outcome == "failed:expired" for outcomes in entry.later.values())
        self.poison += bool(entry.died)
        self.deaths += len(entry.died)
        for receipts in entry.got.values():
            self.marked += sum(got.marked for got in _again(receipts))


def _told_apart(receipts: list[Got], happened: Happened) -> bool:
    """Return whether a user's receipts of a message bear the marks that they must. A broker of a cluster that stood
    still, and was taken for dead, goes on with its one copy, under the id that another broker gave the marked copy as
    well. A broker that was killed goes on with none."""
    known: set[str | None] = set()
    for got in sorted(receipts, key=lambda got: got.at_s):
        may_be_late = happened.stood_still(CLUSTER_BROKERS, got.at_s - STOOD_STILL_S, got.at_s)
        if got.id in known and not got.marked and not may_be_late:
            return False
        known.add(got.id)
    return sum(not got.marked for got in receipts) <= 1


def _again(receipts: list[Got]) -> list[Got]:
    """Return all of one user's receipts of a message but the first."""
    return sorted(receipts, key=lambda got: got.at_s)[1:]
