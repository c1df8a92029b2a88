"""A party that sends costly messages on the encrypted fabric, or lets many links go, leaves the loop to others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
import zmq
import zmq.asyncio

from bester.broker.core.effects import Effects
from bester.broker.core.settings import Limits, Settings
from bester.broker.curve import CLOCK, LARGE_BYTES, MADE_UP_S, MOST_READ_S, READ_S, as_bytes
from bester.broker.fabric_socket import Frames
from bester.broker.log_limits import PER_SECOND
from bester.broker.sending import LOST_AT_ONCE, LOST_S
from bester.broker.server import Broker
from bester.broker.share import PART
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from tests.e2e.test_endless_message import PAIRS, door, party
from tests.live import DEADLINE_S, short_directory

HEARTBEAT_S = 0.5


def work(seconds: float) -> None:
    """Hold the loop and the processor for so long, by the clock of reading."""
    enough = CLOCK() + seconds
    while CLOCK() < enough:
        pass


class Turns:
    """Counts the turns of the running loop, each of which works for `busy_s` beside."""

    def __init__(self) -> None:
        self.number = 0
        self.busy_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._count()

    def _count(self) -> None:
        self.number += 1
        work(self.busy_s)
        self._handle = self._loop.call_soon(self._count)

    def stop(self) -> None:
        self._handle.cancel()


@asynccontextmanager
async def counted_turns() -> AsyncIterator[Turns]:
    turns = Turns()
    try:
        yield turns
    finally:
        turns.stop()


class Lost(logging.Handler):
    """Counts the log's lines about lost links by the turn of the loop."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self.by_turn: Counter[int] = Counter()
        self._turns = turns

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("lost"):
            self.by_turn[self._turns.number] += 1


async def test_costly_message_is_followed_by_turns_without_reading() -> None:
    """Both messages are on their way before the first is read, and the second comes while that one is handled."""
    read_at: list[int] = []

    def handle(frames: Frames) -> None:
        read_at.append(turns.number)
        work(2 * MADE_UP_S)

    async with door(handle) as here, counted_turns() as turns:
        honest = party(here.port, PAIRS["honest"])
        try:
            await honest.send_frames(b"first")
            await here.until(lambda: read_at)
            read_at.clear()
            await honest.send_frames(b"costly")
            await honest.send_frames(b"next")
            await here.until(lambda: len(read_at) == 2)
            assert read_at[1] - read_at[0] >= 3
        finally:
            honest.close()


@pytest.mark.skipif(CLOCK is time.monotonic, reason="threads have no clock of their own")
async def test_time_without_a_processor_is_no_costly_message() -> None:
    """The handling of the first message stands still until the second has come, and for longer."""
    read_at: list[int] = []

    def stand_still(frames: Frames) -> None:
        read_at.append(turns.number)
        if frames[-1] == b"first":
            assert here.socket.socket.poll(round(1000 * DEADLINE_S))
            time.sleep(2 * MADE_UP_S)

    async with door(stand_still) as here, counted_turns() as turns:
        honest = party(here.port, PAIRS["honest"])
        try:
            await honest.send_frames(b"first")
            await honest.send_frames(b"next")
            await here.until(lambda: len(read_at) == 2)
            assert read_at[1] - read_at[0] <= 1
        finally:
            honest.close()


async def test_more_is_read_in_long_turns_and_no_more_than_a_bound() -> None:
    """Each message takes more than half of what a short turn has for reading."""
    cost_s, count = 0.6 * READ_S, 40
    read: Counter[int] = Counter()

    def handle(frames: Frames) -> None:
        read[turns.number] += 1
        work(cost_s)

    async with door(handle) as here, counted_turns() as turns:
        honest = party(here.port, PAIRS["honest"])
        try:
            turns.busy_s = 2 * PART * MOST_READ_S
            for _ in range(count):
                await honest.send_frames(b"costly")
            await here.until(lambda: read.total() == count)
        finally:
            honest.close()
    assert READ_S / cost_s + 1 < max(read.values()) <= MOST_READ_S / cost_s + 1


async def test_large_frame_is_not_copied_by_the_turn_that_reads_it() -> None:
    sent = [b"batch", b"x" * (LARGE_BYTES - 1), b"y" * LARGE_BYTES]
    async with door() as here:
        honest = party(here.port, PAIRS["honest"])
        try:
            await honest.send_frames(*sent)
            await here.until(lambda: here.has_read(1))
        finally:
            honest.close()
    (frames,) = here.read
    assert [type(frame) is bytes for frame in frames[2:]] == [True, True, False]
    assert as_bytes(frames)[2:] == sent


@pytest.mark.parametrize(("cost_s", "most"), [(0.0, LOST_AT_ONCE), (2 * LOST_S, 2)], ids=["cheap", "costly"])
async def test_crowd_of_links_that_goes_at_once_is_lost_over_several_turns(
    cost_s: float, most: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next heartbeat of the broker, which goes to all in one turn, finds the links gone. The loss of each may cost:
    its messages go to others."""
    caplog.set_level(logging.INFO, "bester.broker")
    log = logging.getLogger("bester.broker")
    settings = Settings("s1", open_accounts=True, limits=Limits(heartbeat_s=HEARTBEAT_S))
    assert PER_SECOND > LOST_AT_ONCE  # else the log would not tell
    async with short_directory() as directory, asyncio.timeout(DEADLINE_S):
        endpoint = f"ipc://{directory}/f"
        broker = Broker(settings, (endpoint,), OpenAccounts(), MemoryStore())
        lose = broker.router.on_undeliverable

        def lose_at_a_cost(*undeliverable: Any) -> Effects:
            work(cost_s)
            return lose(*undeliverable)

        monkeypatch.setattr(broker.router, "on_undeliverable", lose_at_a_cost)
        async with broker, counted_turns() as turns:
            await leave_in_a_crowd(endpoint, 3 * LOST_AT_ONCE)
            lost = Lost(turns)
            log.addHandler(lost)
            try:
                while lost.by_turn.total() < PER_SECOND:
                    await asyncio.sleep(HEARTBEAT_S / 10)
            finally:
                log.removeHandler(lost)
    assert max(lost.by_turn.values()) <= most


async def leave_in_a_crowd(endpoint: str, count: int) -> None:
    """Join as so many handlers, and go without a word at the same time."""
    context = zmq.asyncio.Context()
    context.max_sockets = count + 10
    sockets = [context.socket(zmq.DEALER) for _ in range(count)]
    for number, socket in enumerate(sockets):
        socket.linger = 0
        socket.connect(endpoint)
        await socket.send(msgpack.packb([[1, 1, "handler", f"h{number}", {"types": ["t"]}]]))
    for socket in sockets:
        await socket.recv_multipart()
    for socket in sockets:
        socket.close()
    context.term()
