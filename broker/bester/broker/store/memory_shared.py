"""Stores in memory that the brokers of one server share, by the rules of PostgreSQL: a namespace for each broker, held
by a lease with an epoch that fences earlier holders, and adoption of what an abandoned namespace holds.

For simulations: brokers in one process that share a database can be played with their pauses and deaths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bester.broker.store.lease import LEASE_S, RENEW_S
from bester.broker.store.memory import MemoryStore
from bester.broker.store.rows import of_all_brokers, pack, united_notes, unpack
from bester.broker.store_brokers import (
    MOST_ADOPTIONS,
    Adopted,
    AdoptionSeen,
    Brokers,
    BrokerSeen,
    united,
)
from bester.broker.store_requests import (
    About,
    Adopt,
    Enqueue,
    Entry,
    FindBrokers,
    FindEntry,
    FindOutcomes,
    Read,
    SaveClock,
    Snapshot,
    StoredQueue,
    Write,
    sharer_of,
)
from bester.broker.wire.codes import BesterError
from bester.broker.wire.outcomes import DELIVERED, QUEUED, SENT

TAKEN = "another process has taken the lease"


class SharedMemory:
    """The namespaces of one server, by their brokers. `clock` is the database's own, in seconds."""

    def __init__(self, clock: Callable[[], float], *, lease_s: float = LEASE_S) -> None:
        self.clock = clock
        self.lease_s = lease_s
        self.namespaces: dict[str, SharedMemoryStore] = {}
        self.adoptions: deque[tuple[float, AdoptionSeen]] = deque(maxlen=MOST_ADOPTIONS)

    def namespace(self, broker: str, *, dead_letters: int = 10_000) -> SharedMemoryStore:
        """Return the namespace of a broker, a new one where the broker has none."""
        found = self.namespaces.get(broker)
        if found is None:
            found = self.namespaces[broker] = SharedMemoryStore(self, broker, dead_letters=dead_letters)
        return found


