"""The store driver: carries out the writes and reads of the core on the store, once a turn.

The loop waits for nothing. A commit is made at once, on the loop's thread, as long as the disk is quick; where another
process holds the lock the group is pending and is tried again by a timer; where a commit takes long the next ones are
made beside the loop. While a group is pending, later writes and reads wait behind it, and so does what follows from
them: the core sends that on `Router.on_committed` and `Router.on_reads`. All other messages go on.

Where the store is remote, all commits and reads are made beside the loop. While a remote store is away, what would have
to be kept is refused at once; a group whose connection broke in the middle stays pending until the database tells what
became of it.

A group that is pending for longer than PATIENCE_S has failed: its new messages, and those that come until the store can
be written again, are refused as `storage-unavailable`. New messages above the bound of a group are written in the next
turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from bester.broker.core.effects import Effects, NoticeEvent, StoreRead
from bester.broker.core.router import Router
from bester.broker.store import Store
from bester.broker.store.commits import GROWING, GROWING_HELD_BACK_BYTES, is_given_up, key_of
from bester.broker.store_groups import ENTRY_BYTES, GROUP_MESSAGES, REMOTE_GROUP_MESSAGES, Groups, size_of, size_of_all
from bester.broker.store_questions import Questions
from bester.broker.store_requests import PRESSING, Committed, Entry, Fetch, MarkSent, Question, Write
from bester.broker.wire.codes import BesterError

ASKED_AT_ONCE = 8
"""Questions answered in one turn, some milliseconds each: an asker of many waits, and nobody else does."""
READ_BYTES = 256 * 1024
"""Found by the reads of one turn, by the bodies and ENTRY_BYTES for each message (and for nothing), and one read more:
some milliseconds, with all that follows from them. Thousands of users may come back at once, each to a mailbox."""
REMOTE_READ_BYTES = 8 * 1024 * 1024
"""The same for a remote store, as asked for: a commit follows each part, and smaller parts make more commits."""
READ_AT_ONCE = 32
"""Reads that are made beside the loop together: commits wait behind them, and what they find is handled in one turn."""
PATIENCE_S = 5.0
"""Time for which a group may be pending: longer than a copy tool or a shell holds the lock, and shorter than the time
after which clients and other servers take the server for dead."""
WAITING_BYTES = 16 * 1024 * 1024
"""Bound on what may wait behind a pending group, for memory must stay bounded: above it the store counts as away."""
ROOM_BYTES = 2 * 1024 * 1024
"""Bytes behind a pending group above which the core is to add no more of what can wait."""
REMOTE_WAITING_BYTES = 64 * 1024 * 1024
"""The same for a remote store: every group is pending for some milliseconds there, and of the largest messages a few
come at once."""
LOOK_S = 0.5
"""Most time between two looks at a pending group that counts as waiting: a process that was stopped, or could not run,
has not waited for its disk meanwhile."""
RETRY_S = 0.02
"""Pause between two tries of a pending group, some microseconds each."""
NOTICE_S = 1.0
"""Time after which the log says that a group is pending."""
SLOW_S = 0.002
"""Wait of a commit for the disk after which the next SLOW_COMMITS are made beside the loop, counted anew from each that
is as slow: whoever waits for the loop would wait twice as long. A quick disk answers sooner than a thread."""
SLOW_COMMITS = 20
STUCK_S = 0.1
"""Time of a commit above which messages are refused where too much comes behind it. Until then the loop waits instead:
a disk that takes its time is no reason to refuse anything."""
STEP_S = 0.001
"""Pause between two looks at a thread that is waited for."""
TOLD_S = 0.3
"""Time of a commit after which the log says that the disk is slow."""
FINISH_S = 2.0
"""Time for which the end of the process waits for a lock or a disk."""
SLOW_DISK = "a commit takes long ({:.1f} s); see that the disk of the store is well, and not busy with something else"
SLOW_DATABASE = "a commit takes long ({:.1f} s); see that PostgreSQL and the network to it are well"
_PRESSING: frozenset[type[Any]] = frozenset(PRESSING)


@dataclass
class _Pending:
    """A group that is not committed yet, or `reads` that are not done yet, `since` some time; `waited_s` of it count,
    up to the last look at it. The loop may wait for it for `steps` more. `aside`: a thread is at work on it, and sets
    `result`, or an answer or error for each read as `answers`."""

    group: Sequence[Write]
    since: float
    why: str = ""
    looked: float = 0.0
    waited_s: float = 0.0
    steps: int = round(STUCK_S / STEP_S)
    told: bool = False
    aside: bool = False
    result: Committed | None = None
    took_s: float = 0.0
    reads: Sequence[StoreRead] = ()
    answers: list[Any] | None = None

    @property
    def is_done(self) -> bool:
        """Return whether the thread has finished."""
        return (self.answers if self.reads else self.result) is not None


def _found_bytes(answer: Sequence[Entry] | BesterError) -> int:
    """Return about how many bytes a queue's messages that were found take; a read that finds none takes its time."""
    found = () if isinstance(answer, BesterError) else answer
    return sum(ENTRY_BYTES + len(entry.body) for entry in found) or ENTRY_BYTES


