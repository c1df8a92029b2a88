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
from bester.broker.core.policy import NEWS
from bester.broker.core.values import Limits, Outbox, Settings
from bester.broker.kept import (
    NUMBERS_A_LIFE,
    OUTCOME_KEPT_S,
    BoxState,
    Committed,
    End,
    Entry,
    Expired,
    Fetch,
    Forget,
    Handed,
    Keep,
    Note,
    SaveClock,
    Snapshot,
    Write,
    is_mailbox,
    lane,
    owner_of,
)

FORGET_EVERY_S = 60.0
"""How often outcomes that nobody may ask for any more are cleared away, and the store's time is saved."""
FULL_TURN_S = 1.0
"""So long nothing is taken that must be kept, after a disk was found full: each try stops everybody for a moment."""


class Box:
    """`flying` are the numbers on their way; what is up to `cursor` was fetched and is flying, or is over.

    `handed` is the highest number that was ever sent out; of what was, `unsent` certainly did not arrive. Nothing is
    fetched before `retry_at`; `delay_s` is the back-off, 0 where all is well. `doom` is the outcome of all that is in
    it, where nobody will ever come for it.
    """

    __slots__ = (
        "_order",
        "cursor",
        "delay_s",
        "doom",
        "fetching",
        "flying",
        "handed",
        "key",
        "messages",
        "retry_at",
        "size",
        "unsent",
    )

    def __init__(self, key: str, state: BoxState | None = None) -> None:
        self.key = key
        self.messages = state.messages if state else 0
        self.size = state.size_bytes if state else 0
        self.handed = state.handed if state else 0
        self.unsent: set[int] = set()  # they are next: a window of them
        self.cursor = 0
        self.flying: dict[int, int] = {}  # number: bytes
        self._order: list[int] = []  # a heap of their numbers, and of some that were
        self.fetching = False
        self.retry_at = 0.0
        self.delay_s = 0.0
        self.doom: str | None = None

    @property
    def waiting(self) -> int:
        """How many are not on their way: what comes now goes behind them."""
        return self.messages - len(self.flying)

    @property
    def floor(self) -> int:
        """Everything in it below this number is over."""
        order, flying = self._order, self.flying
        while order and order[0] not in flying:
            heapq.heappop(order)
        return order[0] if order else self.cursor + 1

    def fly(self, number: int, size: int) -> None:
        """One is on its way."""
        self.flying[number] = size
        heapq.heappush(self._order, number)

    def put_back(self, number: int, *, unsent: bool = False) -> None:
        """One that was on its way is not any more: it is the next one again. `unsent`: it did not arrive, surely."""
        if self.flying.pop(number, None) is not None and unsent:
            self.unsent.add(number)
        self.cursor = min(self.cursor, number - 1)


class _Owner:
    """All boxes of one server: its lanes, by key, and what is in them together."""

    __slots__ = ("lanes", "messages", "size")

    def __init__(self) -> None:
        self.lanes: dict[str, Box] = {}
        self.messages = 0
        self.size = 0