class SharedMemoryStore(MemoryStore):
    """The namespace of one broker, and at the same time the store of the process that has opened it last.

    `lease_epoch` counts the holders of the lease, which ends at `until_s`. `held` is the epoch under which this process
    has opened the namespace: with another one the process can write and read nothing.
    """

    def __init__(self, database: SharedMemory, broker: str, *, dead_letters: int) -> None:
        super().__init__(epoch=f"{broker}-disk", dead_letters=dead_letters)
        self.database = database
        self.broker = broker
        self.lease_epoch = 0
        self.held = 0
        self.until_s = 0.0
        self._clock_saved_s = 0.0
        self._returned_s = float("-inf")  # of the first commit after the lease had run out

    @property
    def is_due(self) -> bool:
        """Return whether the lease is to be renewed, by a commit that may be empty."""
        return not self.fenced and self.until_s - self.database.clock() < self.database.lease_s - RENEW_S

    def open(self) -> Snapshot:
        """Take the lease, count this life and return the contents."""
        self.lease_epoch += 1
        self.held = self.lease_epoch
        self.fenced = ""
        self._renew()
        self._returned_s = float("-inf")
        return super().open()

    def inspect(self) -> Snapshot:
        """Return the contents as `open` does, without counting a life."""
        return replace(super().inspect(), is_shared=True)

    def _renew(self) -> None:
        now = self.database.clock()
        if self.until_s < now:
            self._returned_s = now
        self.until_s = now + self.database.lease_s

    def check_lease(self) -> None:
        """Raise BesterError where the lease was taken."""
        if self.held != self.lease_epoch:
            self.fenced = TAKEN
            raise BesterError("storage-unavailable", TAKEN)

    def _write(self, writes: Sequence[Write]) -> dict[int, str | None]:
        self._reach()
        self.check_lease()
        repeated = super()._write(writes)
        for write in writes:
            if type(write) is Enqueue and write.about is not None and self._is_told(write.about):
                self._end(write.entry.number, "", True)
                repeated.setdefault(write.entry.number)
        self._renew()
        if any(type(write) is SaveClock for write in writes):
            self._clock_saved_s = self.database.clock()
        return repeated

    def _answer(self, read: Read) -> Any:
        self._reach()
        self.check_lease()
        match read:
            case FindBrokers():
                return self._brokers()
            case Adopt():
                return self.adopt(read)
            case FindEntry():
                return self._find_anywhere(read)
            case FindOutcomes():
                return of_all_brokers(found for each in self._all() for found in each.outcomes_of(read))
        return super()._answer(read)

    def _is_told(self, about: About) -> bool:
        """Return whether another broker tells the outcome of a message."""
        for other in self._all():
            number = other._numbers.get((about.id, about.queue)) if other is not self else None
            if number is not None:
                outcome = other._rows[number].outcome
                if outcome in (DELIVERED, SENT) or (about.failed and outcome is None):
                    return True
        return False

    def _insert(self, entry: Entry, outcome: str | None, repeated: dict[int, str | None]) -> None:
        super()._insert(entry, outcome, repeated)
        if entry.meta.get("repeated"):
            for other in self._all():
                if other is not self:
                    other.mark_repeated(entry)

    def entry_of(self, read: FindEntry) -> tuple[Entry, str | None] | None:
        """Return the entry that this namespace has."""
        found: tuple[Entry, str | None] | None = super()._answer(read)
        return found

    def _find_anywhere(self, read: FindEntry) -> tuple[Entry, str | None] | None:
        """Return the entry of this namespace, where an ended one of another broker is moved to, or united with."""
        mine = self.entry_of(read)
        if not read.number or (mine is not None and mine[1] != QUEUED):
            return mine
        waiting: tuple[Entry, None] | None = None
        for other in self._all():
            found = other.entry_of(read) if other is not self else None
            if found is None:
                continue
            entry, outcome = found
            if outcome is None:
                waiting = waiting or (entry, None)
            elif mine is None:
                other._end(entry.number, "", True)
                sender = None if self._is_disowned(other, entry.number, entry) else entry.sender
                self._insert(entry._replace(number=read.number, sender=sender), outcome, {})
                mine = self.entry_of(read)
            elif mine[0].queue == entry.queue:
                other._end(entry.number, "", True)
                self._unite(mine[0].number, entry, outcome)
                mine = self.entry_of(read)
        return mine or waiting

    def _unite(self, number: int, theirs: Entry, outcome: str) -> None:
        """Take another namespace's note of a message into the note that is here."""
        row = self._rows[number]
        if row.outcome == QUEUED:
            united, meta = united_notes((row.outcome, unpack(row.meta)), (outcome, theirs.meta))
            self._rows[number] = row._replace(meta=pack(meta))
            if united != QUEUED:
                self._end(number, united, False)

    def _all(self) -> list[SharedMemoryStore]:
        return list(self.database.namespaces.values())

    # --- adoption ---

    def _brokers(self) -> Brokers:
        now, other = self.database.clock(), self._abandoned()
        found = [
            BrokerSeen(each.broker, "lives" if each.until_s >= now else "dead", max(now - each.until_s, 0.0))
            for each in sorted(self._all(), key=lambda each: each.broker)
        ]
        adoptions = [seen._replace(ago_s=now - at) for at, seen in reversed(self.database.adoptions)]
        return Brokers("" if other is None else other.broker, tuple(found), tuple(adoptions))

    def _record(self, adopted: Adopted) -> Adopted:
        """Note an adoption; the parts of one are one."""
        now, done = self.database.clock(), self.database.adoptions
        waiting = sum(queue.messages for queue in adopted.snapshot.queues.values())
        counts = waiting, adopted.outcomes, adopted.dead_letters
        if done and done[-1][1][:2] == (adopted.broker, self.broker) and now - done[-1][0] < self.database.lease_s:
            before = done.pop()[1]
            counts = before.messages + counts[0], before.outcomes + counts[1], before.dead_letters + counts[2]
        done.append((now, AdoptionSeen(adopted.broker, self.broker, 0.0, *counts)))
        return adopted

    def _abandoned(self) -> SharedMemoryStore | None:
        now = self.database.clock()
        is_back = self.until_s < now or now - self._returned_s < self.database.lease_s
        if is_back:  # what kept this one away may have kept the others
            return None
        for other in self._all():
            if other is not self and other.until_s < now and (other._rows or other._lanes or other._letters):
                return other
        return None

    def adopt(self, adopt: Adopt) -> Adopted:
        """Move the next part of an abandoned namespace here, and fence the process that held it."""
        if self.broken:
            raise BesterError("storage-unavailable", "the store in memory is told to be full; make room in it")
        other = self._abandoned()
        if other is None:
            return Adopted()
        other.lease_epoch += 1
        later_s = 0.0
        if other._clock is not None:
            later_s = adopt.stored_s - (other._clock.stored_s + self.database.clock() - other._clock_saved_s)
        for key, theirs in other._lanes.items():
            self._lanes[key] = united(self._lanes.get(key), theirs)
        letters = self._letters.adopt(other._letters)
        moved = self._move(other, adopt, later_s)
        self._types = {**self._types, **other._types}
        self._peers = {**other._peers, **self._peers}
        self._held |= other._held
        for user, (_, at_s) in other._disowned.items():
            self._disowned.setdefault(user, (0, at_s))
        self._names = {**other._names, **self._names}
        other._lanes.clear()
        if not other._rows:
            other._disowned.clear()
            other._sent_upto.clear()
        self._renew()
        snapshot = self._moved(moved)
        waiting = sum(queue.messages for queue in snapshot.queues.values())
        return self._record(Adopted(other.broker, snapshot, len(moved) - waiting, bool(other._rows), letters))

    def _move(self, other: SharedMemoryStore, adopt: Adopt, later_s: float) -> list[int]:
        """Move messages and outcomes, and return their new numbers."""
        moved: list[int] = []
        for at, number in enumerate(sorted(other._rows)[: adopt.limit]):
            row = other._rows[number]
            entry, outcome = row.whole(), row.outcome
            may_be_there = outcome is None and number <= other._sent_upto.get(entry.queue, 0)
            other._end(number, "", True)
            there = self._numbers.get((entry.id, entry.queue))
            if there is not None and outcome is not None:
                self._unite(there, entry, outcome)
            meta = entry.meta | {"repeated": True} if may_be_there or there is not None else entry.meta
            entry = entry._replace(
                number=adopt.first + at, expires_s=entry.expires_s + later_s, meta=meta,
                sender=None if self._is_disowned(other, number, entry) else entry.sender,
            )  # fmt: skip
            self._insert(entry, outcome, {})
            if there is None:
                moved.append(entry.number)
        return moved

    def _is_disowned(self, other: SharedMemoryStore, number: int, entry: Entry) -> bool:
        """Return whether the account with which a message was sent is removed, perhaps while its broker was away."""
        if entry.sender in other._disowned:
            return number <= other._disowned[entry.sender][0]
        return entry.sender in self._disowned

    def _moved(self, numbers: Sequence[int]) -> Snapshot:
        """Return the contents of this namespace, but of its messages those of these numbers alone."""
        queues: dict[str, StoredQueue] = {}
        shares: dict[str, dict[str, tuple[int, int]]] = {}
        remote: dict[str, int] = {}
        expiries: list[float] = []
        whole = self.inspect()
        for number in numbers:
            row = self._rows[number]
            entry, size = row.whole(), len(row.entry.body)
            if row.outcome == QUEUED:
                server = entry.queue.split("/")[1]
                remote[server] = remote.get(server, 0) + 1
            if row.outcome is not None:
                continue
            before = queues.get(entry.queue, StoredQueue(0, 0, number, 0))
            queues[entry.queue] = StoredQueue(before.messages + 1, before.size_bytes + size, before.lowest, 0)
            expiries.append(entry.expires_s)
            sharer = sharer_of(entry.queue, entry.sender, entry.meta.get("peer"), entry.type)
            if sharer is not None:
                senders = shares.setdefault(entry.queue, {})
                held = senders.get(sharer, (0, 0))
                senders[sharer] = held[0] + 1, held[1] + size
        return replace(whole, queues=queues, shares=shares, remote=remote, next_expiry_s=min(expiries, default=None))