class StoreDriver:
    """Writes and reads of one router. `carry_out` gets the effects with which the router answers their results.

    `due`: something can be written or read now. `added` counts the writes that the core has given, `settled` those of
    them behind which none is left but new messages. `aside` runs a function beside the loop, after which the shell
    calls `retry`, and raises RuntimeError where the system has no thread; None: all commits are made at once. `pause`
    waits, at the end of the process, or where much comes behind a commit. `stopwatch` measures commits, in seconds.
    """

    def __init__(
        self, router: Router, store: Store, carry_out: Callable[[Effects], None], *,
        clock: Callable[[], float] = time.monotonic, groups: Groups | None = None,
        aside: Callable[[Callable[[], None]], None] | None = None, pause: Callable[[float], None] = time.sleep,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self.due = False
        self.added = 0
        self.settled = 0
        self._router = router
        self._store = store
        self._carry_out = carry_out
        self._clock = clock
        self._aside = aside
        self._pause = pause
        self._stopwatch = stopwatch
        self._writes: list[Write] = []
        self._taken = 0  # `added` as of the latest group
        most = REMOTE_GROUP_MESSAGES if store.is_remote else GROUP_MESSAGES
        self._groups = Groups(group_messages=most) if groups is None else groups
        self._reads: list[StoreRead] = []
        self._ready: list[StoreRead] = []  # reads that wait for the pending group alone
        self._unread: list[StoreRead] = []
        self._read_room = 0  # bytes that reads may still find in this turn
        self._questions = Questions()
        self._held_back = False  # the store may hold back writes of a group that failed
        self._owes = False  # the store does hold back some
        self._told = False  # the log says that writing waits
        self._was_away = False  # the database was, at the last commit: any later one shows that it is there
        self._pending: _Pending | None = None
        self._waiting_bytes = 0  # bytes of writes that came since a group is pending
        self._away = False  # a group was pending for too long, and nothing was written since
        self._slow = 0  # commits that are still made beside the loop

    @property
    def is_idle(self) -> bool:
        """Return whether all writes and reads of the core are done; questions do not count."""
        waits = self._pending is not None or self._writes or self._groups or self._held_back
        return not (waits or self._reads or self._ready or self._unread)

    @property
    def is_pending(self) -> bool:
        """Return whether a group is pending: the shell calls `retry` every RETRY_S."""
        return self._pending is not None

    @property
    def has_room(self) -> bool:
        """Return whether little waits to be written, so that the core may add what can wait."""
        return not self._groups and self.has_room_behind

    @property
    def has_room_behind(self) -> bool:
        """Return whether little waits behind a pending group, if there is any."""
        return self._waiting_bytes < ROOM_BYTES

    def _is_blocked(self) -> bool:
        """Return `is_pending`, by a call: mypy takes a property for unchanged by the calls between two looks at it."""
        return self._pending is not None

    @property
    def _is_beside(self) -> bool:
        """Return whether the next commit is made beside the loop."""
        return self._aside is not None and (self._slow > 0 or self._store.is_remote)

    def add(self, writes: Sequence[Write], reads: Sequence[StoreRead]) -> None:
        """Add writes, and reads that are to be done after them."""
        self._writes += writes
        self.added += len(writes)
        for read in reads:
            if not isinstance(read.request, Question):
                self._reads.append(read)
            elif not self._questions.add(read):
                self._carry_out(self._router.on_reads([(read, None)], self._clock()))
        if self._pending is not None:
            self._waiting_bytes += size_of_all(writes)
            if self._waiting_bytes > WAITING_BYTES // 2 and self._pending.aside and not self._store.is_remote:
                self._wait_for_disk(self._pending)
        elif reads or any(type(write) in _PRESSING for write in writes):
            self.due = True

    def run(self) -> None:
        """Write and read until nothing is due, or a group is pending: the writes in one transaction, then the reads.

        Either may lead to more of both. Where messages above the bound of a group, reads or questions are left, the
        driver is `due` again.
        """
        asked = 0
        self._read_room = REMOTE_READ_BYTES if self._store.is_remote else READ_BYTES
        self._groups.begin_turn()
        while self.due and not self._is_blocked():
            if self._ready and self._read_room > 0:
                reads, self._ready = self._ready, []
                self._do(reads)
            elif self._writes or self._groups.is_due:
                writes, self._writes = self._writes, []
                self._taken = self.added
                self._commit(self._groups.take(writes))
                if self._is_blocked():
                    self._ready += self._reads
                    self._reads = []
            elif self._reads and self._read_room > 0:
                reads, self._reads = self._reads, []
                self._do(reads)
            elif self._questions and asked < ASKED_AT_ONCE:
                asked += 1
                questions = [self._questions.take()]
                while self._store.is_remote and self._questions and len(questions) < ASKED_AT_ONCE:
                    questions.append(self._questions.take())
                self._do(questions)
            else:
                self.due = False
        self.due = not self._is_blocked() and bool(self._ready or self._reads or self._questions or self._groups)

    def tick(self) -> None:
        """Write what could wait as well, and try failed reads again; call this a few times a second."""
        self.retry()
        if not self._is_blocked() and self._store.is_due:
            self._probe()
        if self._is_blocked():
            return
        if self._unread:
            self._reads, self._unread = self._unread + self._reads, []
        self.due = self.due or bool(self._writes or self._groups or self._ready or self._reads or self._questions)
        self.run()
        # Perhaps nothing else is written for long, and an ended message must not be sent again.
        if not self._is_blocked() and (self._held_back or self._away):
            self._probe()

    def finish(self) -> None:
        """Write everything, whatever the bound of a group: the process ends. A lock is waited for, and a disk, for
        FINISH_S at most. Where another process has taken the store nothing can be written, and bridges wait to hear of
        the end."""
        if self._store.fenced:
            return
        self.tick()
        deadline = self._clock() + FINISH_S
        while self._groups or self._writes or self._is_blocked():
            if self._is_blocked():
                self._pause(RETRY_S)
                self._away = self._away or self._clock() >= deadline
                self.retry()
                if self._is_blocked() and self._clock() >= deadline:
                    return
            self.due = True
            self.run()

    # --- commits ---

    def retry(self) -> None:
        """Try a pending group again, or take the result of its thread; then the driver is `due`."""
        pending, now = self._pending, self._clock()
        if pending is None:
            return
        if pending.aside and not pending.is_done:
            self._wait_for_thread(pending, now)
            return
        if pending.reads:
            self._pending = None
            self._waiting_bytes = 0
            self._answered(pending)
            self.due = True
            return
        if pending.aside:
            assert pending.result is not None
            result, pending.result, pending.aside = pending.result, None, False
            self._time(pending.took_s, pending.took_s, result)
        elif self._is_beside:
            self._start(pending)
            return
        else:
            result = self._attempt(pending.group)
        if result.busy and not self._away:
            pending.why = result.why
            if not self._is_over(pending, now):
                return
            self._away = True
        self._pending = None
        self._waiting_bytes = 0
        self._conclude(pending.group, result)
        self.due = True

    def _commit(self, group: Sequence[Write]) -> None:
        """Commit a group now, or leave it pending."""
        if not group:
            return
        if self._is_beside:
            self._start(_Pending(group, self._clock()))
            return
        result = self._attempt(group)
        if result.busy and not self._away:
            self._pending = _Pending(group, self._clock(), result.why)
        else:
            self._conclude(group, result)

    def _attempt(self, group: Sequence[Write]) -> Committed:
        started = self._stopwatch()
        end = self._store.begin(group)
        waits_since = self._stopwatch()
        result = end()
        now = self._stopwatch()
        self._time(now - started, now - waits_since, result)
        return result

    def _start(self, pending: _Pending) -> None:
        """Wait for the disk beside the loop, or do reads; where the system has no thread, on the loop.

        The statements of a group are carried out here: in a thread, each would wait for the interpreter, of which a
        busy loop leaves little. A remote store leaves them to the thread, whose waits are longer than that."""

        def read() -> None:
            """Do the reads, and leave the answers for the next try."""
            try:
                pending.answers = list(map(self._answer, pending.reads))
            except Exception as error:  # noqa: BLE001 (a fault of the store must not leave the reads pending for ever)
                pending.answers = [BesterError("storage-unavailable", repr(error))] * len(pending.reads)

        def write() -> None:
            """Commit the group, and leave the result for the next try."""
            started = self._stopwatch()
            try:
                result = commit()
            except Exception as error:  # noqa: BLE001 (a fault of the store must not leave the group pending for ever)
                kept = self._store.hold_back(pending.group)
                result = Committed(False, why=repr(error), code="storage-unavailable", kept=kept)
            pending.took_s = self._stopwatch() - started
            pending.result = result

        commit: Callable[[], Committed] = partial(self._store.commit, pending.group)
        if not pending.reads and not self._store.is_remote:
            with suppress(Exception):  # a fault of the store: the commit has it again
                commit = self._store.begin(pending.group)
        work = read if pending.reads else write
        pending.aside = True
        self._pending = pending
        assert self._aside is not None
        try:
            self._aside(work)
        except RuntimeError:
            work()
            self.retry()

    def _conclude(self, group: Sequence[Write], result: Committed) -> None:
        """Hand the result of a group to the core. A group that was busy for too long has failed.

        Nothing follows from a group that another process has fenced off, neither a report nor a delivery: that process
        goes on with what is stored, and this one ends."""
        if self._store.fenced:
            return
        if result.busy:
            result = result._replace(kept=self._store.hold_back(group))
        failed, self._held_back = self._held_back or self._away, not result.ok
        if result.ok:
            self.settled = self._taken
        self._away = self._away and not result.ok
        figures = self._router.figures.store
        figures.failures += not result.ok
        if not result.ok:
            figures.failing, self._owes = result.why, self._store.held_back > 0
            self._was_away = self._store.is_remote and result.code == "storage-unavailable"
        elif group or self._owes or self._was_away:  # otherwise nothing was written
            if (self._told or figures.failing is not None) and not self._was_away:  # a database tells its end by itself
                self._notice("store-writable")
            figures.failing, self._owes, self._was_away, self._told = None, False, False, False
        if group or result.late or result.dropped or (failed and result.ok):  # answers may wait for it
            self._carry_out(self._router.on_committed(group, result, self._clock()))

    def _probe(self) -> None:
        """Write what the store holds back, and find out whether the store can be written again."""
        if self._is_beside:
            self._start(_Pending((), self._clock()))
        else:
            self._conclude((), self._attempt(()))

    def _time(self, took_s: float, waited_s: float, result: Committed) -> None:
        """Take in how long a commit took, and how it ended: after a slow wait the next ones are made beside
        the loop. One that was not made, as at a lock that is tried several times a second, counts for no commit."""
        figures = self._router.figures.store
        if result.ok:
            figures.commits += 1
            figures.commit_s += took_s
        if result.sync_s is not None:
            figures.sync.add(result.sync_s)
        if took_s >= TOLD_S:
            self._notice("store-waits", why=self._slow_text(took_s))
        if waited_s >= SLOW_S:
            self._slow = SLOW_COMMITS
        elif self._slow:
            self._slow -= 1

    def _wait_for_disk(self, pending: _Pending) -> None:
        """Wait for the thread where much comes behind its group, for STUCK_S in all."""
        while pending.steps and not pending.is_done:
            pending.steps -= 1
            self._pause(STEP_S)

    def _is_over(self, pending: _Pending, now: float) -> bool:
        """Return whether a group has been pending for too long, or too much waits behind it; tell the log
        once."""
        pending.waited_s += min(now - max(pending.since, pending.looked), LOOK_S)
        pending.looked = now
        if self._store.away:
            return True
        if pending.waited_s >= NOTICE_S and not pending.told:
            pending.told = self._told = True
            self._notice("store-waits", why=pending.why or self._slow_text(pending.waited_s))
        most_bytes = REMOTE_WAITING_BYTES if self._store.is_remote else WAITING_BYTES
        return pending.waited_s >= PATIENCE_S or self._waiting_bytes > most_bytes

    def _slow_text(self, took_s: float) -> str:
        return (SLOW_DATABASE if self._store.is_remote else SLOW_DISK).format(took_s)

    def _notice(self, event: NoticeEvent, **fields: str) -> None:
        told = Effects()
        told.notice(event, **fields)
        self._carry_out(told)

    def _wait_for_thread(self, pending: _Pending, now: float) -> None:
        """Refuse the new messages behind a commit that does not end. The cases of its own group stay open: nobody knows
        yet whether the group will be written. Where another process has taken the store nothing is refused, either: the
        bridges submit these messages at another broker."""
        if self._store.fenced or not self._is_over(pending, now):
            return
        self._away = True
        refused: list[Write] = []
        kept: dict[Hashable, Write] = {}  # the latest of each, so that their number is bounded by the contents
        growing_bytes = 0
        for write in reversed([*self._groups.take_all(), *self._writes]):
            key = id(write) if isinstance(write, MarkSent) else key_of(write)
            growing_bytes += size_of(write) if type(write) in GROWING and not is_given_up(write) else 0
            is_too_much = type(write) in GROWING and growing_bytes > GROWING_HELD_BACK_BYTES
            if is_given_up(write) or key in kept or is_too_much:
                refused.append(write)
            else:
                kept[key] = write
        self._writes = list(kept.values())[::-1]
        self._waiting_bytes = size_of_all(self._writes)
        why = self._store.away or self._slow_text(now - pending.since)
        result = Committed(False, why=why, code="storage-unavailable")
        self._carry_out(self._router.on_committed(refused[::-1], result, now))
        while self._questions:  # their askers may ask again
            self._carry_out(self._router.on_reads([(self._questions.take(), None)], now))

    # --- reads ---

    def _do(self, reads: list[StoreRead]) -> None:
        """Do reads, as far as the messages that they would find are committed and the turn has room for more than one;
        writes come before the others."""
        done = 0
        answered: list[tuple[StoreRead, Any]] = []
        for read in reads:
            if done and (self._read_room <= 0 or (self._store.is_remote and done == READ_AT_ONCE)):
                break
            if self._groups.concerns(read.request):
                if self._store.is_remote and done:
                    break
                self._took(answered)
                answered = []
                self._commit(self._groups.take_all())
                if self._is_blocked():
                    self._ready = reads[done:] + self._ready
                    return
            done += 1
            if self._store.is_remote:
                self._read_room -= read.request.limit_bytes if isinstance(read.request, Fetch) else 0
            else:
                answer = self._answer(read)
                self._read_room -= _found_bytes(answer) if isinstance(read.request, Fetch) else 0
                answered.append((read, answer))
        self._reads = reads[done:] + self._reads
        self._took(answered)
        if self._store.is_remote:
            self._read_aside(reads[:done])

    def _read_aside(self, reads: Sequence[StoreRead]) -> None:
        """Do reads beside the loop, where there is any thread."""
        pending = _Pending((), self._clock(), reads=reads)
        if self._aside is not None:
            self._start(pending)
        else:
            pending.answers = list(map(self._answer, reads))
            self._answered(pending)

    def _answer(self, read: StoreRead) -> Any:
        """Return the answer to a read, or the error."""
        try:
            return self._store.read(read.request)
        except BesterError as error:
            return error

    def _answered(self, pending: _Pending) -> None:
        assert pending.answers is not None
        self._took(zip(pending.reads, pending.answers, strict=True))

    def _took(self, answered: Iterable[tuple[StoreRead, Any]]) -> None:
        """Hand the answers to reads, or their errors, to the core. No answer follows where another process has taken
        the store: the asker asks another broker."""
        if self._store.fenced:
            return
        told: list[tuple[StoreRead, Any]] = []
        for read, answer in answered:
            if not isinstance(answer, BesterError):
                told.append((read, answer))
                continue
            self._notice("store-unreadable", why=answer.text)
            if isinstance(read.request, Question):
                told.append((read, None))  # the asker may ask again
            else:
                self._unread.append(read)  # no message may be passed over: its queue stands still until then
        if told:
            self._carry_out(self._router.on_reads(told, self._clock()))
