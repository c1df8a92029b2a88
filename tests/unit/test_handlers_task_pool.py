"""The task pool: every request is handled once, in a task and a context of its own."""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
import threading
import time
from typing import Any

import pytest

from bester.broker.wire.messages import Request
from bester.handlers import App, Message, task_pool
from bester.handlers.task_pool import OVERDUE, End, NotBegunError, TaskPool
from bester.handlers.turns import Job

colour: contextvars.ContextVar[int] = contextvars.ContextVar("colour", default=-1)
PATIENCE_S = 20.0


class Hand:
    """Gives a pool jobs and collects their results."""

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}
        self.all_done = asyncio.Event()
        self.expected = 0
        self.app = App()
        self.due: dict[int, float] = {}  # deadlines by token
        self.pool = TaskPool(self.done_all, self.failed, lambda job: self.due.get(job[0].token, math.inf))

    def job(self, token: int) -> Job:
        return Request(token, "x", b"%d" % token, None, {}), self.app.routes["x"], 0, 0.0

    def give(self, tokens: range) -> None:
        self.expected += len(tokens)
        for token in tokens:
            self.pool.add(self.job(token))
        self.pool.wake()

    def done_all(self, ends: list[End]) -> None:
        assert ends
        for job, result in ends:
            self.done(job, result)

    def done(self, job: Job, result: Any) -> None:
        assert job[0].token not in self.results
        self.results[job[0].token] = result
        if len(self.results) == self.expected:
            self.all_done.set()

    def failed(self, job: Job, error: BaseException) -> None:
        self.done(job, error)


@pytest.mark.parametrize("seed", range(20))
async def test_every_job_once_in_its_own_task_and_context(seed: int) -> None:
    chance = random.Random(seed)
    hand = Hand()
    in_a_handler: set[asyncio.Task[Any]] = set()

    @hand.app.handler("x")
    async def handler(message: Message) -> int:
        me = asyncio.current_task()
        assert me is not None
        assert me not in in_a_handler
        in_a_handler.add(me)
        try:
            assert colour.get() == -1
            if chance.random() < 0.3:
                colour.set(message.data)
            for _ in range(chance.choice((0, 0, 0, 1, 2, 5))):
                await asyncio.sleep(0)
                assert asyncio.current_task() is me
            if chance.random() < 0.1:
                try:
                    async with asyncio.timeout(0.001):
                        await asyncio.Event().wait()
                except TimeoutError:
                    pass
            fate = chance.random()
            if fate < 0.1:
                raise ValueError(message.data)
            if fate < 0.15:
                me.cancel()
            elif fate < 0.2:
                me.cancel()
                await asyncio.sleep(0)
            return int(message.data)
        finally:
            in_a_handler.remove(me)

    given = 0
    while given < 1000:
        count = chance.choice((1, 2, 64, 200))
        hand.give(range(given, given + count))
        given += count
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        while len(hand.results) < given:
            hand.all_done.clear()
            await hand.all_done.wait()
    for token, result in hand.results.items():
        assert result == token or isinstance(result, ValueError | asyncio.CancelledError)
    await hand.pool.close()


async def test_handlers_without_waits_share_one_task() -> None:
    hand = Hand()
    tasks = set()

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        tasks.add(asyncio.current_task())

    for start in range(0, 1000, 100):
        hand.give(range(start, start + 100))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(hand.results) == 1000
    assert len(tasks) == 1
    await hand.pool.close()


async def test_cancel_waiting_cancels_handlers_and_returns_unbegun_jobs() -> None:
    hand = Hand()

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        await asyncio.Event().wait()

    hand.give(range(10))
    await asyncio.sleep(0)  # the first handler has begun, and `_look` has not run yet
    hand.expected = 10 - len(left := hand.pool.cancel_waiting())
    assert len(left) < 10
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    assert all(isinstance(result, asyncio.CancelledError) for result in hand.results.values())
    assert {job[0].token for job in left} | set(hand.results) == set(range(10))

    hand.give(range(10, 11))  # the pool still works
    hand.all_done.clear()
    await asyncio.sleep(0)
    await hand.pool.close()