class Boxes:
    """All boxes, their bounds, and what waits for a commit. `look` is told of a box in which something may be next."""

    def __init__(
        self, settings: Settings, out: Outbox, reports: Reports, clock: Clock, snapshot: Snapshot, now: float
    ) -> None:
        self.look: Callable[[Box, float], None] = lambda box, now: None
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
        self._boxes: dict[str, Box] = {}
        self._servers: dict[str, _Owner] = {}
        for key, state in snapshot.boxes.items():
            if state.messages:
                self._add(Box(key, state))
        self._pending: dict[int, Case | None] = {}
        self._noted: dict[int, Case] = {}
        self._over_early: dict[int, str] = {}  # of those, what has ended before it was committed, and how
        self._over: set[int] = set()  # numbers of what was ended as expired and is still on the disk as waiting
        self._next_expiry_s = snapshot.next_expiry_s
        self._expiring = False
        self._forget_at = now
        self._full_until = now

    # --- asking ---

    def get(self, key: str) -> Box | None:
        """Return the box, None where nothing is in it."""
        return self._boxes.get(key)

    def lanes(self) -> list[Box]:
        """Return the lanes with something in them: a few, where there may be many mailboxes."""
        return [box for server in self._servers.values() for box in server.lanes.values()] if self._servers else []

    def lanes_to(self, server: str) -> list[Box]:
        """Return those to one server."""
        owner = self._servers.get(server)
        return list(owner.lanes.values()) if owner is not None else []

    def owners(self) -> list[str]:
        """Return the users for whom something is kept."""
        return [owner_of(key) for key in self._boxes if is_mailbox(key)]

    def until(self, case: Case, now: float) -> float:
        """Return when what is kept of a case is given up, in the store's time."""
        end = now + self._bounds.ttl_s if case.expires is None else case.expires
        return self.clock.stored(end)

    def take_numbers(self, count: int) -> int:
        """Return the first of so many numbers that nothing else has."""
        first = self.next_number
        self.next_number = first + count
        return first

    # --- keeping ---

    def keep(self, entry: Entry, case: Case | None, now: float) -> str | None:
        """Have a message wait; its case is told when it is on disk. Returns a code where there is no room for it."""
        size = len(entry.body)
        code = self._no_room(entry.box, size, now)
        if code is not None:
            return code
        box = self._boxes.get(entry.box) or self._add(Box(entry.box))
        box.cursor = min(box.cursor, entry.number - 1)
        self._count(box, 1, size)
        if case is not None:
            case.owed += 1
        self._pending[entry.number] = case
        if self._next_expiry_s is None or entry.expires_s < self._next_expiry_s:
            self._next_expiry_s = entry.expires_s
        self._out.writes.append(Keep(entry))
        return None

    def note(self, entry: Entry, outcome: str, case: Case) -> None:
        """Remember what became, so far, of a message that did not wait here; its case is told when that is on disk, or
        cannot be put there: it waits elsewhere all the same."""
        self._noted[entry.number] = case
        self._out.writes.append(Note(entry, outcome))

    def _no_room(self, key: str, size: int, now: float) -> str | None:
        bounds = self._bounds
        if now < self._full_until or self.messages >= bounds.messages or self._size + size > bounds.total_bytes:
            return "storage-full"
        if is_mailbox(key):
            box = self._boxes.get(key)
            full = box is not None and (box.messages >= bounds.user_messages or box.size + size > bounds.user_bytes)
            return "mailbox-full" if full else None
        server = self._servers.get(owner_of(key))
        if server is None or key == lane(owner_of(key), NEWS):  # what others fill must not keep news from anybody
            return None
        full = server.messages >= bounds.server_messages or server.size + size > bounds.server_bytes
        full = full or (len(server.lanes) >= self.limits.max_lanes and key not in server.lanes)
        return "overloaded" if full else None

    def committed(self, writes: Sequence[Write], result: Committed, now: float) -> None:
        """A group is on disk, or is not: tell the cases that waited for it, and look who is there by now."""
        touched: dict[str, None] = {}
        self._over.clear()
        if not result.ok:
            self._full_until = now + FULL_TURN_S
        for write in writes:
            if type(write) is Note and (noted := self._noted.pop(write.entry.number, None)) is not None:
                said = result.repeated.get(write.entry.number) or QUEUED
                self._reports.settle(noted, write.entry.target, said)
            if type(write) is not Keep:
                continue
            entry = write.entry
            if entry.number not in self._pending:
                continue
            case = self._pending.pop(entry.number)
            early = self._over_early.pop(entry.number, None)
            if early is None and (not result.ok or entry.number in result.repeated):
                self._uncount(entry.box, entry.number, len(entry.body))
            elif early is None:
                touched[entry.box] = None
            if case is not None:
                said = result.repeated.get(entry.number) or QUEUED  # what it waited for before may be over
                self._reports.settle(case, entry.target, said if result.ok else early or failed("storage-full"))
        for key in touched:
            box = self._boxes.get(key)
            if box is not None:
                self.look(box, now)

    # --- taking out ---

    def fetch(self, box: Box, limit: int) -> None:
        """Ask for those that are next."""
        if not box.fetching:
            box.fetching = True
            self._out.reads.append(Fetch(box.key, box.cursor, limit, self.limits.window_bytes))

    def found(self, fetch: Fetch, entries: Sequence[Entry], now: float) -> tuple[Box, list[Entry], list[Entry]] | None:
        """Take in what was fetched. Returns the box, what is to fly now, and what is to be ended, for its time was over
        before its turn came; None where the box is no more."""
        box = self._boxes.get(fetch.box)
        if box is None:
            return None
        box.fetching = False
        fresh = [entry for entry in entries if entry.number not in box.flying and entry.number not in self._over]
        if box.cursor < fetch.after:  # something was put back meanwhile, and comes first
            return box, [], []
        if not entries:  # the count was wrong: a disk that has lost something must not keep us asking for it
            self._count(box, -box.waiting, sum(box.flying.values()) - box.size)
            if not box.messages:
                self._drop(box.key)
            return None
        box.cursor = max(box.cursor, entries[-1].number)
        stored_s = self.clock.stored(now)
        over = [entry for entry in fresh if entry.expires_s <= stored_s]
        if over:
            self._over.update(entry.number for entry in over)
            fresh = [entry for entry in fresh if entry.expires_s > stored_s]
        for entry in fresh:
            box.fly(entry.number, len(entry.body))
        return box, fresh, over

    def hand(self, box: Box, entries: Sequence[Entry]) -> set[int]:
        """Note that these go out now; returns the numbers of those that may have arrived before."""
        before, last = box.handed, entries[-1].number
        if last > before:
            box.handed = last
            self._out.writes.append(Handed(box.key, last))
        numbers = {entry.number for entry in entries if entry.number <= before or entry.meta.get("repeated")}
        if box.unsent:
            numbers -= {entry.number for entry in entries if not entry.meta.get("repeated")} & box.unsent
            box.unsent.difference_update(entry.number for entry in entries)
        return numbers

    def end(self, entry: Entry, outcome: str) -> bool:
        """What became of a message that waited. It is remembered where anybody may ask. False: it was over before."""
        if entry.box not in self._boxes:
            return False
        if entry.number in self._pending:
            self._over_early[entry.number] = outcome
        self._uncount(entry.box, entry.number, len(entry.body))
        forget = entry.sender is None and entry.meta.get("peer") is None
        self._out.writes.append(End(entry.number, outcome, forget))
        return True

    def _uncount(self, key: str, number: int, size: int) -> None:
        box = self._boxes.get(key)
        if box is None:  # all of it was ended meanwhile
            return
        box.flying.pop(number, None)
        self._count(box, -1, -size)
        if box.messages <= 0:
            self._drop(key)

    # --- counting ---

    def _add(self, box: Box) -> Box:
        """A box has something in it."""
        self._boxes[box.key] = box
        messages, size = box.messages, box.size
        if not is_mailbox(box.key):
            self._servers.setdefault(owner_of(box.key), _Owner()).lanes[box.key] = box
        box.messages = box.size = 0
        self._count(box, messages, size)
        return box

    def _count(self, box: Box, messages: int, size: int) -> None:
        """So much more is in a box, and with it of its server's, and in all."""
        box.messages += messages
        box.size += size
        self.messages += messages
        self._size += size
        if not is_mailbox(box.key):
            server = self._servers[owner_of(box.key)]
            server.messages += messages
            server.size += size

    def _drop(self, key: str) -> None:
        """Nothing is in a box any more."""
        self._boxes.pop(key, None)
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
            self._out.reads.append(Expired(stored_s, self.limits.expiries, self.limits.window_bytes))
        if now >= self._forget_at:
            self._forget_at = now + FORGET_EVERY_S
            self._out.writes.append(SaveClock(self.clock.save(now)))
            self._out.writes.append(Forget(stored_s - OUTCOME_KEPT_S, self._bounds.outcomes))

    def expired(self, entries: Sequence[Entry], next_s: float | None, now: float) -> list[Entry]:
        """The answer to that; returns those that are to be ended. Those on their way are left to it a while longer."""
        self._expiring = False
        self._next_expiry_s = next_s
        gone: list[Entry] = []
        for entry in entries:
            box = self._boxes.get(entry.box)
            if box is not None and entry.number in box.flying:
                soon = self.clock.stored(now) + 1.0
                self._next_expiry_s = soon if self._next_expiry_s is None else min(self._next_expiry_s, soon)
            elif entry.number not in self._over:
                gone.append(entry)
        self._over.update(entry.number for entry in gone)
        return gone
