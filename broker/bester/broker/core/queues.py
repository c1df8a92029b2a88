"""Boxes: what waits on disk for a user or for another server, as the core sees it: counts, bounds, and who is next.

Bodies are not held here; they are fetched when their turn comes. A message is *waiting* (on disk alone) or *flying* (on
disk, and on its way). What is kept is counted at once and reported when the group it was written in has been committed.
Nothing here says what is done with it: mailboxes and outboxes do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from bester.broker.core.cases import QUEUED, Case, Reports, failed
from bester.broker.core.clock import Clock
from bester.broker.core.effects import Effects
from bester.broker.core.inspection import Bound, QueuesState, QueueState
from bester.broker.core.policy import OUTCOME_TYPE
from bester.broker.core.settings import Limits, Settings
from bester.broker.store_requests import (
    NUMBERS_A_LIFE,
    OUTCOME_KEPT_S,
    Committed,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindExpired,
    MarkSent,
    PurgeOutcomes,
    RecordRemote,
    SaveClock,
    Snapshot,
    StoredQueue,
    Write,
    is_mailbox,
    lane,
    owner_of,
)

FORGET_EVERY_S = 60.0
"""How often outcomes that nobody may ask for any more are cleared away, and the store's time is saved."""
FULL_TURN_S = 1.0
"""So long nothing is taken that must be kept, after a disk was found full: each try stops everybody for a moment."""


class Queue:
    """`flying` are the numbers on their way; what is up to `cursor` was fetched and is flying, or is over.

    `handed` is the highest number that was ever sent out; of what was, `unsent` certainly did not arrive. Nothing is
    fetched before `retry_at`; `delay_s` is the back-off, 0 where all is well. `doom` is the outcome of all that is in
    it, where nobody will ever come for it.
    """

    __slots__ = (
        "_order",
        "cursor",
        "delay_s",
        "discard_as",
        "fetching",
        "inflight",
        "key",
        "messages",
        "retry_at",
        "sent_upto",
        "size_bytes",
        "unsent",
    )

    def __init__(self, key: str, state: StoredQueue | None = None) -> None:
        self.key = key
        self.messages = state.messages if state else 0
        self.size_bytes = state.size_bytes if state else 0
        self.sent_upto = state.sent_upto if state else 0
        self.unsent: set[int] = set()  # they are next: a window of them
        self.cursor = 0
        self.inflight: dict[int, int] = {}  # number: bytes
        self._order: list[int] = []  # a heap of their numbers, and of some that were
        self.fetching = False
        self.retry_at = 0.0
        self.delay_s = 0.0
        self.discard_as: str | None = None

    @property
    def ready(self) -> int:
        """How many are not on their way: what comes now goes behind them."""
        return self.messages - len(self.inflight)

    @property
    def ack_floor(self) -> int:
        """Everything in it below this number is over."""
        order, flying = self._order, self.inflight
        while order and order[0] not in flying:
            heapq.heappop(order)
        return order[0] if order else self.cursor + 1

    def mark_inflight(self, number: int, size: int) -> None:
        """One is on its way."""
        self.inflight[number] = size
        heapq.heappush(self._order, number)

    def requeue(self, number: int, *, unsent: bool = False) -> None:
        """One that was on its way is not any more: it is the next one again. `unsent`: it did not arrive, surely."""
        if self.inflight.pop(number, None) is not None and unsent:
            self.unsent.add(number)
        self.cursor = min(self.cursor, number - 1)


class _Server:
    """All boxes of one server: its lanes, by key, and what is in them together."""

    __slots__ = ("lanes", "messages", "size_bytes")

    def __init__(self) -> None:
        self.lanes: dict[str, Queue] = {}
        self.messages = 0
        self.size_bytes = 0


