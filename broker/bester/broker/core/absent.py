"""Results for users who are away: their messages are queued, those of a reply that names many in parts. Pure.

A part is queued a turn of the loop, and senders with more of them take turns, so that a reply to thousands is nobody's
wait. What its sender sends meanwhile to a user whose message is still to be queued goes behind that message.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import NamedTuple

from msgspec import structs

from bester.broker.core.cases import Reports
from bester.broker.core.jobs import Job
from bester.broker.core.message_groups import sender_of
from bester.broker.core.queues import Queues
from bester.broker.core.relays import Relays
from bester.broker.core.settings import Settings
from bester.broker.core.trace import QUEUED, Trace, shortened
from bester.broker.store_requests import Entry, mailbox
from bester.broker.wire.messages import Command
from bester.broker.wire.outcomes import failed


class _Rest(NamedTuple):
    """What is left of a command: the numbers of its targets who are away."""

    job: Job
    command: Command
    id_: str
    absent: deque[int]


class _Sender:
    """Commands of one sender of which something is left, and how often they name each user."""

    __slots__ = ("names", "rests")

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.rests: deque[_Rest] = deque()


class Absent:
    """Results for users without a connection, or with messages queued that go first.

    `accounts_of` returns those of some names that users have. A command of which something is left counts as one
    pending result of its case.
    """

    def __init__(
        self, settings: Settings, queues: Queues, relays: Relays, reports: Reports, trace: Trace,
        accounts_of: Callable[[Collection[str]], Collection[str]],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._limits = settings.limits
        self._queues = queues
        self._relays = relays
        self._reports = reports
        self._trace = trace
        self._accounts_of = accounts_of
        self._later: OrderedDict[Hashable, _Sender] = OrderedDict()  # by sender, the next one first
        self._count = self._size_bytes = 0
        self._job: Job | None = None  # the latest one, and how many more of its results are queued at once
        self._room = 0

    @property
    def is_due(self) -> bool:
        """Return whether something is left to later turns."""
        return bool(self._later)

    def waits(self, job: Job, user: str) -> bool:
        """Return whether a message of the sender is still to be queued for the user."""
        if not self._later:
            return False
        sender = self._later.get(sender_of(job))
        return sender is not None and user in sender.names

    def add(self, job: Job, command: Command, id_: str, absent: Sequence[int], now: float) -> None:
        """Take in results for users who are given by the numbers of their targets: queue a few of each job now, and
        leave the others to later turns."""
        if job is not self._job:
            self._job, self._room = job, self._limits.absent_at_once
        is_quick = self._settings.open_accounts or len(absent) <= self._room
        if is_quick and not any(self.waits(job, command.targets[t]) for t in absent):
            self._room -= len(absent)
            self._queue(job, command, id_, absent, now)
            return
        sender = self._later.setdefault(sender_of(job), _Sender())
        sender.names.update(command.targets[t] for t in absent)
        bare = structs.replace(job, body=b"", group=None, suspicion=None)  # all that a result needs of the job
        sender.rests.append(_Rest(bare, command, id_, deque(absent)))
        job.case.pending += 1
        self._count += len(absent)
        self._size_bytes += len(command.body)
        while self._count > self._limits.max_absent or self._size_bytes > self._limits.max_absent_bytes:
            self.go_on(now)

    def go_on(self, now: float) -> None:
        """Queue some of what was left."""
        room = self._limits.absent_at_once
        while self._later and room > 0:
            key, sender = self._later.popitem(last=False)
            rest = sender.rests[0]
            part = [rest.absent.popleft() for _ in range(min(room, len(rest.absent)))]
            room -= len(part)
            self._count -= len(part)
            self._forget(sender.names, [rest.command.targets[t] for t in part])
            self._queue(rest.job, rest.command, rest.id_, part, now)
            if not rest.absent:
                sender.rests.popleft()
                self._size_bytes -= len(rest.command.body)
            if sender.rests:
                self._later[key] = sender
            if not rest.absent:
                self._reports.settle_one(rest.job.case)

    @staticmethod
    def _forget(names: Counter[str], users: Sequence[str]) -> None:
        """Count users out of those whose messages are still to be queued."""
        for name in users:
            names[name] -= 1
            if not names[name]:
                del names[name]

    def _queue(self, job: Job, command: Command, id_: str, absent: Sequence[int], now: float) -> None:
        """Queue results, if the users are known. All names are looked up at once."""
        targets = command.targets
        are_open = self._settings.open_accounts
        known = () if are_open else self._accounts_of({targets[t] for t in absent})
        unknown = "not-connected" if are_open else "unknown-user"
        if not known:
            failure, root = failed(unknown), job.root
            self._trace.extend((now, root, f"{id_}.{t}", failure, shortened(targets[t]), now) for t in absent)
            job.case.record_failures([targets[t] for t in absent], failure)
            return
        for t in absent:
            name, code = targets[t], unknown
            if name in known:
                found = self.enqueue(job, command, id_, t, self._queues.reserve_numbers(1), now)
                if found is None:
                    continue
                code = found
            self._trace.add((now, job.root, f"{id_}.{t}", failed(code), shortened(name), now))
            job.case.record(name, failed(code))

    def enqueue(
        self, job: Job, command: Command, id_: str, t: int, number: int, now: float, *, repeated: bool = False
    ) -> str | None:
        """Queue a result for its user; its case is settled when the result is on disk. Returns a code where there is no
        room."""
        name, meta = command.targets[t], self._relays.meta_of(job)
        if repeated:
            meta["repeated"] = True
        entry = Entry(
            number, mailbox(name), f"{id_}.{t}", name, job.type, command.body, job.case.sender,
            self._queues.expires_at(job.case, now), meta,
        )  # fmt: skip
        code = self._queues.enqueue(entry, job.case, now)
        if code is None:
            self._trace.add((now, job.root, entry.id, QUEUED, name, 0.0))
        return code
