"""Queues: the messages that are kept on disk for a user or for another server, as the core sees them.

A queue is counts, bounds and a cursor: bodies stay on disk until they are fetched. `queue_table` counts, and knows
whether there is room; `record_table` has the state of each message. A new message counts at once, and its case is
settled when its group has been committed. Commands and relays decide that a message is queued, mailboxes and relays
when it is sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bester.broker.core.cases import Case, Kind, Reports, unkept
from bester.broker.core.clock import Clock
from bester.broker.core.effects import Effects
from bester.broker.core.inspection import QueuesState, QueueState
from bester.broker.core.queue_table import Queue
from bester.broker.core.record_table import RecordTable
from bester.broker.core.records import COUNTED, Record, State, step_of
from bester.broker.core.settings import Settings
from bester.broker.store_requests import (
    DAMAGED,
    NUMBERS_A_LIFE,
    OUTCOME_KEPT_S,
    About,
    Committed,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindExpired,
    MarkSent,
    Promise,
    PurgeOutcomes,
    RecordRemote,
    SaveClock,
    Snapshot,
    Write,
    sharer_of,
)
from bester.broker.wire.outcomes import OUTCOME_TYPE, QUEUED, failed

FORGET_EVERY_S = 60.0
"""Period at which old outcomes are purged, and the store's time is saved."""
FETCH_SHARE = 8
"""Divisor: a queue fetches such a part of the room for messages in flight, so that there is some for the next ones."""
FETCH_LEAST = 4_096
"""Bytes that a queue may fetch in any case."""
FULL_TURN_S = 1.0
"""Pause after a failed commit in which nothing is enqueued: each try on a full disk stops the loop for a moment."""
DAMAGED_CODE = "malformed"
"""Reason of a message that the store cannot read whole."""

OnMarked = Callable[[set[int], float], None]
"""Called with the numbers of those messages that may have been delivered before, and the time."""


class _Marking(NamedTuple):
    """Messages of a queue that are sent once the disk has their mark. `again` are the numbers of those that may have
    been delivered before, `before` is the queue's `sent_upto` without the mark."""

    queue: Queue
    entries: Sequence[Entry]
    again: set[int]
    before: int
    on_marked: OnMarked


