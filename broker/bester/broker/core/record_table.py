"""The records of messages on disk, each in its state, and the counts of their queues, which follow the states. Pure.

`records` has the states; `queue_table` counts, and `queues` says what happens to a message.
"""

from __future__ import annotations

import heapq

from bester.broker.core.queue_table import Queue, QueueTable
from bester.broker.core.records import SENT_OUT, Event, Record, State, step_of
from bester.broker.core.settings import Settings
from bester.broker.store_requests import Entry, Snapshot, sharer_of

SPARE_NUMBERS = 64
"""Stale numbers that a queue's heap may hold, beside twice as many as are in flight: rebuilding stays cheap, a few at a
time."""


class RecordTable(QueueTable):
    """All queues, and the records of their messages by number."""

    def __init__(self, settings: Settings, snapshot: Snapshot) -> None:
        super().__init__(settings, snapshot)
        self._records: dict[int, Record] = {}

    def is_inflight(self, number: int) -> bool:
        """Return whether the message of this number is kept and in flight: an answer to it counts."""
        record = self._records.get(number)
        return record is not None and record.state in SENT_OUT

    def ack_floor(self, queue: Queue) -> int:
        """Return the number below which every message of a queue has ended."""
        numbers = queue.numbers
        while numbers and not self.is_inflight(numbers[0]):
            heapq.heappop(numbers)
        if not numbers:
            return queue.cursor + 1
        return min(numbers[0], queue.cursor + 1) if queue.ready else numbers[0]

    def _record_of(self, entry: Entry, queue: Queue) -> Record:
        """Return the record of a message on disk; of one that has none, the record of a ready message, not kept yet."""
        record = self._records.get(entry.number)
        if record is None:
            sharer = sharer_of(entry.queue, entry.sender, entry.meta.get("peer"), entry.type)
            record = Record(entry.number, queue, len(entry.body), State.READY, sharer=sharer)
        return record

    def _move(self, record: Record, event: Event) -> State:
        """Apply an event to a record: count, and keep the record as long as there is anything to know."""
        after, messages, inflight = step_of(record.state, event)
        record.state = after
        if after is State.GONE or (after is State.READY and not record.unsent):
            self._records.pop(record.number, None)
        else:
            self._records[record.number] = record
        queue = record.queue
        if queue is None:
            return after
        if inflight:
            self._count_inflight(queue, inflight, inflight * record.size)
            if inflight > 0:
                self._push(queue, record.number)
        if messages:
            self._count(queue, messages, messages * record.size, record.sharer)
            if queue.messages <= 0:
                self._drop(queue)
        return after

    def _push(self, queue: Queue, number: int) -> None:
        """Enter a number into the heap of those in flight, and rebuild the heap once most of it is stale."""
        heapq.heappush(queue.numbers, number)
        if len(queue.numbers) > SPARE_NUMBERS + 2 * queue.inflight:
            queue.numbers = sorted({each for each in queue.numbers if self.is_inflight(each)})

    def _drop_lost(self, queue: Queue) -> None:
        """Correct the counts of a queue in which the disk has no ready message: a disk that has lost a message must not
        be asked for that again and again. Messages in flight, and those not committed yet, stay counted."""
        lost, lost_bytes = queue.ready, queue.size_bytes - queue.inflight_bytes
        records = [each for each in self._records.values() if each.queue is queue]
        for record in records:
            if record.state is State.WRITING:
                lost -= 1
                lost_bytes -= record.size
            elif record.state is State.READY:
                del self._records[record.number]
        self._count(queue, -lost, -lost_bytes)
        self._shares.recount(queue.key, (each for each in records if each.state is not State.READY))
        if not queue.messages:
            self._drop(queue)
