"""The store driver: carries out the writes and reads of the core on the store, once a turn.

Nothing is sent before the writes that it follows from are on disk: a shell sends after `run`, not before.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

from bester.broker.core.effects import Effects, StoreRead
from bester.broker.core.router import Router
from bester.broker.store import Store
from bester.broker.store_requests import PRESSING, FindOutcomes, Question, Write
from bester.broker.wire.codes import BesterError

ASKED_AT_ONCE = 8
"""Questions answered in one turn, some milliseconds each: an asker of many waits, and nobody else does."""
MAX_ASKED = 65_536
"""Pending questions; above it a question is answered `overloaded`."""
_PRESSING: frozenset[type[Any]] = frozenset(PRESSING)


class _Questions:
    """Reads on behalf of users and operators: each asker's in their order, and the askers in turn."""

    def __init__(self) -> None:
        self._askers: OrderedDict[str, deque[StoreRead]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, read: StoreRead) -> bool:
        """Add a question. Returns False where too many are pending."""
        if self._count >= MAX_ASKED:
            return False
        request = read.request
        asker = request.sender if isinstance(request, FindOutcomes) else ""
        self._askers.setdefault(asker, deque()).append(read)
        self._count += 1
        return True

    def take(self) -> StoreRead:
        """Return and remove the next question of the next asker."""
        asker, questions = self._askers.popitem(last=False)
        first = questions.popleft()
        if questions:
            self._askers[asker] = questions
        self._count -= 1
        return first


class StoreDriver:
    """Writes and reads of one router. `carry_out` gets the actions that the router answers to their results.

    `due`: something must be written or read before anything is sent.
    """

    def __init__(
        self, router: Router, store: Store, carry_out: Callable[[Effects], None], *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.due = False
        self._router = router
        self._store = store
        self._carry_out = carry_out
        self._clock = clock
        self._writes: list[Write] = []
        self._reads: list[StoreRead] = []
        self._unread: list[StoreRead] = []
        self._questions = _Questions()
        self._held_back = False  # the store may hold back writes of a group that failed

    @property
    def is_idle(self) -> bool:
        """Return whether all writes and reads of the core are done; questions do not count."""
        return not (self._writes or self._held_back or self._reads or self._unread)

    def add(self, writes: Sequence[Write], reads: Sequence[StoreRead]) -> None:
        """Add writes, and reads that are to be done after them."""
        self._writes += writes
        for read in reads:
            if not isinstance(read.request, Question):
                self._reads.append(read)
            elif not self._questions.add(read):
                self._carry_out(self._router.on_read(read, None, self._clock()))
        if reads or any(type(write) in _PRESSING for write in writes):
            self.due = True

    def run(self) -> None:
        """Write and read until nothing is due: all writes in one transaction, then the reads.

        Either may lead to more of both. Where questions are left, the driver is `due` again.
        """
        asked = 0
        while self.due:
            if self._writes:
                writes, self._writes = self._writes, []
                result = self._store.commit(writes)
                self._held_back = not result.ok
                self._carry_out(self._router.on_committed(writes, result, self._clock()))
            elif self._reads:
                reads, self._reads = self._reads, []
                for read in reads:
                    self._read(read)
            elif self._questions and asked < ASKED_AT_ONCE:
                asked += 1
                self._read(self._questions.take())
            else:
                self.due = False
        self.due = bool(self._questions)

    def tick(self) -> None:
        """Write what could wait as well, and try failed reads again; call this a few times a second."""
        if self._unread:
            self._reads, self._unread = self._unread + self._reads, []
        self.due = self.due or bool(self._writes or self._reads or self._questions)
        self.run()
        if self._held_back:  # perhaps nothing else is written for long, and an ended message must not be sent again
            self._held_back = not self._store.commit(()).ok

    def _read(self, read: StoreRead) -> None:
        try:
            answer = self._store.read(read.request)
        except BesterError as error:
            unreadable = Effects()
            unreadable.notice("store-unreadable", why=error.text)
            self._carry_out(unreadable)
            if not isinstance(read.request, Question):
                self._unread.append(read)  # no message may be passed over: its queue stands still until then
                return
            answer = None  # the asker may ask again
        self._carry_out(self._router.on_read(read, answer, self._clock()))
