"""A group that is not committed at once: the store is locked, or the disk is slow."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bester.broker import store_driver
from bester.broker.core.effects import Effects, Notice, StoreRead
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.store.memory import MemoryStore
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_driver import (
    LOOK_S,
    PATIENCE_S,
    SLOW_COMMITS,
    SLOW_S,
    STEP_S,
    STUCK_S,
    WAITING_BYTES,
    StoreDriver,
)
from bester.broker.store_groups import Groups
from bester.broker.store_requests import (
    Bury,
    Committed,
    DeadLetter,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindOutcomes,
    MarkSent,
    Read,
    RecordRemote,
    SaveLane,
    Write,
)

BOX = "user/bob"


def keep(number: int, body: bytes = b"1", box: str = BOX) -> Enqueue:
    return Enqueue(Entry(number, box, f"m.{number}.0", "bob", "chat", body, None, 9e9, {}))


def letter(name: str, body: bytes = b"") -> Bury:
    return Bury(DeadLetter(name, "t", body, "timeout", 0.0, {}))


class Recorder(Router):
    """A router that records the results that it is told, in order."""

    def __init__(self) -> None:
        super().__init__(Settings("s1"), epoch="e", first_token=1, now=0.0, wall_s=0.0)
        self.log: list[Any] = []

    def on_committed(self, writes: Sequence[Write], result: Committed, now: float) -> Effects:
        self.log.append((list(writes), "ok" if result.ok else result.code))
        return Effects()

    def on_reads(self, answered: Iterable[tuple[StoreRead, Any]], now: float) -> Effects:
        self.log += [(read.request, answer) for read, answer in answered]
        return Effects()


class Paced(MemoryStore):
    """A store whose disk takes as long as told, by the stand's stopwatch."""

    took_s = 0.0
    total_s = 0.0
    is_faulty = False

    def begin(self, writes: Sequence[Write]) -> Callable[[], Committed]:
        end = super().begin(writes)

        def wait() -> Committed:
            """Wait for the disk."""
            if self.is_faulty:
                raise ArithmeticError("a bug")
            self.total_s += self.took_s
            return end()

        return wait


class Stand:
    """A driver with a clock of its own. `works` are the commits handed to a thread, which a test runs."""

    def __init__(self, *, threads: bool = True, groups: Groups | None = None) -> None:
        self.store = Paced()
        self.store.open()
        self.router = Recorder()
        self.works: list[Callable[[], None]] = []
        self.threads = threads
        self.now = 100.0
        self.notices: list[Notice] = []
        self.pause: Callable[[float], None] = self._let_time_pass
        self.driver = StoreDriver(
            self.router, self.store, self._carry_out, clock=lambda: self.now, groups=groups, aside=self._aside,
            pause=self._pause, stopwatch=lambda: self.store.total_s,
        )  # fmt: skip

    def _carry_out(self, effects: Effects) -> None:
        self.driver.add(effects.writes, effects.reads)
        self.notices += [call for call in effects.calls if isinstance(call, Notice)]

    def _aside(self, work: Callable[[], None]) -> None:
        if not self.threads:
            raise RuntimeError("can't start new thread")
        self.works.append(work)

    def _pause(self, seconds: float) -> None:
        self.pause(seconds)

    def _let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    def add(self, *requests: Write | Read) -> None:
        """Add writes and reads of one turn, and run."""
        reads = [StoreRead(each, lambda answer, now: None) for each in requests if isinstance(each, Read)]
        self.driver.add([each for each in requests if not isinstance(each, Read)], reads)
        self.driver.run()

    def retry(self, after_s: float = 0.0) -> None:
        """Retry, as a shell does: often, and run then."""
        until = self.now + after_s
        while self.now < until - LOOK_S:
            self.now += LOOK_S
            self.driver.retry()
            self.driver.run()
        self.now = until
        self.driver.retry()
        self.driver.run()

    def slow(self) -> None:
        """Let the driver find out that the disk is slow."""
        self.store.took_s = SLOW_S
        self.add(keep(9_000 + len(self.log)))

    @property
    def log(self) -> list[Any]:
        log, self.router.log = self.router.log, []
        return log


