"""Workers: which handler gets which message. Credit, least-loaded choice, order, and what waits for a place.

A worker is one handler process; workers that serve exactly the same types form a pool, so that a choice costs the
same with one type or a thousand, one worker or a thousand. Messages wait per type, first come first served; of a type
whose handlers asked for order, each user's messages wait in a line of their own. Messages over which a worker may have
died wait apart, and go to workers that were set aside for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container

from bester.broker.core.lines import Item, Line, oldest
from bester.broker.core.parcels import Parcel
from bester.broker.core.pools import Pool, Worker
from bester.broker.core.suspects import Suspects, holds_suspect
from bester.broker.core.values import Link

MAX_LOOKS = 16
"""Types that are looked at to find one to forget: many messages of one batch may ask for it."""


class Workers:
    """All workers of a broker and all that waits for one. `max_ordered` types may be asked for in order.

    `loose` names the types of which something was put back into the queue while a worker may be free: whoever calls
    looks there and shares it out. `freed` are workers that may go on with what waits for them alone, and are to be fed.
    """

    def __init__(self, max_ordered: int) -> None:
        self._max_ordered = max_ordered
        self._pools: dict[frozenset[str], Pool] = {}
        self._serving: dict[str, list[Pool]] = {}
        self._queues: dict[str, deque[Item]] = {}
        self._waits: dict[str, int] = {}
        self._ordered: dict[str, None] = {}  # the one looked at last is the last
        self._lines: dict[tuple[str, str], Line] = {}
        self._express: dict[str, Pool] = {}  # for types of one pool, without order or anything waiting: that pool
        self._suspects = Suspects()
        self.loose: dict[str, None] = {}
        self.freed: dict[Worker, None] = {}

    # --- who is there ---

    def join(self, link: Link, types: frozenset[str], credit: int, ordered: frozenset[str]) -> Worker:
        """A handler has said HELLO."""
        worker = Worker(link, credit)
        self._enlist(worker, types, ordered)
        return worker

    def rejoin(self, worker: Worker, types: frozenset[str], credit: int, ordered: frozenset[str]) -> None:
        """The handler has said HELLO again on its link: new options, same outstanding messages."""
        alone = worker.aside and bool(worker.busy)
        self.leave(worker)
        worker.leaving = False
        worker.credit, worker.free = credit, credit - len(worker.busy)
        self._enlist(worker, types, ordered)
        if alone:
            self._set_aside(worker)

    def _enlist(self, worker: Worker, types: frozenset[str], ordered: frozenset[str]) -> None:
        pool = self._pools.get(types)
        if pool is None:
            pool = self._pools[types] = Pool(types)
            pool.waiting = {type_: None for type_ in self._queues if type_ in types}
            for type_ in types:
                self._serving.setdefault(type_, []).append(pool)
                self._review(type_)
        pool.add(worker)
        for type_ in ordered & types:
            self._put_in_order(type_)

    def _review(self, type_: str) -> None:
        """Something changed about a type: may its messages go straight to its pool?"""
        pools = self._serving.get(type_, ())
        if len(pools) == 1 and type_ not in self._queues and type_ not in self._ordered:
            self._express[type_] = pools[0]
        else:
            self._express.pop(type_, None)

    def leave(self, worker: Worker) -> None:
        """The handler takes no new messages; what it holds stays its own."""
        if worker.leaving:
            worker.stuck = False  # it will not come back from that
            return
        worker.leaving = True
        pool = worker.pool
        pool.remove(worker)
        worker.aside = False
        self._suspects.aside.pop(worker, None)
        self.freed.pop(worker, None)
        if not pool.workers:
            del self._pools[pool.types]
            for type_ in pool.types:
                self._serving[type_].remove(pool)
                if not self._serving[type_]:
                    del self._serving[type_]
                self._review(type_)

    def suspend(self, worker: Worker) -> None:
        """Pass a worker over that holds nothing but messages that are over; what waited for it alone is anybody's."""
        self.leave(worker)
        worker.stuck = True
        for parcel in worker.busy.values():
            self._count_down(parcel, first=True)

    def resume(self, worker: Worker) -> None:
        """Count on a worker again that was suspended."""
        worker.stuck = worker.leaving = False
        self._enlist(worker, worker.pool.types, frozenset())

    def lose(self, worker: Worker) -> list[Parcel]:
        """The worker is dead: return what it held, oldest first; what waited for it alone waits for anybody again."""
        self.leave(worker)
        lost = list(worker.busy.values())
        worker.busy.clear()
        for parcel in lost:
            self._count_down(parcel, first=True)
        return lost

    def serves(self, type_: str) -> bool:
        """Is any worker of the type there?"""
        return type_ in self._serving

    # --- giving and taking back ---

    def choose(self, parcel: Parcel) -> Worker | None:
        """Return the worker for a parcel that has just come; None: it must wait."""
        type_ = parcel.type
        pool = self._express.get(type_)
        if pool is not None:
            return pool.best()
        if type_ in self._ordered and parcel.user is not None:
            line = self._lines.get((type_, parcel.user))
            if line is not None:
                worker = line.worker
                return worker if worker is not None and not line.waiting and worker.takes(type_) else None
        if type_ in self._queues:
            return None
        return self.idle(type_)

    def idle(self, type_: str) -> Worker | None:
        """Return the worker of the type with most free credit; None: there is none, or all are full."""
        pools = self._serving.get(type_)
        if pools is None:
            return None
        if len(pools) == 1:
            return pools[0].best()
        candidates = [worker for pool in pools if (worker := pool.best()) is not None]
        return max(candidates, key=lambda worker: worker.free, default=None)

    def give(self, worker: Worker, token: int, parcel: Parcel) -> None:
        """Book a parcel as given to a worker that has credit for it."""
        worker.busy[token] = parcel
        worker.pool.change(worker, -1)
        if self._ordered and parcel.type in self._ordered and parcel.user is not None:
            key = (parcel.type, parcel.user)
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = Line(key)
            line.worker = worker
            line.count += 1
            parcel.line = line

    def take(self, worker: Worker, token: int) -> Parcel | None:
        """Book a parcel as done with; None: the worker was never given that token."""
        parcel = worker.busy.pop(token, None)
        if parcel is None:
            return None
        if worker.leaving:
            worker.free += 1
        else:
            worker.pool.change(worker, 1)
        if parcel.line is not None:
            self._count_down(parcel, first=False)
        return parcel

    def skip(self, parcel: Parcel) -> None:
        """A parcel that a worker was to be given will not be: its line is bound to nobody on its account."""
        line = self._lines.get((parcel.type, parcel.user)) if parcel.user is not None else None
        if line is not None and line.worker is not None and not line.count:
            self._free(line, first=True)

    def _count_down(self, parcel: Parcel, *, first: bool) -> None:
        """A line whose worker holds nothing of it any more is anybody's again, and takes its turn in the queue."""
        line, parcel.line = parcel.line, None
        if line is None:
            return
        line.count -= 1
        if not line.count:
            self._free(line, first=first)

    def _free(self, line: Line, *, first: bool) -> None:
        assert line.worker is not None
        line.worker.lines.pop(line, None)
        line.worker = None
        if not line.waiting:
            del self._lines[line.key]
            return
        self._stand(line.key[0], line, first=first)
        self.loose[line.key[0]] = None

    def _stand(self, type_: str, item: Item, *, first: bool) -> None:
        """Put an item into the queue it belongs to, at its end or in front."""
        queue = self._suspects.queue(type_) if item.suspected else self._queue(type_)
        if first:
            queue.appendleft(item)
        else:
            queue.append(item)

    # --- waiting ---

    def wait(self, parcel: Parcel, *, first: bool = False) -> None:
        """Queue a parcel; `first` before all others of its type (it had its turn, and its handler died)."""
        type_ = parcel.type
        self._waits[type_] = self._waits.get(type_, 0) + 1
        if first:
            self.loose[type_] = None
        item: Item = parcel
        if type_ in self._ordered and parcel.user is not None:
            line = self._lines.get((type_, parcel.user))
            if line is not None:
                stands_as = line.suspected if line.worker is None else parcel.suspected
                line.add(parcel, first=first)
                if line.worker is None and line.suspected != stands_as:
                    self._move(line)
                return
            item = self._lines[type_, parcel.user] = Line((type_, parcel.user))
            item.waiting.append(parcel)
        self._stand(type_, item, first=first)

    def _move(self, line: Line) -> None:
        """Put a line that has got another first message into the right queue; it stands in front of the wrong one."""
        type_ = line.key[0]
        if line.suspected:
            self._queues[type_].remove(line)
            if not self._queues[type_]:
                self._drop_queue(type_)
        else:
            self._suspects.queue(type_).remove(line)
            self._suspects.tidy(type_)
        self._stand(type_, line, first=True)

    # --- suspects ---

    def isolate(self) -> list[Worker]:
        """Set workers aside for the suspects that wait, and let go of those that are not needed any more. Returns the
        workers that are set aside; what they hold they finish first."""
        suspects = self._suspects
        if suspects:
            wanted = {
                worker: None
                for type_ in suspects.types()
                for worker in suspects.wanted(type_, self._serving.get(type_, ()))
            }
            for worker in wanted:
                if not worker.aside:
                    self._set_aside(worker)
            self._release(wanted)
        elif suspects.aside:
            self._release()
        return list(suspects.aside)

    def clear(self) -> None:
        """Put what is suspected no more back into its queue, in front."""
        for type_, items in self._suspects.cleared():
            self._queue(type_).extendleft(reversed(items))
            self.loose[type_] = None

    def _set_aside(self, worker: Worker) -> None:
        worker.pool.set_aside(worker)
        self._suspects.aside[worker] = None

    def _release(self, wanted: Container[Worker] = ()) -> None:
        """Let the workers that are set aside, and neither hold a suspect nor are `wanted` for one, take what is new."""
        for worker in [worker for worker in self._suspects.aside if worker not in wanted and not holds_suspect(worker)]:
            del self._suspects.aside[worker]
            worker.pool.take_back(worker)
            self.loose.update(worker.pool.waiting)
            if worker.lines:
                self.freed[worker] = None

    def _next_suspect(self, worker: Worker) -> Parcel | None:
        """Return the next suspect for a worker that is set aside, None where it has to finish something first."""
        item = self._suspects.next_for(worker) if not worker.busy else None
        if item is None:
            return None
        parcel = self._bind(item, worker)
        self._count_out(parcel.type, 1)
        return parcel

    def _bind(self, item: Item, worker: Worker) -> Parcel:
        """Take the first message of an item that has left its queue; a line is the worker's own from now on."""
        if type(item) is Parcel:
            return item
        assert isinstance(item, Line)
        item.worker = worker
        parcel = item.waiting.popleft()
        if item.waiting:
            worker.lines[item] = None
        return parcel

    # --- what is next ---

    def keeper(self, parcel: Parcel) -> Worker | None:
        """Return the worker that a waiting parcel of an ordered type is bound to, if any."""
        line = self._lines.get((parcel.type, parcel.user)) if parcel.user is not None else None
        return line.worker if line is not None else None

    def _queue(self, type_: str) -> deque[Item]:
        queue = self._queues.get(type_)
        if queue is None:
            queue = self._queues[type_] = deque()
            self._express.pop(type_, None)
            for pool in self._serving.get(type_, ()):
                pool.waiting[type_] = None
        return queue

    def _drop_queue(self, type_: str) -> None:
        del self._queues[type_]
        for pool in self._serving.get(type_, ()):
            del pool.waiting[type_]
        self._review(type_)

    def _put_in_order(self, type_: str) -> None:
        """Somebody asks for order: from now on this type is ordered, and what waits for it already is put in lines."""
        if type_ in self._ordered or (len(self._ordered) >= self._max_ordered and not self._forget_ordered()):
            return
        self._ordered[type_] = None
        self._express.pop(type_, None)
        if type_ not in self._waits:
            return
        suspects = self._suspects.take_all(type_)
        others = list(self._queues.get(type_, ()))
        if others:
            self._drop_queue(type_)
        del self._waits[type_]
        for item in (*suspects, *others):  # no lines yet
            assert type(item) is Parcel
            self.wait(item)

    def _forget_ordered(self) -> bool:
        """Forget that a type was asked for in order which nobody serves, and of which nothing waits: a handler that
        names ever new types must not take away the place of those that others serve. Return whether one was found."""
        for _ in range(MAX_LOOKS):
            type_ = next(iter(self._ordered))
            del self._ordered[type_]
            if type_ not in self._serving and type_ not in self._waits:
                return True
            self._ordered[type_] = None
        return False

    def waits(self, type_: str) -> int:
        """Return how many messages of a type wait."""
        return self._waits.get(type_, 0)

    def queued(self, type_: str) -> bool:
        """Is there any message of the type that would be given to whoever is free?"""
        return type_ in self._queues

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return sum(self._waits.values())

    def next_for(self, worker: Worker) -> Parcel | None:
        """Return the next waiting parcel this worker should be given, None where it is full or nothing waits for it.

        Its own lines and the queues take turns, and among themselves too, so that none starves the others.
        """
        if worker.free <= 0 or worker.leaving:
            return None
        if worker.aside:
            suspect = self._next_suspect(worker)
            if suspect is not None or worker.busy:
                return suspect
            self._release()
        types = worker.pool.waiting
        lines = worker.lines
        line = self._own_line(worker) if lines else None
        if line is not None and (worker.lines_next or not types):
            worker.lines_next = False
            del lines[line]
            parcel = line.waiting.popleft()
            if line.waiting:
                lines[line] = None
        elif types:
            worker.lines_next = True
            parcel = self._pop(next(iter(types)), worker)
        else:
            return None
        self._count_out(parcel.type, 1)
        return parcel

    def _own_line(self, worker: Worker) -> Line | None:
        """Return the line of a worker's own that is next. One that begins with a suspect waits until the worker holds
        nothing of it, and is anybody's then."""
        types = worker.pool.types
        return next((line for line in worker.lines if line.key[0] in types and not line.suspected), None)

    def _pop(self, type_: str, worker: Worker) -> Parcel:
        queue = self._queues[type_]
        item = queue.popleft()
        if queue:  # to the back of the line of types
            types = worker.pool.waiting
            types[type_] = types.pop(type_)
        else:
            self._drop_queue(type_)
        return self._bind(item, worker)

    def _count_out(self, type_: str, number: int) -> None:
        left = self._waits[type_] - number
        if left:
            self._waits[type_] = left
        else:
            del self._waits[type_]

    # --- what has waited too long ---

    def waiting_types(self) -> list[str]:
        """Return the types of which something waits in a queue."""
        return [*self._queues, *[type_ for type_ in self._suspects.types() if type_ not in self._queues]]

    def overdue(self, type_: str, before: Callable[[Parcel], float]) -> list[Parcel]:
        """Take out of a type's queues what has waited since the time that `before` says of it, or longer."""
        gone: list[Parcel] = []
        queue = self._queues.get(type_)
        kept: list[Item] = []  # what was put back in front has begun to wait anew, and hides older ones
        while queue:
            head = oldest(queue[0])
            if head.since > before(head) and not head.attempt:
                break
            kept += self._overdue_of(queue.popleft(), before, gone)
        if queue is not None:
            queue.extendleft(reversed(kept))
            if not queue:
                self._drop_queue(type_)
        suspects = self._suspects.take_all(type_)
        for item in suspects:
            for left in self._overdue_of(item, before, gone):
                self._stand(type_, left, first=False)
        if gone:
            self._count_out(type_, len(gone))
        return gone

    def _overdue_of(self, item: Item, before: Callable[[Parcel], float], gone: list[Parcel]) -> tuple[Item, ...]:
        """Put what is overdue of an item into `gone`. Returns what is left of the item: itself, or nothing."""
        if type(item) is Parcel:
            if item.since > before(item):
                return (item,)
            gone.append(item)
            return ()
        assert isinstance(item, Line)
        gone += item.overdue(before)
        if item.waiting:
            return (item,)
        del self._lines[item.key]
        return ()

    def overdue_for(self, worker: Worker, before: Callable[[Parcel], float]) -> list[Parcel]:
        """Take out of a worker's own lines what has waited since the time that `before` says of it, or longer."""
        gone: list[Parcel] = []
        for line in list(worker.lines):
            late = line.overdue(before)
            if late:
                self._count_out(line.key[0], len(late))
                gone += late
            if not line.waiting:
                del worker.lines[line]
        return gone