async def test_only_overdue_waiting_handlers_are_cancelled() -> None:
    hand = Hand()
    gate = asyncio.Event()

    @hand.app.handler("x")
    async def handler(message: Message) -> int:
        await gate.wait()
        return int(message.data)

    hand.give(range(20))
    while len(hand.pool._waiting) < 20:
        await asyncio.sleep(0)
    hand.due = {3: 5.0, 7: 9.0, 8: 4.0}
    assert hand.pool.cancel_overdue(3.9) == []
    assert {job[0].token for job, _ in hand.pool.cancel_overdue(5.0)} == {3, 8}
    assert hand.pool.cancel_overdue(5.0) == []  # once
    assert {job[0].token for job in hand.pool.stubborn(math.inf)} == {3, 8}
    while len(hand.results) < 2:
        await asyncio.sleep(0)
    assert hand.pool.stubborn(math.inf) == []
    gate.set()
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    for token in (3, 8):
        assert isinstance(hand.results[token], asyncio.CancelledError)
        assert hand.results[token].args == (OVERDUE,)
    assert [hand.results[token] for token in range(20) if token not in (3, 8)] == [
        token for token in range(20) if token not in (3, 8)
    ]
    await hand.pool.close()


async def test_hold_back_lets_the_loop_run_and_keeps_the_order() -> None:
    """A call from another thread while a handler holds the loop: queued jobs begin after the loop's own callbacks."""
    hand = Hand()
    seen: list[Any] = []

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        seen.append(message.data)
        if message.data == 0:
            asyncio.get_running_loop().call_soon(seen.append, "turn")
            thread = threading.Thread(target=hand.pool.hold_back)
            thread.start()
            thread.join()

    hand.give(range(6))
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    assert seen == [0, "turn", 1, 2, 3, 4, 5]
    await hand.pool.close()


@pytest.mark.parametrize("takes_turns", [False, True])
async def test_jobs_held_back_begin_before_those_that_came_since(takes_turns: bool) -> None:
    hand = Hand()
    seen: list[Any] = []
    hand.app.handler("x", inline=True)(lambda message: seen.append(message.data))
    if takes_turns:
        hand.pool.rest()
    hand.give(range(4))
    hand.pool.hold_back()  # the loop has read the next ones before it runs what was called from another thread
    hand.give(range(4, 8))
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    assert seen == list(range(8))
    await hand.pool.close()


async def test_held_back_jobs_fail_when_overdue_and_are_returned_when_cancelled() -> None:
    hand = Hand()
    hand.due[2] = 0.0

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        if message.data in (0, 10):
            hand.pool.hold_back()
        if message.data == 10:
            void.extend(job[0].token for job in hand.pool.cancel_waiting())

    void: list[int] = []
    hand.give(range(4))
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    assert isinstance(hand.results[2], NotBegunError)
    hand.give(range(10, 14))
    while 10 not in hand.results:
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert void == [11, 12, 13]
    assert not {11, 12, 13} & set(hand.results)
    await hand.pool.close()


async def test_late_cancel_of_a_pool_task_harms_no_other_job() -> None:
    hand = Hand()
    kept: list[asyncio.Task[Any]] = []

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        kept.append(task)

    hand.give(range(1))
    await hand.all_done.wait()
    await asyncio.sleep(0)
    kept[0].cancel()
    hand.all_done.clear()
    hand.give(range(1, 2))
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    hand.give(range(2, 3))
    kept[-1].cancel()
    hand.all_done.clear()
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    await hand.pool.close()


