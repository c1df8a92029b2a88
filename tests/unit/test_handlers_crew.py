"""The crew: whatever handlers wait for, every request is carried out once, in a task and a context of its own."""

from __future__ import annotations

import asyncio
import contextvars
import random
from typing import Any

import pytest

from bester.broker.wire.messages import Request
from bester.handlers import App, Message
from bester.handlers.crew import Crew, Job

colour: contextvars.ContextVar[int] = contextvars.ContextVar("colour", default=-1)
PATIENCE_S = 20.0


class Hand:
    """Gives a crew jobs and collects what became of them."""

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}
        self.all_done = asyncio.Event()
        self.expected = 0
        self.app = App()
        self.crew = Crew(self.done, self.failed)

    def job(self, token: int) -> Job:
        return Request(token, "x", b"%d" % token, None, {}), self.app.routes["x"], 0

    def give(self, tokens: range) -> None:
        self.expected += len(tokens)
        for token in tokens:
            self.crew.add(self.job(token))
        self.crew.wake()

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
    await hand.crew.close()


async def test_handlers_that_do_not_wait_share_one_task() -> None:
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
    await hand.crew.close()


async def test_void_cancels_what_waits_and_returns_what_was_not_begun() -> None:
    hand = Hand()

    @hand.app.handler("x")
    async def handler(message: Message) -> None:
        await asyncio.Event().wait()

    hand.give(range(10))
    await asyncio.sleep(0)  # the first one has begun, and nobody has looked yet
    hand.expected = 10 - len(left := hand.crew.void())
    assert len(left) < 10
    async with asyncio.timeout(PATIENCE_S):
        await hand.all_done.wait()
    assert all(isinstance(result, asyncio.CancelledError) for result in hand.results.values())
    assert {job[0].token for job in left} | set(hand.results) == set(range(10))

    hand.give(range(10, 11))  # and it works on
    hand.all_done.clear()
    await asyncio.sleep(0)
    await hand.crew.close()


async def test_a_task_cancelled_long_after_its_handler_ended_harms_nobody() -> None:
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
    await hand.crew.close()