class Queues:
    """All boxes, their bounds, and what waits for a commit. `look` is told of a box in which something may be next."""

    def __init__(
        self, settings: Settings, out: Effects, reports: Reports, clock: Clock, snapshot: Snapshot, now: float
    ) -> None:
        self.on_ready: Callable[[Queue, float], None] = lambda queue, now: None
        self.on_expiry: Callable[[Entry, str, float], None] = lambda entry, outcome, now: None
        self.limits: Limits = settings.limits
        self.epoch = snapshot.epoch
        self.messages = 0
        """How many wait or fly, in all boxes."""
        self.next_number = max(1, snapshot.life * NUMBERS_A_LIFE)
        self._bounds = settings.bounds
        self.clock = clock
        self._out = out
        self._reports = reports
        self._size = 0
        self._queues: dict[str, Queue] = {}
        self._servers: dict[str, _Server] = {}
        for key, state in snapshot.queues.items():
            if state.messages:
                self._add(Queue(key, state))
        self._pending: dict[int, Case | None] = {}
        self._noted: dict[int, Case] = {}
        self._over_early: dict[int, str] = {}  # of those, what has ended before it was committed, and how
        self._over: set[int] = set()  # numbers of what was ended as expired and is still on the disk as waiting
        self._next_expiry_s = snapshot.next_expiry_s
        self._expiring = False
        self._forget_at = now
        self._full_until = now

    # --- asking ---

    def get(self, key: str) -> Queue | None:
        """Return the box, None where nothing is in it."""
        return self._queues.get(key)

    def lanes(self) -> list[Queue]:
        """Return the lanes with something in them: a few, where there may be many mailboxes."""
        return [queue for server in self._servers.values() for queue in server.lanes.values()] if self._servers else []

    def lanes_to(self, server: str) -> list[Queue]:
        """Return those to one server."""
        owner = self._servers.get(server)
        return list(owner.lanes.values()) if owner is not None else []

    def owners(self) -> list[str]:
        """Return the users for whom something is kept."""
        return [owner_of(key) for key in self._queues if is_mailbox(key)]

    def inspect(self) -> QueuesState:
        """Return what is in all queues."""
        table = {
            key: QueueState(queue.messages, queue.size_bytes, len(queue.inflight), queue.delay_s)
            for key, queue in self._queues.items()
        }
        return QueuesState(
            table=table,
            messages=self.messages,
            size_bytes=self._size,
            inflight=sum(each.inflight for each in table.values()),
            writing=len(self._pending),
            ended_early=len(self._over_early),
            noted=len(self._noted),
            next_number=self.next_number,
            epoch=self.epoch,
        )

    def bounds(self) -> dict[str, Bound]:
        """Return how full the store is, of what is counted here."""
        bounds = self._bounds
        return {
            "queued": Bound(self.messages, bounds.messages),
            "queued_bytes": Bound(self._size, bounds.total_bytes),
        }

    def expires_at(self, case: Case, now: float) -> float:
        """Return when what is kept of a case is given up, in the store's time."""
        end = now + self._bounds.ttl_s if case.expires is None else case.expires
        return self.clock.stored(end)

    def reserve_numbers(self, count: int) -> int:
        """Return the first of so many numbers that nothing else has."""
        first = self.next_number
        self.next_number = first + count
        return first

    # --- keeping ---

    def enqueue(self, entry: Entry, case: Case | None, now: float) -> str | None:
        """Have a message wait; its case is told when it is on disk. Returns a code where there is no room for it."""
        size = len(entry.body)
        code = self._no_room(entry.queue, size, now)
        if code is not None:
            return code
        queue = self._queues.get(entry.queue) or self._add(Queue(entry.queue))
        queue.cursor = min(queue.cursor, entry.number - 1)
        self._count(queue, 1, size)
        if case is not None:
            case.pending += 1
        self._pending[entry.number] = case
        if self._next_expiry_s is None or entry.expires_s < self._next_expiry_s:
            self._next_expiry_s = entry.expires_s
        self._out.writes.append(Enqueue(entry))
        return None

    def record_remote(self, entry: Entry, outcome: str, case: Case) -> None:
        """Remember what became, so far, of a message that did not wait here; its case is told when that is on disk, or
        cannot be put there: it waits elsewhere all the same."""
        self._noted[entry.number] = case
        self._out.writes.append(RecordRemote(entry, outcome))

    def _no_room(self, key: str, size: int, now: float) -> str | None:
        bounds = self._bounds
        if now < self._full_until or self.messages >= bounds.messages or self._size + size > bounds.total_bytes:
            return "storage-full"
        if is_mailbox(key):
            queue = self._queues.get(key)
            full = queue is not None and (
                queue.messages >= bounds.user_messages or queue.size_bytes + size > bounds.user_bytes
            )
            return "mailbox-full" if full else None
        server = self._servers.get(owner_of(key))
        if server is None or key == lane(
            owner_of(key), OUTCOME_TYPE
        ):  # what others fill must not keep news from anybody
            return None
        full = server.messages >= bounds.server_messages or server.size_bytes + size > bounds.server_bytes
        full = full or (len(server.lanes) >= self.limits.max_lanes and key not in server.lanes)
        return "overloaded" if full else None

    def on_committed(self, writes: Sequence[Write], result: Committed, now: float) -> None:
        """A group is on disk, or is not: tell the cases that waited for it, and look who is there by now."""
        touched: dict[str, None] = {}
        self._over.clear()
        if not result.ok:
            self._full_until = now + FULL_TURN_S
        for write in writes:
            if type(write) is RecordRemote and (noted := self._noted.pop(write.entry.number, None)) is not None:
                said = result.repeated.get(write.entry.number) or QUEUED
                self._reports.settle(noted, write.entry.target, said)
            if type(write) is not Enqueue:
                continue
            entry = write.entry
            if entry.number not in self._pending:
                continue
            case = self._pending.pop(entry.number)
            early = self._over_early.pop(entry.number, None)
            if early is None and (not result.ok or entry.number in result.repeated):
                self._uncount(entry.queue, entry.number, len(entry.body))
            elif early is None:
                touched[entry.queue] = None
            if case is not None:
                said = result.repeated.get(entry.number) or QUEUED  # what it waited for before may be over
                self._reports.settle(case, entry.target, said if result.ok else early or failed("storage-full"))
        for key in touched:
            queue = self._queues.get(key)
            if queue is not None:
                self.on_ready(queue, now)

    # --- taking out ---

    def fetch(self, queue: Queue, limit: int, on_fetched: Callable[[Queue, Sequence[Entry], float], None]) -> None:
        """Read the next messages of a queue; `on_fetched` takes those that are in flight from then on."""
        if not queue.fetching:
            queue.fetching = True
            fetch = Fetch(queue.key, queue.cursor, limit, self.limits.window_bytes)

            def on_answer(entries: Sequence[Entry], now: float) -> None:
                fetched = self.on_fetched(fetch, entries, now)
                if fetched is not None:
                    self._expire(fetched[2], now)
                    on_fetched(fetched[0], fetched[1], now)

            self._out.read(fetch, on_answer)

    def on_fetched(
        self, fetch: Fetch, entries: Sequence[Entry], now: float
    ) -> tuple[Queue, list[Entry], list[Entry]] | None:
        """Take in what was fetched. Returns the box, what is to fly now, and what is to be ended, for its time was over
        before its turn came; None where the box is no more."""
        queue = self._queues.get(fetch.queue)
        if queue is None:
            return None
        queue.fetching = False
        fresh = [entry for entry in entries if entry.number not in queue.inflight and entry.number not in self._over]
        if queue.cursor < fetch.after:  # something was put back meanwhile, and comes first
            return queue, [], []
        if not entries:  # the count was wrong: a disk that has lost something must not keep us asking for it
            self._count(queue, -queue.ready, sum(queue.inflight.values()) - queue.size_bytes)
            if not queue.messages:
                self._drop(queue.key)
            return None
        queue.cursor = max(queue.cursor, entries[-1].number)
        stored_s = self.clock.stored(now)
        over = [entry for entry in fresh if entry.expires_s <= stored_s]
        if over:
            self._over.update(entry.number for entry in over)
            fresh = [entry for entry in fresh if entry.expires_s > stored_s]
        for entry in fresh:
            queue.mark_inflight(entry.number, len(entry.body))
        return queue, fresh, over

    def mark_sent(self, queue: Queue, entries: Sequence[Entry]) -> set[int]:
        """Note that these go out now; returns the numbers of those that may have arrived before."""
        before, last = queue.sent_upto, entries[-1].number
        if last > before:
            queue.sent_upto = last
            self._out.writes.append(MarkSent(queue.key, last))
        numbers = {entry.number for entry in entries if entry.number <= before or entry.meta.get("repeated")}
        if queue.unsent:
            numbers -= {entry.number for entry in entries if not entry.meta.get("repeated")} & queue.unsent
            queue.unsent.difference_update(entry.number for entry in entries)
        return numbers

    def end(self, entry: Entry, outcome: str) -> bool:
        """What became of a message that waited. It is remembered where anybody may ask. False: it was over before."""
        if entry.queue not in self._queues:
            return False
        if entry.number in self._pending:
            self._over_early[entry.number] = outcome
        self._uncount(entry.queue, entry.number, len(entry.body))
        forget = entry.sender is None and entry.meta.get("peer") is None
        self._out.writes.append(End(entry.number, outcome, forget))
        return True

    def _uncount(self, key: str, number: int, size: int) -> None:
        queue = self._queues.get(key)
        if queue is None:  # all of it was ended meanwhile
            return
        queue.inflight.pop(number, None)
        self._count(queue, -1, -size)
        if queue.messages <= 0:
            self._drop(key)

    # --- counting ---

    def _add(self, queue: Queue) -> Queue:
        """A box has something in it."""
        self._queues[queue.key] = queue
        messages, size = queue.messages, queue.size_bytes
        if not is_mailbox(queue.key):
            self._servers.setdefault(owner_of(queue.key), _Server()).lanes[queue.key] = queue
        queue.messages = queue.size_bytes = 0
        self._count(queue, messages, size)
        return queue

    def _count(self, queue: Queue, messages: int, size: int) -> None:
        """So much more is in a box, and with it of its server's, and in all."""
        queue.messages += messages
        queue.size_bytes += size
        self.messages += messages
        self._size += size
        if not is_mailbox(queue.key):
            server = self._servers[owner_of(queue.key)]
            server.messages += messages
            server.size_bytes += size

    def _drop(self, key: str) -> None:
        """Nothing is in a box any more."""
        self._queues.pop(key, None)
        if not is_mailbox(key):
            server = self._servers[owner_of(key)]
            del server.lanes[key]
            if not server.lanes:
                del self._servers[owner_of(key)]

    # --- time ---

    def tick(self, now: float) -> None:
        """Ask for what has waited too long; clear away what nobody may ask for any more; keep the store's time."""
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
            if self.end(entry, failed("expired")):
                self.on_expiry(entry, failed("expired"), now)

    def on_expired(self, entries: Sequence[Entry], next_s: float | None, now: float) -> list[Entry]:
        """The answer to that; returns those that are to be ended. Those on their way are left to it a while longer."""
        self._expiring = False
        self._next_expiry_s = next_s
        gone: list[Entry] = []
        for entry in entries:
            queue = self._queues.get(entry.queue)
            if queue is not None and entry.number in queue.inflight:
                soon = self.clock.stored(now) + 1.0
                self._next_expiry_s = soon if self._next_expiry_s is None else min(self._next_expiry_s, soon)
            elif entry.number not in self._over:
                gone.append(entry)
        self._over.update(entry.number for entry in gone)
        return gone
