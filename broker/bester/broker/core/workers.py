"""Workers: which handler gets which message. Credit, least-loaded choice, order, and what waits for a place.

A worker is one handler process; workers that serve exactly the same types form a pool, so that a choice costs the
same with one type or a thousand, one worker or a thousand. Messages wait per type, first come first served.
"""

from __future__ import annotations

from collections import deque

from bester.broker.core.parcels import Parcel
from bester.broker.core.values import Link

CHUNK = 16
"""With deep queues a worker is given this many messages before the next one is chosen: batches stay whole."""


class Worker:
    """One handler: `busy` holds what it was given, by token, oldest first; `free` is its unused credit."""

    __slots__ = ("busy", "credit", "free", "leaving", "link", "ordered", "pool")

    def __init__(self, link: Link, pool: Pool, credit: int, ordered: frozenset[str]) -> None:
        self.link = link
        self.pool = pool
        self.credit = credit
        self.free = credit
        self.ordered = ordered
        self.busy: dict[int, Parcel] = {}
        self.leaving = False


class Pool:
    """Workers of the same types, shelved by free credit so that the one with most is found without a search."""

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types
        self.workers: dict[Worker, None] = {}
        self.busy = 0
        self._shelves: dict[int, dict[Worker, None]] = {}
        self._top = 0
        self._current: Worker | None = None
        self._chunk_left = 0

    def add(self, worker: Worker) -> None:
        self.workers[worker] = None
        self._shelve(worker)

    def remove(self, worker: Worker) -> None:
        del self.workers[worker]
        self._unshelve(worker)
        if self._current is worker:
            self._current = None

    def _shelve(self, worker: Worker) -> None:
        self._shelves.setdefault(worker.free, {})[worker] = None
        if worker.free > self._top:
            self._top = worker.free

    def _unshelve(self, worker: Worker) -> None:
        shelf = self._shelves[worker.free]
        del shelf[worker]
        if not shelf:
            del self._shelves[worker.free]

    def change(self, worker: Worker, by: int) -> None:
        """Change a worker's free credit."""
        if len(self.workers) == 1:  # nobody to compare with: the shelf is put right when somebody joins
            shelf = self._shelves.pop(worker.free)
            worker.free += by
            self._shelves[worker.free] = shelf
            self._top = worker.free
        else:
            self._unshelve(worker)
            worker.free += by
            self._shelve(worker)
        self.busy -= by

    def best(self) -> Worker | None:
        """Return the worker to give the next message to: most free credit, in turn among equals; None: all full."""
        current = self._current
        if current is not None and self._chunk_left > 0 and current.free > 0:
            self._chunk_left -= 1
            return current
        while self._top > 0 and self._top not in self._shelves:
            self._top -= 1
        if self._top <= 0:
            return None
        worker = next(iter(self._shelves[self._top]))
        deep = self.busy >= CHUNK * len(self.workers)
        self._current, self._chunk_left = (worker, CHUNK - 1) if deep else (None, 0)
        return worker