@pytest.fixture
def stand() -> Stand:
    return Stand()


# --- a lock ---


@pytest.mark.parametrize("seconds", [0.0, 0.5, PATIENCE_S - 0.1])
def test_group_that_finds_a_lock_is_written_once_the_lock_is_released(stand: Stand, seconds: float) -> None:
    stand.store.locked = True
    stand.add(keep(1))
    assert stand.driver.is_pending
    assert not stand.driver.due
    stand.retry(seconds)
    assert stand.log == []
    stand.store.locked = False
    stand.retry()
    assert stand.log == [([keep(1)], "ok")]
    assert stand.driver.is_idle


def test_everything_behind_a_pending_group_keeps_its_order(stand: Stand) -> None:
    fetch, later = Fetch(BOX, 0, 9, 1000), Fetch("user/eve", 0, 9, 1000)
    stand.store.locked = True
    stand.add(keep(1), fetch)
    stand.add(keep(2), MarkSent(BOX, 1), later)
    assert not stand.driver.due
    assert stand.log == []
    stand.store.locked = False
    stand.retry()
    assert stand.log == [
        ([keep(1)], "ok"), (fetch, [keep(1).entry]), ([keep(2), MarkSent(BOX, 1)], "ok"), (later, []),
    ]  # fmt: skip


def test_lock_of_seconds_is_told_once(stand: Stand) -> None:
    stand.store.locked = True
    stand.add(keep(1))
    assert stand.notices == []
    for _ in range(3):
        stand.retry(1.0)
    assert [notice.event for notice in stand.notices] == ["store-waits"]
    assert "locked" in stand.notices[0].fields["why"]


def test_tries_at_a_lock_are_counted_as_no_commits(stand: Stand) -> None:
    stand.store.locked = True
    stand.add(keep(1))
    stand.retry(PATIENCE_S - 0.1)
    figures = stand.router.figures.store
    assert (figures.commits, figures.failures) == (0, 0)
    stand.store.locked = False
    stand.retry()
    assert (figures.commits, figures.failures) == (1, 0)


def test_lock_that_lasts_refuses_new_messages_and_loses_no_end(stand: Stand) -> None:
    stand.add(keep(1), keep(2))
    stand.store.locked = True
    stand.add(End(1, "delivered"), keep(3))
    stand.add(keep(4))
    _ = stand.log
    stand.retry(PATIENCE_S)
    assert stand.log == [
        ([End(1, "delivered"), keep(3)], "storage-unavailable"), ([keep(4)], "storage-unavailable"),
    ]  # fmt: skip
    stand.add(keep(5))
    assert stand.log == [([keep(5)], "storage-unavailable")], "refused at once"
    assert not stand.driver.is_pending
    stand.add(Fetch(BOX, 0, 9, 1000))
    assert stand.log == [(Fetch(BOX, 0, 9, 1000), [keep(2).entry])], "the end counts before it is written"
    stand.driver.tick()
    assert stand.store.held_back == 1
    stand.store.locked = False
    stand.driver.tick()
    assert stand.store.held_back == 0
    assert stand.driver.is_idle
    assert stand.log == [([], "ok")], "what waited for the end goes on"
    stand.store.locked = True
    stand.add(keep(6))
    assert stand.log == [], "the next lock is waited for again"


@pytest.mark.parametrize("beside", [False, True], ids=["lock", "thread"])
def test_time_in_which_the_process_was_stopped_is_no_time_of_the_disk(stand: Stand, beside: bool) -> None:
    if beside:
        stand.slow()
    stand.store.locked = not beside
    stand.add(keep(1))
    _ = stand.log
    stand.now += 60.0
    stand.retry()
    assert stand.log == []
    stand.add(keep(2))
    assert stand.driver.is_pending
    stand.store.locked = False
    for _ in range(2 if beside else 1):
        if beside:
            stand.works.pop()()
        stand.retry()
    assert stand.log == [([keep(1)], "ok"), ([keep(2)], "ok")]


