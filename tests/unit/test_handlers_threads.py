"""Plain functions on threads: where the system has no thread, requests end at once, and later ones are carried out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from bester.broker.wire.messages import Meta, Request
from bester.handlers.app import Route, Runs
from bester.handlers.message import Message
from bester.handlers.payload import QuietError
from bester.handlers.threads import NO_THREAD, Threads
from bester.handlers.turns import Job

PATIENCE_S = 20.0
Ends = asyncio.Queue[tuple[int, Any]]


class Starts:
    """Lets so many threads start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        real = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if self.left <= 0:
                raise RuntimeError("can't start new thread")
            self.left -= 1
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)


def job(token: int, function: Callable[[Message], Any], user: str | None = None, peer: str | None = None) -> Job:
    route = Route(function, function, "f", Runs.THREAD, False, None)
    meta: Meta = {} if peer is None else {"peer": peer}
    return Request(token, "t", b"1", user, meta), route, 0, time.monotonic()


def threads_of(size: int, ends: Ends) -> Threads:
    return Threads(
        size,
        lambda job: True,
        lambda job, result: ends.put_nowait((job[0].token, result)),
        lambda job, error: ends.put_nowait((job[0].token, error)),
    )


class Hold:
    """A handler's function that holds its thread until it is released."""

    def __init__(self) -> None:
        self._begun, self._released = threading.Event(), threading.Event()

    def __call__(self, message: Message) -> bool:
        self._begun.set()
        return self._released.wait(PATIENCE_S)

    def wait(self) -> None:
        """Wait until the function has begun."""
        assert self._begun.wait(PATIENCE_S)

    def release(self) -> None:
        self._released.set()


async def next_of(ends: Ends) -> tuple[int, Any]:
    return await asyncio.wait_for(ends.get(), PATIENCE_S)


async def test_without_a_thread_requests_end_at_once_and_later_ones_are_carried_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts, ends = Starts(monkeypatch, 0), Ends()
    threads = threads_of(2, ends)
    for token in range(5):
        threads.add(job(token, lambda message: "done"))
    assert ends.empty()  # not before `add` has returned: a request that ends may begin another
    for token in range(5):
        got, error = await next_of(ends)
        assert (got, type(error), error.text) == (token, QuietError, NO_THREAD)
    starts.left = 1
    for token in range(5, 10):
        threads.add(job(token, lambda message: "done"))
    assert [await next_of(ends) for _ in range(5)] == [(token, "done") for token in range(5, 10)]
    threads.close()


async def test_where_one_thread_is_left_it_carries_out_all(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold()
    starts, ends = Starts(monkeypatch, 1), Ends()
    threads = threads_of(4, ends)
    for token in range(4):
        threads.add(job(token, hold))
    hold.release()
    assert [await next_of(ends) for _ in range(4)] == [(token, True) for token in range(4)]
    assert starts.left == 0
    threads.close()


async def test_where_the_only_thread_is_late_others_do_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold()
    Starts(monkeypatch, 1)
    ends = Ends()
    threads = Threads(
        2,
        lambda job: True,
        lambda job, result: ends.put_nowait((job[0].token, result)),
        lambda job, error: ends.put_nowait((job[0].token, error)),
        due=lambda job: job[3],
    )
    threads.add(job(1, hold))
    hold.wait()
    assert [each[0][0].token for each in threads.overdue(time.monotonic()).running] == [1]
    threads.add(job(2, lambda message: "done"))
    token, error = await next_of(ends)
    assert (token, error.text) == (2, NO_THREAD)
    hold.release()
    assert await next_of(ends) == (1, True)
    threads.close()


async def test_senders_take_turns_whatever_one_has_in_hand() -> None:
    hold, ends = Hold(), Ends()
    threads = threads_of(1, ends)
    threads.add(job(0, hold, "eve"))
    hold.wait()
    for token in range(1, 100):
        threads.add(job(token, lambda message: True, "eve"))
    for token, user, peer in ((100, "alice", None), (101, "alice", None), (102, None, "s2"), (103, None, "s3")):
        threads.add(job(token, lambda message: True, user, peer))
    hold.release()
    begun = [(await next_of(ends))[0] for _ in range(104)]
    assert begun[:4] == [0, 100, 102, 103]  # whose requests have taken least
    assert [token for token in begun if token < 100] == list(range(100))
    assert begun.index(101) < begun.index(20)
    threads.close()


async def test_senders_have_equal_shares_of_the_time_and_not_of_the_requests() -> None:
    hold, ends = Hold(), Ends()
    threads = threads_of(1, ends)
    threads.add(job(0, hold, "x"))
    hold.wait()
    for token in range(1, 21):
        threads.add(job(token, lambda message: time.sleep(0.02), "eve"))
    for token in range(100, 150):
        threads.add(job(token, lambda message: True, "alice"))
    hold.release()
    begun = [(await next_of(ends))[0] for _ in range(71)]
    assert max(map(begun.index, range(100, 150))) < begun.index(10)
    threads.close()
