"""Fan-out: a command's results for users of this server, those of a long list in parts. Pure.

A part is sent, or queued for those who are away, in a turn of the loop, and types with more of them take turns, so that
a message to thousands is nobody's wait. Messages of the same type to users who are still to get that message go behind
it: a user gets what a handler sends in the order of its replies.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

from msgspec import structs

from bester.broker.core.absent import Absent
from bester.broker.core.cases import Reports
from bester.broker.core.deliveries import Deliveries, Delivery, Outstanding, Share
from bester.broker.core.directory import Directory
from bester.broker.core.effects import Effects, Link
from bester.broker.core.jobs import Job
from bester.broker.core.mailboxes import Mailboxes
from bester.broker.core.queues import Queues
from bester.broker.core.settings import Settings
from bester.broker.store_requests import mailbox
from bester.broker.wire.messages import Command, Deliver, Meta
from bester.broker.wire.outcomes import failed

AWAY = 4
"""Users here who take as long as one who is away, whose message is looked up, written and remembered."""


class _List:
    """A command of which users are left: its targets from number `at` on. `frames` are those of the others."""

    __slots__ = ("at", "command", "frames", "id", "job")

    def __init__(self, job: Job, command: Command, id_: str) -> None:
        self.job = job
        self.command = command
        self.id = id_
        self.at = 0
        self.frames = 0


class _Type:
    """Commands of one type's handlers of which users are left, and how often these name each user."""

    __slots__ = ("lists", "names")

    def __init__(self) -> None:
        self.lists: deque[_List] = deque()
        self.names: Counter[str] = Counter()