def test_late_outcomes_behind_a_commit_that_does_not_end_are_written_in_the_end(stand: Stand) -> None:
    stand.slow()
    _ = stand.log
    outcome, note = keep(3), RecordRemote(keep(4).entry, "queued")
    outcome = outcome._replace(entry=outcome.entry._replace(type="bester.outcome"))
    stand.add(keep(1))
    stand.add(keep(2), outcome, note)
    stand.retry(PATIENCE_S)
    assert stand.log == [([keep(2)], "storage-unavailable")]
    stand.works.pop()()
    stand.retry()
    stand.works.pop()()
    stand.retry()
    assert stand.log == [([keep(1)], "ok"), ([outcome, note], "ok")]


@pytest.mark.parametrize("write", [keep(2, b"x" * WAITING_BYTES), letter("d", b"x" * WAITING_BYTES)])
def test_too_much_behind_a_lock_ends_the_wait(stand: Stand, write: Write) -> None:
    stand.store.locked = True
    stand.add(keep(1))
    stand.add(write)
    stand.retry()
    assert [code for _, code in stand.log] == ["storage-unavailable"] * 2


def test_end_of_the_process_waits_for_a_lock_no_longer_than_allowed(stand: Stand) -> None:
    stand.store.locked = True
    stand.add(keep(1))
    stand.driver.finish()
    assert stand.log == [([keep(1)], "storage-unavailable")]
    assert stand.now < 100.0 + PATIENCE_S


def test_group_before_a_read_that_concerns_it_may_be_pending_as_well() -> None:
    stand = Stand(groups=Groups(100, 1_000_000))
    large, fetch = keep(2, b"y" * 200), Fetch(BOX, 0, 9, 1000)
    stand.add(keep(1), large)
    assert stand.log == [([keep(1)], "ok")]
    stand.store.locked = True
    stand.add(fetch)
    assert stand.driver.is_pending
    stand.store.locked = False
    stand.retry()
    assert stand.log == [([large], "ok"), (fetch, [keep(1).entry, large.entry])]


# --- a slow disk ---


def test_commits_after_a_slow_one_are_made_beside_the_loop_until_the_disk_is_quick(stand: Stand) -> None:
    stand.slow()
    stand.store.took_s = 0.0
    _ = stand.log
    for number in range(1, SLOW_COMMITS + 1):
        stand.add(keep(number))
        assert stand.driver.is_pending
        stand.works.pop()()
        assert stand.log == []
        stand.retry()
        assert stand.log == [([keep(number)], "ok")]
    stand.add(keep(100))
    assert stand.log == [([keep(100)], "ok")]
    assert not stand.works


def test_reads_wait_for_a_thread_and_starve_behind_no_later_write(stand: Stand) -> None:
    stand.slow()
    _ = stand.log
    fetch = Fetch(BOX, 8_000, 9, 1000)
    stand.add(keep(1), fetch)
    stand.add(keep(2))
    stand.works.pop()()
    stand.retry()
    assert [each[0] for each in stand.log] == [[keep(1)], fetch]
    assert len(stand.works) == 1


@pytest.mark.parametrize("took_s", [0.5, 3.0])
def test_slow_disk_is_told(stand: Stand, took_s: float) -> None:
    stand.store.took_s = took_s
    stand.add(keep(1))
    assert [notice.event for notice in stand.notices] == ["store-waits"]
    assert f"({took_s:.1f} s)" in stand.notices[0].fields["why"]


def test_commit_that_does_not_end_refuses_what_comes_behind(stand: Stand) -> None:
    stand.slow()
    _ = stand.log
    stand.add(keep(1), End(7, "x"))
    lane = SaveLane("s2", "t", "e", 1, {})
    stand.add(keep(2), End(1, "delivered"), lane, letter("a"), letter("a", b"2"), FindOutcomes("m", "alice"))
    stand.retry(PATIENCE_S)
    assert stand.log == [
        ([keep(2), lane, letter("a")], "storage-unavailable"), (FindOutcomes("m", "alice"), None),
    ]  # fmt: skip
    stand.retry()
    assert stand.log == [([], "storage-unavailable")], "new ones are refused for as long"
    stand.works.pop()()
    stand.retry()
    assert stand.log == [([keep(1), End(7, "x")], "ok")]
    stand.works.pop()()
    stand.retry()
    assert stand.log == [([End(1, "delivered"), letter("a", b"2")], "ok")]
    assert stand.driver.is_idle