class Queues(RecordTable):
    """All queues: writing their messages, taking these out, and ending them.

    `on_ready` is called with a queue in which a message may be next. `next_number` is the number of the next message,
    `epoch` the name of the store that numbers belong to. No lane's floor may be above `floor_limit`, the first number
    of messages that are being adopted.
    """

    def __init__(
        self, settings: Settings, out: Effects, reports: Reports, clock: Clock, snapshot: Snapshot, now: float
    ) -> None:
        super().__init__(settings, snapshot)
        self.on_ready: Callable[[Queue, float], None] = lambda queue, now: None
        self.on_expiry: Callable[[Entry, str, float], None] = lambda entry, outcome, now: None
        self.on_damaged: Callable[[Entry, str, float], None] = lambda entry, why, now: None
        self.epoch = snapshot.epoch
        self.next_number = max(1, snapshot.life * NUMBERS_A_LIFE)
        self.clock = clock
        self._out = out
        self._reports = reports
        self._recording: set[str] = set()  # ids of the messages queued at another server, where that is not committed
        self._unrecorded: dict[int, tuple[Entry, float]] = {}  # those with a held-back record, and their deadlines
        self._next_expiry_s = snapshot.next_expiry_s
        self._expiring = False
        self._forget_at = now
        self._full_until = now
        self._full_code: str = "storage-full"
        self._marking: dict[int, _Marking] = {}  # by the number up to which a queue is marked
        self._is_shared = snapshot.is_shared
        self.floor_limit: int | None = None

    # --- asking ---

    def inspect(self) -> QueuesState:
        """Return the contents of all queues, and how many messages are in which state."""
        table = {
            key: QueueState(queue.messages, queue.size_bytes, queue.inflight, queue.delay_s)
            for key, queue in self._queues.items()
        }
        states = Counter(record.state for record in self._records.values())
        return QueuesState(
            table=table,
            messages=self.messages,
            size_bytes=self.size_bytes,
            inflight=self.inflight,
            writing=states[State.WRITING] + states[State.WRITING_INFLIGHT] + states[State.ENDED_EARLY],
            ended_early=states[State.ENDED_EARLY],
            ended=states[State.ENDED],
            recording=states[State.RECORDING],
            records=len(self._records),
            next_number=self.next_number,
            epoch=self.epoch,
            shares=self._shares.inspect(),
            mailbox_inflight_bytes=self.mailbox_inflight_bytes,
            lane_inflight_bytes=self.lane_inflight_bytes,
        )

    def expires_at(self, case: Case, now: float) -> float:
        """Return when a kept message of a case expires, in the store's time."""
        end = now + self._bounds.ttl_s if case.expires is None else case.expires
        return self.clock.stored(end)

    def reserve_numbers(self, count: int) -> int:
        """Return the first of `count` numbers that no other message gets."""
        first = self.next_number
        self.next_number = first + count
        return first

    # --- writing ---

    def enqueue(self, entry: Entry, case: Case | None, now: float, about: About | None = None) -> str | None:
        """Enqueue a message; its case counts one pending result more, which is settled at the commit. A late outcome is
        `about` a message.

        Returns a code, and leaves the case alone, where there is no room.
        """
        size = len(entry.body)
        sharer = sharer_of(entry.queue, entry.sender, entry.meta.get("peer"), entry.type)
        code, reached = self._no_room(entry.queue, sharer, size, now, is_outcome=entry.type == OUTCOME_TYPE)
        if reached is not None:
            self._out.reached[reached] += 1
        if code is not None:
            return code
        queue = self._queues.get(entry.queue) or self._add(Queue(entry.queue))
        queue.cursor = min(queue.cursor, entry.number - 1)
        self._count(queue, 1, size, sharer)
        if case is not None:
            case.pending += 1
        self._records[entry.number] = Record(entry.number, queue, size, State.WRITING, case, sharer=sharer)
        if self._next_expiry_s is None or entry.expires_s < self._next_expiry_s:
            self._next_expiry_s = entry.expires_s
        self._out.writes.append(Enqueue(entry, about))
        return None

    def keep_inflight(self, number: int) -> None:
        """Count a message that was just enqueued as in flight: no answer came in time, and a late one still counts."""
        self._move(self._records[number], "overdue")

    def record_remote(self, entry: Entry, outcome: str, case: Case | None) -> None:
        """Record the outcome so far of a message that is queued at another server. Its case is settled at the commit.
        Where the commit fails, the case is settled as well, since the message is queued over there: at once where there
        is no room, and after a wait where the store is away, since the later outcome needs the record."""
        self._records[entry.number] = Record(entry.number, None, 0, State.RECORDING, case)
        self._recording.add(entry.id)
        self._out.writes.append(RecordRemote(entry, outcome))

    def is_recording(self, id_: str) -> bool:
        """Return whether the message of this id is queued at another server, and the record of that is not committed
        yet."""
        return id_ in self._recording

    def _no_room(
        self, key: str, sharer: str | None, size: int, now: float, *, is_outcome: bool
    ) -> tuple[str | None, str | None]:
        """Return the code with which a message is refused, and the name of the bound that is reached, if any. After a
        failed commit nothing but outcomes is enqueued for a moment."""
        if now < self._full_until and not is_outcome:
            return self._full_code, None
        return self.bound_reached(key, sharer, size)

    def on_committed(self, writes: Sequence[Write], result: Committed, now: float) -> None:
        """Take in that a group is on disk, or is not: settle the cases of its messages, and go on with their queues."""
        touched: dict[str, None] = {}
        if not result.ok:
            self._full_until, self._full_code = now + FULL_TURN_S, result.code
        elif self._full_code == "storage-unavailable":
            self._full_until = now  # a store that takes anything is there again; on a full disk an end finds room alone
        for write in writes:
            if type(write) is End:
                ended = self._records.get(write.number)
                if ended is not None:
                    self._move(ended, "end written")
            elif type(write) is Enqueue or type(write) is RecordRemote:
                if write.entry.number in result.kept:
                    self._on_kept(write.entry, result.code, now)
                else:
                    self._on_written(write, result.ok, result, touched)
            elif type(write) is MarkSent and write.upto in self._marking:
                self._on_mark_written(self._marking.pop(write.upto), result, now)
        for promise in result.late:
            self._on_written(promise, True, result, touched)
        for promise in result.dropped:
            self._on_written(promise, False, result, touched)
        for key in touched:
            queue = self._queues.get(key)
            if queue is not None:
                self.on_ready(queue, now)

    def _on_mark_written(self, marking: _Marking, result: Committed, now: float) -> None:
        """Send the messages whose mark is on disk, or was held back. Not the latter where the store is shared and away:
        another broker may adopt the messages when this one's lease has run out, and would deliver them unmarked."""
        marking.queue.marking -= 1
        if result.ok or not self._is_shared or result.code != "storage-unavailable":
            marking.on_marked(marking.again, now)
            return
        queue = marking.queue
        behind = [each for each in self._marking.values() if each.queue is queue and each.before >= marking.before]
        for each in (marking, *behind):  # messages behind these must not overtake them
            queue.sent_upto = min(queue.sent_upto, each.before)
            for entry in each.entries:
                self.requeue(entry.number, unsent=entry.number not in each.again)
        for each in behind:
            queue.marking -= 1
            del self._marking[each.entries[-1].number]
        queue.retry_at = max(queue.retry_at, now + FULL_TURN_S)
        self.on_ready(queue, now)

    def _on_kept(self, entry: Entry, code: str, now: float) -> None:
        """Take in that the record of a message that is queued at another server waits for the store. A store that is
        away is waited for: if this process died first, nobody would know the sender of the later outcome."""
        if code == "storage-unavailable" and self._records[entry.number].case is not None:
            self._unrecorded[entry.number] = entry, now + self.limits.record_s
        else:
            self._settle_unrecorded(entry)

    def _settle_unrecorded(self, entry: Entry) -> None:
        """Settle the case of a message that is queued at another server, though the record still waits for the
        store."""
        record = self._records[entry.number]
        case, record.case = record.case, None
        if case is not None:
            self._reports.settle(case, entry.target, QUEUED)

    def _on_written(self, write: Promise, ok: bool, result: Committed, touched: dict[str, None]) -> None:
        """Take in that a message is on disk (`ok`), or is given up."""
        entry = write.entry
        if type(write) is RecordRemote:
            self._recording.discard(entry.id)
            self._unrecorded.pop(entry.number, None)
        record = self._records[entry.number]
        case, record.case = record.case, None
        is_new = ok and entry.number not in result.repeated
        state = self._move(record, "committed" if is_new else "rejected")
        if state in COUNTED:
            touched[entry.queue] = None
            if state is State.READY and record.queue is not None:
                # A fetch that was answered since the message was enqueued may have looked beyond its number.
                record.queue.cursor = min(record.queue.cursor, entry.number - 1)
        if record.note is not None and not ok:
            # The report waits for the note: if this process died first, nobody would know of the later outcome.
            self.record_remote(record.note._replace(number=self.reserve_numbers(1)), QUEUED, case)
            return
        if case is None:
            return
        # A message of this id that is on disk already may have ended: its outcome stands for this one. Of one that is
        # queued at another server again its end may be still to come; a server alone must not wait for that in vain.
        outcome = result.repeated.get(entry.number) or QUEUED
        if not ok and type(write) is Enqueue:
            is_in_doubt = entry.meta.get("repeated") and case.kind is not Kind.REPLAY  # an operator is told the reason
            outcome = record.outcome or failed(unkept(result.code) if is_in_doubt else result.code)
        elif type(write) is RecordRemote and case.kind is not Kind.RELAY:
            outcome = QUEUED
        self._reports.settle(case, entry.target, outcome)

    # --- taking out ---

    def fetch(self, queue: Queue, limit: int, on_fetched: Callable[[Queue, Sequence[Entry], float], None]) -> None:
        """Ask for the next messages of a queue, at most `limit`; once, until the answer has come. `on_fetched` takes
        those that are in flight from then on."""
        if not queue.fetching:
            queue.fetching = True
            wanted = queue.size_bytes - queue.inflight_bytes
            if queue.discard_as is None:  # otherwise nothing stays in flight
                wanted = min(wanted, self.inflight_room(queue) // FETCH_SHARE)
            size = min(self.limits.window_bytes, max(wanted, FETCH_LEAST))
            fetch = Fetch(queue.key, queue.cursor, limit, size)
            self._count_inflight(queue, 0, size)

            def on_answer(entries: Sequence[Entry], now: float) -> None:
                self._count_inflight(queue, 0, -size)
                if self._queues.get(queue.key) is not queue:  # dropped meanwhile; a later one fetches by itself
                    return
                fetched = self.on_fetched(fetch, entries, now)
                if fetched is not None:
                    self._expire(fetched[2], now)
                    on_fetched(fetched[0], fetched[1], now)

            self._out.read(fetch, on_answer)

    def on_fetched(
        self, fetch: Fetch, entries: Sequence[Entry], now: float
    ) -> tuple[Queue, list[Entry], list[Entry]] | None:
        """Take in the messages that were fetched: those that are to be sent are in flight from now on.

        Returns the queue, the messages to send, and the expired ones, which are to be ended; None where the queue is
        gone.
        """
        queue = self._queues.get(fetch.queue)
        if queue is None:
            return None
        queue.fetching = False
        if queue.cursor < fetch.after:  # a message was requeued meanwhile, and comes first
            return queue, [], []
        if not entries:
            self._drop_lost(queue)
            return None
        queue.cursor = max(queue.cursor, entries[-1].number)
        stored_s = self.clock.stored(now)
        fresh: list[Entry] = []
        expired: list[Entry] = []
        for entry in entries:
            record = self._record_of(entry, queue)
            if record.state is not State.READY:
                step_of(record.state, "fetched")  # legal where the message is in flight, or has ended
            elif entry.meta.get(DAMAGED) is not None:
                self._set_aside(entry, now)
            elif entry.expires_s <= stored_s:
                expired.append(entry)
            else:
                self._move(record, "fetched")
                fresh.append(entry)
        return queue, fresh, expired

    def mark_sent(self, queue: Queue, entries: Sequence[Entry], on_marked: OnMarked, now: float) -> None:
        """Mark messages in flight as sent, and call `on_marked`, which sends them, when the mark is on disk or was held
        back: a message must not be sent again unmarked after a crash. Where another broker may adopt the messages, they
        are requeued if the store is away.

        `on_marked` gets the numbers of those that may have been delivered before: sent once without proof of the
        contrary, or marked `repeated`."""
        before, last = queue.sent_upto, entries[-1].number
        numbers: set[int] = set()
        for entry in entries:
            record = self._records[entry.number]
            if entry.meta.get("repeated") or (entry.number <= before and not record.unsent):
                numbers.add(entry.number)
            record.unsent = False
        if last <= before:
            on_marked(numbers, now)
            return
        queue.sent_upto = last
        queue.marking += 1
        self._marking[last] = _Marking(queue, entries, numbers, before, on_marked)
        self._out.writes.append(MarkSent(queue.key, last))

    def requeue(self, number: int, *, unsent: bool = False) -> None:
        """Requeue an in-flight message at the head of its queue. `unsent`: it is known not to have been delivered."""
        record = self._records[number]
        assert record.queue is not None
        record.unsent = record.unsent or unsent
        self._move(record, "requeued")
        record.queue.cursor = min(record.queue.cursor, number - 1)

    def end(self, entry: Entry, outcome: str, note: Entry | None = None) -> None:
        """End a kept message with this outcome, which is remembered where somebody may ask for it. `note` is what to
        record of a message that is queued at another server, where the message itself cannot be written."""
        queue = self._queues.get(entry.queue)
        if queue is not None:  # otherwise the disk has more than was counted
            record = self._record_of(entry, queue)
            record.outcome, record.note = outcome, note
            self._move(record, "ended")
        forget = entry.sender is None and entry.meta.get("peer") is None
        self._out.writes.append(End(entry.number, outcome, forget))

    # --- adoption ---

    def adopt(self, snapshot: Snapshot, now: float) -> None:
        """Take in messages of another broker that were moved to this store, behind those of the same queues."""
        for key, state in snapshot.queues.items():
            queue = self._queues.get(key)
            if queue is None:
                self._add(Queue(key, state))
            else:
                # Later numbers may have been fetched while these were moved.
                queue.cursor = min(queue.cursor, state.lowest - 1)
                self._count(queue, state.messages, state.size_bytes)
        for key, senders in snapshot.shares.items():
            for sharer, (messages, size) in senders.items():
                self._shares.count(key, sharer, messages, size)
        next_s = snapshot.next_expiry_s
        if next_s is not None and (self._next_expiry_s is None or next_s < self._next_expiry_s):
            self._next_expiry_s = next_s
        for key in snapshot.queues:
            queue = self._queues.get(key)
            if queue is not None:
                self.on_ready(queue, now)

    # --- time ---

    def tick(self, now: float) -> None:
        """Ask for expired messages, purge outcomes that nobody may ask for any more, save the store's time, and wait no
        longer for a store that stays away."""
        while self._unrecorded:  # in the order of their deadlines
            number, (entry, until) = next(iter(self._unrecorded.items()))
            if now < until:
                break
            del self._unrecorded[number]
            self._settle_unrecorded(entry)
        stored_s = self.clock.stored(now)
        if self._next_expiry_s is not None and stored_s >= self._next_expiry_s and not self._expiring:
            self._expiring = True
            find = FindExpired(stored_s, self.limits.expiries, self.limits.window_bytes)
            self._out.read(find, lambda answer, now: self._expire(self.on_expired(answer[0], answer[1], now), now))
        if now >= self._forget_at:
            self._forget_at = now + FORGET_EVERY_S
            self._out.writes.append(SaveClock(self.clock.save(now)))
            self._out.writes.append(PurgeOutcomes(stored_s - OUTCOME_KEPT_S, self._bounds.outcomes))

    def _expire(self, entries: Sequence[Entry], now: float) -> None:
        """End messages whose time is over."""
        for entry in entries:
            if entry.meta.get(DAMAGED) is not None:
                self._set_aside(entry, now)
                continue
            self.end(entry, failed("expired"))
            self.on_expiry(entry, failed("expired"), now)

    def _set_aside(self, entry: Entry, now: float) -> None:
        """End a message that the store cannot read whole: it must not stop its queue."""
        self.on_damaged(entry, str(entry.meta[DAMAGED]), now)
        self.end(entry, failed(DAMAGED_CODE))

    def on_expired(self, entries: Sequence[Entry], next_s: float | None, now: float) -> list[Entry]:
        """Take in the expired messages that a read has found, and when the next one expires.

        Returns those that are to be ended. A message in flight is left to its delivery a second longer.
        """
        self._expiring = False
        self._next_expiry_s = next_s
        expired: list[Entry] = []
        for entry in entries:
            record = self._records.get(entry.number)
            if record is None or record.state is State.READY:
                expired.append(entry)
            elif record.state is State.INFLIGHT:
                soon = self.clock.stored(now) + 1.0
                self._next_expiry_s = soon if self._next_expiry_s is None else min(self._next_expiry_s, soon)
        return expired