async def test_answers_do_not_wait_for_a_request_whose_sender_was_slow() -> None:
    hand = Hand()
    called: list[int] = []
    unsent: list[list[int]] = []  # at the begin of each slow request
    sent: list[int] = []

    def done_all(ends: list[End]) -> None:
        hand.done_all(ends)
        sent.extend(job[0].token for job, _ in ends)

    hand.pool = TaskPool(done_all, hand.failed)

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        if message.user == "slow":
            unsent.append([token for token in called if token not in sent])
            time.sleep(2 * task_pool.SLICE_S)  # holds the loop, as some handlers do
        called.append(message.data)

    hand.expected = 40
    for token in range(40):
        user = "slow" if token < 20 else "quick"
        request = Request(token, "x", b"%d" % token, user, {})
        hand.pool.add((request, hand.app.routes["x"], 0, 0.0))
    hand.pool.wake()
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    assert called.index(20) < 20, "the quick one takes turns"
    assert unsent == [[]] * 20
    await hand.pool.close()


async def test_flush_is_called_when_the_queue_is_worked_off() -> None:
    hand = Hand()
    seen: list[list[int] | str] = []
    report = hand.done_all

    def done_all(ends: list[End]) -> None:
        seen.append([job[0].token for job, _ in ends])
        report(ends)

    hand.pool = TaskPool(done_all, hand.failed, flush=lambda: seen.append("flushed"))

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        """Wait for nothing."""

    for tokens in (range(3), range(3, 4)):
        hand.all_done.clear()
        hand.give(tokens)
        async with asyncio.timeout(PATIENCE_S):
            await hand.all_done.wait()
    assert seen == [[0, 1, 2], "flushed", [3], "flushed"]
    await hand.pool.close()


async def test_ends_are_reported_together_in_order_and_in_the_turn_of_a_wait() -> None:
    hand = Hand()
    gate = asyncio.Event()
    reported: list[list[int]] = []
    hand.done_all = lambda ends: reported.append([job[0].token for job, _ in ends])  # type: ignore[method-assign]  # a spy
    hand.failed = lambda job, error: reported.append([job[0].token])  # type: ignore[method-assign]  # as above
    hand.pool = TaskPool(hand.done_all, hand.failed)

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        if message.data == 3:
            raise ValueError
        if message.data == 6:
            await gate.wait()

    hand.give(range(9))
    async with asyncio.timeout(PATIENCE_S):
        while sum(map(len, reported)) < 8:
            await asyncio.sleep(0)
    assert reported == [[0, 1, 2], [3], [4, 5], [7, 8]]
    gate.set()
    async with asyncio.timeout(PATIENCE_S):
        while reported[-1] != [6]:
            await asyncio.sleep(0)
    await hand.pool.close()


@pytest.mark.parametrize("waits", [False, True])
async def test_turns_end_when_no_request_has_taken_long_of_late(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_pool, "TURNS_S", -1.0)
    hand = Hand()

    @hand.app.handler("x")
    async def handle(message: Message) -> None:
        if waits:
            await asyncio.sleep(0)

    hand.pool.rest()
    began = hand.pool.takes_turns
    assert began
    hand.give(range(3))
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
        while hand.pool.takes_turns:
            await asyncio.sleep(0)
    assert await hand.pool.close()


@pytest.mark.parametrize("waits", [False, True])
async def test_many_quick_requests_are_handled_in_their_order_and_the_loop_runs_between(
    monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    """However many the credit lets come: a slice that is used up by many of them is no sign of a slow one."""
    monkeypatch.setattr(task_pool, "SLICE_S", 0.001)
    monkeypatch.setattr(task_pool, "QUICK", 0)
    hand, seen, runs = Hand(), list[int](), 0

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        seen.append(message.data)
        time.sleep(0.0005)
        if waits:
            await asyncio.sleep(0)

    def run() -> None:
        nonlocal runs
        runs += 1
        if not hand.all_done.is_set():
            asyncio.get_running_loop().call_soon(run)

    run()
    hand.give(range(200))
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    assert seen == list(range(200))
    assert not hand.pool.takes_turns
    assert runs > 20
    await hand.pool.close()