@pytest.mark.parametrize("steps", [1, 30, 1000])
def test_loop_waits_for_a_disk_where_much_comes_behind_and_refuses_nothing(stand: Stand, steps: int) -> None:
    stand.slow()
    _ = stand.log
    stand.add(keep(1))
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        """Let the disk answer after so many pauses."""
        pauses.append(seconds)
        if len(pauses) == steps:
            stand.works.pop()()

    stand.pause = pause
    large = [keep(2, b"x" * (WAITING_BYTES // 2 - 1)), keep(3, b"x"), keep(4, b"y")]
    for each in large:
        stand.add(each)
    assert sum(pauses) == pytest.approx(min(steps * STEP_S, STUCK_S))
    stand.pause = lambda seconds: None
    if steps > len(pauses):  # the disk is stuck: the loop goes on
        stand.works.pop()()
    stand.retry()
    for _ in range(3):
        if stand.works:
            stand.works.pop()()
        stand.retry()
    assert [write for group, code in stand.log for write in group if code == "ok"] == [keep(1), *large]


def test_statements_of_a_group_are_carried_out_before_the_wait_that_a_thread_makes(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "store.db")) as store, closing(SqliteStore(tmp_path / "store.db")) as reader:
        store.open()
        end = store.begin([keep(1)])
        assert store._db.execute("SELECT number FROM entry").fetchall() == [(1,)]
        results: list[Committed] = []
        with closing(sqlite3.connect(tmp_path / "store.db")) as other:
            assert other.execute("SELECT number FROM entry").fetchall() == [], "not committed"
            thread = threading.Thread(target=lambda: results.append(end()))
            thread.start()
            thread.join(30.0)
            assert other.execute("SELECT number FROM entry").fetchall() == [(1,)]
        (result,) = results
        assert result.ok
        assert result.sync_s is not None
        assert reader.open().queues[BOX].messages == 1


def test_lock_that_a_thread_finds_is_waited_for(stand: Stand) -> None:
    stand.slow()
    _ = stand.log
    stand.store.locked = True
    stand.add(keep(1))
    for _ in range(3):
        stand.works.pop()()
        stand.retry(0.1)  # takes the result
        stand.retry()  # starts the next try
    stand.store.locked = False
    stand.works.pop()()
    stand.retry()
    assert stand.log == [([keep(1)], "ok")]


def test_system_without_a_thread_commits_on_the_loop() -> None:
    stand = Stand(threads=False)
    stand.slow()
    _ = stand.log
    stand.add(keep(1))
    assert stand.log == [([keep(1)], "ok")]


def test_fault_in_a_thread_leaves_nothing_pending(stand: Stand) -> None:
    stand.slow()
    _ = stand.log
    stand.add(keep(1), End(5, "x"))
    stand.store.is_faulty = True
    stand.works.pop()()
    stand.retry()
    assert stand.log == [([keep(1), End(5, "x")], "storage-unavailable")]
    assert stand.store.held_back == 1


def test_file_is_written_by_threads_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_driver, "SLOW_S", 0.0)  # every commit is a slow one
    done = threading.Event()

    def aside(work: Callable[[], None]) -> None:
        def run() -> None:
            work()
            done.set()

        threading.Thread(target=run).start()

    router = Recorder()
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        store.open()
        driver = StoreDriver(router, store, lambda effects: None, aside=aside)
        for number in range(1, 6):
            driver.add([keep(number)], [StoreRead(Fetch(BOX, number - 1, 9, 1000), lambda answer, now: None)])
            driver.run()
            if driver.is_pending:
                assert done.wait(30.0)
                done.clear()
                driver.retry()
                driver.run()
        driver.finish()
    assert [each[1] for each in router.log if isinstance(each[0], list)] == ["ok"] * 5
    assert [len(each[1]) for each in router.log if isinstance(each[0], Fetch)] == [1] * 5
