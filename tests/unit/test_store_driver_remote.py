"""The driver of a remote store: commits and reads are made beside the loop, and an absent store refuses at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from bester.broker.core.effects import Effects, StoreRead
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.store.memory import MemoryStore
from bester.broker.store_driver import READ_AT_ONCE, REMOTE_WAITING_BYTES, StoreDriver
from bester.broker.store_groups import Groups
from bester.broker.store_requests import (
    Committed,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindExpired,
    FindOutcomes,
    Read,
    Write,
)
from bester.broker.wire.codes import BesterError

BOX = "user/bob"


def keep(number: int) -> Enqueue:
    return Enqueue(Entry(number, BOX, f"m.{number}.0", "bob", "chat", b"1", "ann", 9e9, {}))


class Remote(MemoryStore):
    """A store behind a network, whose connection a test cuts."""

    is_remote = True
    due = False
    reads = 0
    fault: Exception | None = None

    @property
    def is_due(self) -> bool:
        return self.due

    def commit(self, writes: Sequence[Write]) -> Committed:
        if self.away:
            self.hold_back(writes)
            return Committed(False, why=self.away, code="storage-unavailable")
        self.due = False
        return super().commit(writes)

    def read(self, read: Read) -> Any:
        self.reads += 1
        if self.fault is not None:
            raise self.fault
        return super().read(read)


class Stand(Router):
    """A router that records the results that it is told, and the driver of its store. `works` are handed to a thread,
    which a test runs."""

    def __init__(self, *, threads: bool = True, groups: Groups | None = None) -> None:
        super().__init__(Settings("s1"), epoch="e", first_token=1, now=0.0, wall_s=0.0)
        self.log: list[Any] = []
        self.works: list[Callable[[], None]] = []
        self.store = Remote()
        self.store.open()
        self.now = 100.0
        self.threads = threads
        self.pauses = 0
        self.driver = StoreDriver(
            self, self.store, self._carry, clock=lambda: self.now, aside=self._beside, groups=groups,
            pause=self._pause,
        )  # fmt: skip

    def _carry(self, effects: Effects) -> None:
        self.driver.add(effects.writes, effects.reads)

    def _pause(self, seconds: float) -> None:
        self.pauses += 1
        self.now += seconds

    def _beside(self, work: Callable[[], None]) -> None:
        if not self.threads:
            raise RuntimeError("can't start new thread")
        self.works.append(work)

    def on_committed(self, writes: Sequence[Write], result: Committed, now: float) -> Effects:
        self.log.append(([write[0] if isinstance(write, End) else write.entry.number for write in writes], result.ok))  # type: ignore[union-attr]  # of these kinds alone
        return Effects()

    def on_reads(self, answered: Iterable[tuple[StoreRead, Any]], now: float) -> Effects:
        self.log += [
            (type(read.request).__name__, None if answer is None else len(answer)) for read, answer in answered
        ]
        return Effects()

    def add(self, *requests: Write | Read) -> None:
        """Add requests of one turn, and run."""
        reads = [StoreRead(each, lambda answer, now: None) for each in requests if isinstance(each, Read)]
        self.driver.add([each for each in requests if not isinstance(each, Read)], reads)
        self.driver.run()

    def thread_ends(self) -> None:
        """Run the oldest work, and then the driver, as a shell does."""
        self.works.pop(0)()
        self.driver.retry()
        self.driver.run()


def test_nothing_is_committed_or_read_on_the_loop() -> None:
    stand = Stand()
    stand.add(keep(1), Fetch(BOX, 0, 9, 99))
    assert (stand.log, len(stand.works), stand.store.reads) == ([], 1, 0)
    stand.thread_ends()
    assert (stand.log, len(stand.works), stand.store.reads) == ([([1], True)], 1, 0)
    stand.thread_ends()
    assert stand.log == [([1], True), ("Fetch", 1)]
    assert stand.driver.is_idle


def test_reads_of_a_turn_go_together_and_what_comes_meanwhile_waits() -> None:
    stand = Stand()
    stand.add(keep(1))
    stand.thread_ends()
    stand.add(Fetch(BOX, 0, 9, 99), FindExpired(0.0, 9, 99))
    stand.add(keep(2), keep(3), Fetch(BOX, 0, 9, 99))
    assert len(stand.works) == 1
    stand.thread_ends()
    assert stand.log[1:] == [("Fetch", 1), ("FindExpired", 2)]
    stand.thread_ends()
    stand.thread_ends()
    assert stand.log[3:] == [([2, 3], True), ("Fetch", 3)]


def test_writes_are_settled_up_to_a_commit_though_the_next_one_is_under_way() -> None:
    stand = Stand()
    stand.add(keep(1), keep(2))
    stand.add(keep(3))
    assert (stand.driver.added, stand.driver.settled) == (3, 0)
    stand.thread_ends()
    assert (stand.driver.added, stand.driver.settled, stand.driver.is_idle) == (3, 2, False)
    stand.add(keep(4))
    stand.thread_ends()
    assert (stand.driver.added, stand.driver.settled, stand.driver.is_idle) == (4, 3, False)
    stand.thread_ends()
    assert (stand.driver.added, stand.driver.settled, stand.driver.is_idle) == (4, 4, True)


def test_many_reads_go_in_parts_and_writes_come_between() -> None:
    stand = Stand()
    stand.add(*(Fetch(f"user/{number}", 0, 9, 99) for number in range(READ_AT_ONCE * 2 + 1)))
    stand.add(keep(1))
    while stand.works:
        stand.thread_ends()
    part = [("Fetch", 0)] * READ_AT_ONCE
    assert stand.log == [*part, ([1], True), *part, ("Fetch", 0)]
    assert stand.driver.is_idle


def test_questions_are_read_several_at_once() -> None:
    stand = Stand()
    stand.add(*(FindOutcomes(f"m.{number}", "ann") for number in range(20)))
    while stand.works:
        stand.thread_ends()
        stand.driver.tick()
    assert len(stand.log) == 20
    assert stand.driver.is_idle


def test_read_waits_for_the_message_that_it_would_find() -> None:
    stand = Stand(groups=Groups(1))
    stand.add(keep(1))
    stand.thread_ends()
    stand.add(FindExpired(0.0, 9, 99))
    stand.thread_ends()
    stand.log.clear()
    stand.add(keep(2), keep(3), Fetch("user/eve", 0, 9, 99), Fetch(BOX, 0, 9, 99))
    while stand.works:
        stand.thread_ends()
    assert stand.log[-1] == ("Fetch", 3)
    assert ("Fetch", 0) in stand.log


@pytest.mark.parametrize("threads", [True, False])
def test_read_that_failed_is_tried_again(threads: bool) -> None:
    stand = Stand(threads=threads)
    stand.store.fault = BesterError("storage-unavailable", "away; come back")
    stand.add(Fetch(BOX, 0, 9, 99), FindOutcomes("m.1", "ann"))
    while stand.works:
        stand.thread_ends()
    assert stand.log == [("FindOutcomes", None)]
    stand.store.fault = None
    stand.driver.tick()
    while stand.works:
        stand.thread_ends()
    assert stand.log[1:] == [("Fetch", 0)]


def test_fault_of_the_store_leaves_no_read_pending() -> None:
    stand = Stand()
    stand.store.fault = ArithmeticError("a bug")
    stand.add(Fetch(BOX, 0, 9, 99))
    stand.thread_ends()
    assert not stand.driver.is_pending


def test_absent_store_refuses_at_once_what_comes_behind_an_open_group() -> None:
    stand = Stand()
    stand.add(keep(1))
    stand.store.away = "away; see PostgreSQL"  # the thread waits for the fate of the group
    for number in range(2, 50):
        stand.add(keep(number), End(number, "delivered"), FindOutcomes("m.1", "ann"))
        stand.driver.retry()
        assert stand.log[-2:] == [([number], False), ("FindOutcomes", None)]
    assert len(stand.works) == 1
    stand.store.away = ""
    stand.thread_ends()
    assert ([1], True) in stand.log, "the open group has its own result"
    while stand.works:
        stand.thread_ends()
    stand.add(keep(99))
    while stand.works:
        stand.thread_ends()
    assert ([99], True) in stand.log


def test_router_learns_that_a_store_is_back_which_was_away_during_a_read() -> None:
    stand = Stand()
    stand.add(Fetch(BOX, 0, 9, 99))
    stand.store.away = "away; see PostgreSQL"  # the thread waits for the connection
    stand.add(keep(1))
    stand.driver.retry()
    assert stand.log == [([1], False)]
    stand.store.away = ""
    stand.thread_ends()
    stand.driver.tick()
    stand.thread_ends()
    assert stand.log[1:] == [("Fetch", 0), ([], True)]


def test_large_messages_wait_for_a_commit_that_is_under_way_up_to_a_bound() -> None:
    stand = Stand()
    stand.add(keep(1))
    large = keep(2).entry._replace(body=b"x" * (REMOTE_WAITING_BYTES // 4))
    for number in range(2, 5):
        stand.add(Enqueue(large._replace(number=number, id=f"m.{number}.0")))
        stand.driver.retry()
    assert stand.log == []
    stand.add(Enqueue(large._replace(number=5, id="m.5.0")))
    stand.driver.retry()
    assert stand.log == [([2, 3, 4, 5], False)]


def test_body_of_one_message_to_many_waits_once_for_a_commit_that_is_under_way() -> None:
    stand = Stand()
    stand.add(keep(1))
    many, body = range(2, 102), b"x" * (REMOTE_WAITING_BYTES // 64)
    stand.add(*[Enqueue(keep(number).entry._replace(body=body)) for number in many])
    stand.driver.retry()
    assert stand.log == []
    stand.thread_ends()
    stand.thread_ends()
    assert stand.log == [([1], True), ([*many], True)]


def test_lease_that_is_due_is_renewed_beside_the_loop() -> None:
    stand = Stand()
    stand.driver.tick()
    assert not stand.works
    stand.store.due = True
    stand.driver.tick()
    assert len(stand.works) == 1
    stand.driver.tick()
    assert len(stand.works) == 1
    stand.thread_ends()
    assert not stand.store.due
    assert stand.log == []


def test_end_of_a_fenced_broker_waits_for_no_commit() -> None:
    stand = Stand()
    stand.add(keep(1))
    stand.store.fenced = "another process has taken the lease"  # the thread waits for the end of the process
    stand.driver.finish()
    assert stand.pauses == 0
