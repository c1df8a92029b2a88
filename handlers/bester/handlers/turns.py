"""Requests that wait for their handlers, in the order in which senders take turns: whose requests have taken least time
is next.

The requests in hand may all be one sender's, as many as the credit, and each may take long. Another's requests wait for
those that run, and not for all of them. A sender that comes has a turn before those that always wait, who have equal
shares of the time. What each has had counts as long as anybody waits: with nobody kept waiting, nobody owes anything.
(This is start-time fair queueing, whose virtual time grows by a small part of the time of all requests, too, so that an
endless row of newcomers is not always first.)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count

from bester.broker.wire.runs import Received
from bester.handlers.app import Route

Job = tuple[Received, Route, int, float]
"""A request, its route, the number of the link that delivered it, and the time of receipt (monotonic seconds)."""

LEAST_S = 20e-6
"""Seconds that every request counts, before it is known how long the request takes."""
NEWCOMERS = 128
"""Divisor: those who always wait have a turn after so many times its length for newcomers at the latest."""
LONG_S = 0.001
"""Seconds that a request may take before the answers to earlier ones are kept waiting by it."""
LONG_BYTES = 64 * 1024
"""Length of a body from which on its request may take so long: as many brackets as that take a millisecond to read."""
REMEMBERED = 64
"""Least number of senders to be looked through for those that need not be remembered."""


def sender_of(request: Received) -> Hashable:
    """Return the sender of a request: a user, or another server."""
    return request.user if request.user is not None else ("server", request.meta.get("peer"))


def is_long(request: Received) -> bool:
    """Return whether the body of a request is so long that the request may take LONG_S."""
    return len(request.body) > LONG_BYTES


class Turns:
    """Queue of requests with the methods of a deque, for any thread. The requests of one sender keep their order.
    `charge` says how long a request has taken that was in the queue."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._lock = threading.Lock()
        self._number = count()
        self._count = 0
        self._used: dict[Hashable, float] = {}  # seconds by sender, also of some without requests here
        self._most_used = REMEMBERED
        self._slow: set[Hashable] = set()  # senders whose last request took long
        self._virtual = 0.0  # seconds used of a sender that always waits
        self._base = 0.0  # the same when nobody waited last: of those who were forgotten then
        self.clear()
        self.extend(jobs)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        with self._lock:
            return iter([job for queue in self._queues.values() for job in queue])

    def clear(self) -> None:
        """Drop all requests; what each sender has had is remembered."""
        self.take_all()

    def take_all(self) -> list[Job]:
        """Take all requests, which come back: what each sender has had is remembered."""
        with self._lock:
            taken = [job for queue in self._queues.values() for job in queue] if self._count else []
            self._queues: dict[Hashable, deque[Job]] = {}  # by sender, the next one first
            self._count = 0
            self._order: list[tuple[float, int, Hashable]] = []  # a heap: seconds used at least, number, sender
            return taken

    def append(self, job: Job) -> None:
        """Queue a request."""
        with self._lock:
            self._append(job)

    def extend(self, jobs: Iterable[Job]) -> None:
        """Queue requests in their order."""
        with self._lock:
            for job in jobs:
                self._append(job)

    def extendleft(self, jobs: Iterable[Job]) -> None:
        """Queue each request before the others of its sender: the last one is the first then, as in a deque."""
        with self._lock:
            for job in jobs:
                queue = self._queues.get(sender_of(job[0]))
                if queue is None:
                    self._append(job)
                else:
                    self._count += 1
                    queue.appendleft(job)

    def _append(self, job: Job) -> None:
        sender = sender_of(job[0])
        self._count += 1
        queue = self._queues.get(sender)
        if queue is not None:
            queue.append(job)
            return
        self._queues[sender] = deque((job,))
        used = self._used[sender] = max(self._used.get(sender, 0.0), self._virtual)
        heappush(self._order, (used, next(self._number), sender))

    def popleft(self) -> Job:
        """Take the next request. Raises IndexError where there is none."""
        with self._lock:
            used, _, sender = heappop(self._order)
            while used < (charged := self._used[sender]):
                heappush(self._order, (charged, next(self._number), sender))
                used, _, sender = heappop(self._order)
            self._virtual = max(self._virtual, used) + LEAST_S / NEWCOMERS
            self._used[sender] = used = used + LEAST_S
            queue = self._queues[sender]
            job = queue.popleft()
            self._count -= 1
            if queue:
                heappush(self._order, (used, next(self._number), sender))
            else:
                del self._queues[sender]
                self._forget()
            return job

    def charge(self, job: Job, took_s: float) -> None:
        """Count the time that a request has taken against its sender."""
        with self._lock:
            sender = sender_of(job[0])
            self._used[sender] = self._used.get(sender, self._base) + took_s
            self._virtual += took_s / NEWCOMERS
            if took_s > LONG_S:
                self._slow.add(sender)
            else:
                self._slow.discard(sender)

    def is_slow(self, job: Job) -> bool:
        """Return whether the last request of this one's sender took long."""
        return sender_of(job[0]) in self._slow

    def _forget(self) -> None:
        """Forget senders that have no requests here, and have had no more time than those who wait; all where nobody
        waits, so that a request of long ago, however long it took, keeps nobody back."""
        if not self._queues:
            self._used.clear()
            self._slow.clear()
            self._base = self._virtual
        elif len(self._used) > self._most_used:
            least, queues = self._virtual, self._queues
            self._used = {sender: used for sender, used in self._used.items() if used > least or sender in queues}
            self._slow.intersection_update(self._used)
            self._most_used = max(2 * len(self._used), REMEMBERED)