class Workers:
    """All workers of a broker and all that waits for one."""

    def __init__(self) -> None:
        self._pools: dict[frozenset[str], Pool] = {}
        self._serving: dict[str, list[Pool]] = {}
        self._waiting: dict[str, deque[Parcel]] = {}
        self._bound: dict[tuple[str, str], _Binding] = {}
        self.waiting = 0

    # --- who is there ---

    def join(self, link: Link, types: frozenset[str], credit: int, ordered: frozenset[str]) -> Worker:
        """A handler has said HELLO."""
        pool = self._pools.get(types)
        if pool is None:
            pool = self._pools[types] = Pool(types)
            for type_ in types:
                self._serving.setdefault(type_, []).append(pool)
        worker = Worker(link, pool, credit, ordered)
        pool.add(worker)
        return worker

    def leave(self, worker: Worker) -> None:
        """The handler takes no new messages; what it holds stays its own."""
        if worker.leaving:
            return
        worker.leaving = True
        pool = worker.pool
        pool.busy -= len(worker.busy)
        pool.remove(worker)
        if not pool.workers:
            del self._pools[pool.types]
            for type_ in pool.types:
                self._serving[type_].remove(pool)
                if not self._serving[type_]:
                    del self._serving[type_]

    def rejoin(self, worker: Worker, types: frozenset[str], credit: int, ordered: frozenset[str]) -> Worker:
        """The handler has said HELLO again on its link: new options, same outstanding messages."""
        self.leave(worker)
        again = self.join(worker.link, types, credit, ordered)
        again.busy = worker.busy
        again.pool.change(again, -len(worker.busy))
        for binding in self._bound.values():
            if binding.worker is worker:
                binding.worker = again
        return again

    def serves(self, type_: str) -> bool:
        """Is any worker of the type there?"""
        return type_ in self._serving

    # --- giving and taking back ---

    def choose(self, parcel: Parcel) -> Worker | None:
        """Return the worker for a parcel that has just come; None: it must wait."""
        if parcel.user is not None and self._bound:
            binding = self._bound.get((parcel.type, parcel.user))
            if binding is not None:
                return binding.worker if binding.worker.free > 0 and not binding.held else None
        queue = self._waiting.get(parcel.type)
        if queue:
            return None
        return self.idle(parcel.type)

    def idle(self, type_: str) -> Worker | None:
        """Return the worker of the type with most free credit; None: there is none, or all are full."""
        pools = self._serving.get(type_)
        if not pools:
            return None
        if len(pools) == 1:
            return pools[0].best()
        candidates = [worker for pool in pools if (worker := pool.best()) is not None]
        return max(candidates, key=lambda worker: worker.free, default=None)

    def give(self, worker: Worker, token: int, parcel: Parcel) -> None:
        """Book a parcel as given to a worker."""
        worker.busy[token] = parcel
        worker.pool.change(worker, -1)
        if worker.ordered and parcel.user is not None and parcel.type in worker.ordered:
            key = (parcel.type, parcel.user)
            binding = self._bound.get(key)
            if binding is None:
                binding = self._bound[key] = _Binding(worker)
            binding.count += 1

    def take(self, worker: Worker, token: int) -> Parcel | None:
        """Book a parcel as done with; None: the worker was never given that token."""
        parcel = worker.busy.pop(token, None)
        if parcel is None:
            return None
        if worker.leaving:
            worker.free += 1
        else:
            worker.pool.change(worker, 1)
        if self._bound and parcel.user is not None:
            self._unbind(parcel.type, parcel.user, worker)
        return parcel

    def _unbind(self, type_: str, user: str, worker: Worker) -> None:
        binding = self._bound.get((type_, user))
        if binding is None or binding.worker is not worker:
            return
        binding.count -= 1
        if binding.count == 0:
            del self._bound[(type_, user)]
            if binding.held:
                self._front(binding.held)

    def lose(self, worker: Worker) -> list[Parcel]:
        """The worker is dead: return what it held, oldest first; what waited for it alone waits in the queue again."""
        self.leave(worker)
        lost = list(worker.busy.values())
        worker.busy.clear()
        for key in [key for key, binding in self._bound.items() if binding.worker is worker]:
            self._front(self._bound.pop(key).held)
        return lost

    def _front(self, parcels: deque[Parcel]) -> None:
        for parcel in reversed(parcels):
            self._waiting.setdefault(parcel.type, deque()).appendleft(parcel)

    # --- waiting ---

    def wait(self, parcel: Parcel, *, first: bool = False) -> None:
        """Queue a parcel; `first` before all others of its type (it had its turn, and its handler died)."""
        self.waiting += 1
        if parcel.user is not None and self._bound:
            binding = self._bound.get((parcel.type, parcel.user))
            if binding is not None:
                binding.held.append(parcel)
                return
        queue = self._waiting.setdefault(parcel.type, deque())
        if first:
            queue.appendleft(parcel)
        else:
            queue.append(parcel)

    def waits(self, type_: str) -> int:
        """Return how many messages of a type wait in its queue."""
        queue = self._waiting.get(type_)
        return len(queue) if queue else 0

    def next_for(self, worker: Worker) -> Parcel | None:
        """Return the next waiting parcel this worker should be given, None where it is full or nothing waits for it."""
        if not self.waiting or worker.free <= 0 or worker.leaving:
            return None
        for binding in self._bound.values() if worker.ordered else ():
            if binding.worker is worker and binding.held:
                self.waiting -= 1
                return binding.held.popleft()
        types = worker.pool.types
        while (type_ := next((type_ for type_ in self._waiting if type_ in types), None)) is not None:
            parcel = self._pop(type_, worker)
            if parcel is not None:
                return parcel
        return None

    def _pop(self, type_: str, worker: Worker) -> Parcel | None:
        queue = self._waiting.get(type_)
        while queue:
            parcel = queue.popleft()
            binding = self._bound.get((type_, parcel.user)) if parcel.user is not None and self._bound else None
            if binding is not None and (binding.worker is not worker or binding.held):
                binding.held.append(parcel)
                continue
            self.waiting -= 1
            if queue:  # to the back of the line of types, so that one deep queue does not starve the others
                self._waiting[type_] = self._waiting.pop(type_)
            else:
                del self._waiting[type_]
            return parcel
        self._waiting.pop(type_, None)
        return None

    def overdue(self, type_: str, before: float) -> list[Parcel]:
        """Take out of a type's queue what has waited since `before` or longer."""
        gone: list[Parcel] = []
        queue = self._waiting.get(type_)
        while queue and queue[0].since <= before:
            gone.append(queue.popleft())
        if queue is not None and not queue:
            del self._waiting[type_]
        for (bound_type, _), binding in self._bound.items():
            while bound_type == type_ and binding.held and binding.held[0].since <= before:
                gone.append(binding.held.popleft())
        self.waiting -= len(gone)
        return gone

    def waiting_types(self) -> list[str]:
        """Return the types for which something waits."""
        held = {type_ for (type_, _), binding in self._bound.items() if binding.held}
        return [*self._waiting, *(held - self._waiting.keys())]


class _Binding:
    """One user's messages of an ordered type belong to this worker while it holds any of them."""

    __slots__ = ("count", "held", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.count = 0
        self.held: deque[Parcel] = deque()