class FanOut:
    """Results for users: a DELIVER for each bridge with sessions of some, and a message in the mailbox of each other.

    `later` has the types with commands of which users are left to later turns; each of these commands counts as one
    pending result of its case.
    """

    def __init__(
        self, settings: Settings, out: Effects, reports: Reports, directory: Directory, deliveries: Deliveries,
        queues: Queues, mailboxes: Mailboxes, absent: Absent,
    ) -> None:  # fmt: skip
        self._limits = settings.limits
        self._away = 1 if settings.open_accounts else AWAY
        self._out = out
        self._reports = reports
        self._places = directory.places
        self._deliveries = deliveries
        self._queues = queues
        self._mailboxes = mailboxes
        self._absent = absent
        self.later: OrderedDict[str, _Type] = OrderedDict()  # the next one first
        self._count = self._size_bytes = 0  # users left, and the bodies for them
        self._job: Job | None = None  # the latest one, and how much more of it fits into this turn
        self._room = 0
        self._is_stuck = False  # all lists are at users who are away, and the store had no room

    def must_queue(self, job: Job, user: str) -> bool:
        """Return whether a result must go behind others for the user."""
        return self._is_behind_mail(job, user) or (bool(self.later) and self._is_left(job, user))

    def _is_behind_mail(self, job: Job, user: str) -> bool:
        """Return whether a result goes behind messages queued for the user. A duplicate does where any are queued, for
        one of them may be the first."""
        if job.may_repeat and self._queues.get(mailbox(user)) is not None:
            return True
        return self._mailboxes.must_queue(user)

    def _is_left(self, job: Job, user: str) -> bool:
        """Return whether the user is still to get a message of the job's type."""
        later = self.later.get(job.type)
        return later is not None and user in later.names

    def begin(self, job: Job, number: int, command: Command, now: float, *, alone: bool) -> None:
        """Send the results of a command to users, those of a long list in parts; `alone`: there is no other command."""
        if job is not self._job:
            self._job, self._room = job, self._limits.targets_at_once
        whole = _List(job, command, f"{job.id}.{number}")
        if not self.later or not any(self._is_left(job, name) for name in command.targets):
            self._room -= self._send(whole, self._room, now, alone=alone)
            if whole.at == len(command.targets):
                return
        whole.job = structs.replace(job, body=b"", group=None, suspicion=None)  # all that a result needs of the job
        later = self.later.setdefault(job.type, _Type())
        later.lists.append(whole)
        self._is_stuck = False
        later.names.update(command.targets[whole.at :])
        job.case.pending += 1
        self._count += len(command.targets) - whole.at
        self._size_bytes += len(command.body)
        while self._count > self._limits.targets_later or self._size_bytes > self._limits.targets_later_bytes:
            self.go_on(now)

    def has(self, user: str) -> bool:
        """Return whether a user is still to get a message."""
        return any(user in later.names for later in self.later.values())

    def may_go_on(self, *, keeps: bool) -> bool:
        """Return whether `go_on` would send to some of the users who are left, as far as is known."""
        return bool(self.later) and (keeps or not self._is_stuck)

    def go_on(self, now: float, *, keeps: bool = True) -> None:
        """Send to some of the users who are left; `keeps`: the store has room for the messages of those who are away.
        Without, each list is sent up to the first of them."""
        room, tries, self._is_stuck = self._limits.targets_at_once, len(self.later), not keeps
        while self.later and room > 0 and (keeps or tries):
            tries -= 1
            type_, later = next(iter(self.later.items()))
            self.later.move_to_end(type_)  # first: a fault in one list keeps no other back, and loses none
            first = later.lists[0]
            before, targets = first.at, first.command.targets
            room -= self._send(first, room, now, alone=False, keeps=keeps)
            self._count -= first.at - before
            self._is_stuck = self._is_stuck and first.at == before
            _count_out(later.names, targets[before : first.at])
            is_done = first.at == len(targets)
            if is_done:
                self._size_bytes -= len(first.command.body)
                later.lists.popleft()
                if not later.lists:
                    del self.later[type_]
                self._reports.settle_one(first.job.case)

    def _send(self, users: _List, room: int, now: float, *, alone: bool, keeps: bool = True) -> int:
        """Send to users of a list as long as there is room, and without `keeps` up to the first who is away. Return how
        much of the room they took."""
        job, command, case = users.job, users.command, users.job.case
        names, first, t = command.targets, users.at, users.at
        by_link: dict[Link, list[list[int]]] = {}
        shares: dict[int, Share] | None = None
        absent: list[int] = []
        took = 0
        while t < len(names) and took < room:
            places = self._places(names[t])
            if places is None or self._is_behind_mail(job, names[t]):
                if not keeps:
                    break
                absent.append(t)
                took += self._away
            elif (frames := users.frames + sum(map(len, places.values()))) > self._limits.max_frames:
                case.record(names[t], failed("too-many-results"))
                self._out.reached["max_frames"] += 1
                took += 1
            else:
                users.frames = frames
                took += 1
                if len(places) > 1:
                    shares = {} if shares is None else shares
                    shares[t] = Share(len(places))
                for link, sessions in places.items():
                    by_link.setdefault(link, []).append([t, *sessions])
            t += 1
        if absent:
            self._absent.queue(job, command, users.id, absent, now)
        users.at = t
        alone = alone and len(by_link) == 1 and t == len(names)
        for link, targets in by_link.items():
            completes = alone and case.completes_on(link)
            case.pending += 1
            outstanding = self._deliveries.of(link)
            numbers = self._queues.reserve_numbers(t - first) - first
            delivery = Delivery(job, command, users.id, _numbers(targets), shares, completes, numbers, now)
            self._out.send(link, deliver(delivery, targets, outstanding))
        return took


def deliver(delivery: Delivery, targets: list[list[int]], outstanding: Outstanding) -> Deliver:
    """Return the DELIVER of a delivery to targets on one bridge, of the deliveries that are `outstanding` there; the
    caller sends it, and counts the delivery as pending. The bridge reports by itself where the delivery completes the
    case."""
    job, token = delivery.job, None
    meta: Meta = {"origin": job.origin}
    if delivery.reported:
        token = job.case.token
        meta["message"] = job.case.id
    if job.may_repeat:
        meta["redelivered"] = True
    return Deliver(outstanding.add(delivery), delivery.id, job.type, delivery.command.body, targets, token, meta)


def _numbers(targets: Sequence[Sequence[int]]) -> list[int]:
    return [target[0] for target in targets]


def _count_out(names: Counter[str], users: Sequence[str]) -> None:
    """Count users out of those who are left."""
    for name in users:
        names[name] -= 1
        if not names[name]:
            del names[name]
