"""Requests that take too long in a worker, on a real link: cancelled and answered, or logged and no longer counted."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bester.broker.wire.messages import Command, Error, Goodbye, Hello, Reply
from bester.handlers import App, Message
from bester.handlers.hello import LEASE_MS, hello_options
from bester.handlers.requests import NOT_BEGUN, TOO_LONG
from bester.handlers.worker import Worker
from tests.e2e.broker_stand_in import PATIENCE_S, StandIn, request

LIMIT_MS = 100
"""Time limit of the requests that are to be overdue: over as soon as the worker looks. The others of a test have time
for a machine that stands still."""
BEAT_MS = 2000
"""Heartbeat of a broker on the worker's own loop: both stand still together, and neither takes the other for dead."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="b-")
    yield f"ipc://{folder}/f.sock"
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("bester.handlers.deadlines.GRACE_S", 0.05)
    monkeypatch.setattr("bester.handlers.watch.NOTICED_S", 0.3)
    caplog.set_level(logging.INFO)


@asynccontextmanager
async def running(app: App, endpoint: str, **options: Any) -> AsyncIterator[tuple[StandIn, Worker]]:
    options = {"request_ms": 60_000, "heartbeat_ms": BEAT_MS, **options}
    async with StandIn(endpoint, **options) as broker:
        worker = Worker(app, endpoint, name="w")
        worker.start()
        await broker.expect(Hello)
        await worker.wait_ready()
        try:
            yield broker, worker
        finally:
            await asyncio.wait_for(worker.stop(), PATIENCE_S)


@asynccontextmanager
async def letting_go() -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set at the end of a test that fails, too: the end of the loop waits for a stubborn
    handler."""
    event = asyncio.Event()
    try:
        yield event
    finally:
        event.set()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


def failed(reply: Reply) -> str | None:
    assert (reply.status, reply.commands) == (1, [])
    return reply.note


# --- handlers that wait ---------------------------------------------------------------------------------------------


async def test_overdue_async_handler_is_cancelled_and_answered(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    app, ended = App(credit=2), asyncio.Event()

    @app.handler("job")
    async def job(message: Message) -> Command:
        try:
            if message.data == "hang":
                await asyncio.Event().wait()
        finally:
            ended.set()
        return message.reply("ok")

    async with running(app, endpoint) as (broker, _):
        broker.send(request(1, b'"hang"', "job", deadline_ms=LIMIT_MS))
        assert failed(await broker.expect(Reply)) == TOO_LONG
        assert ended.is_set()
        assert (await broker.ask(2, b'"go"', "job")).status == 0
    # A loaded machine logs its own stalls, too.
    (line,) = [text for text in caplog.messages if "has had message" in text]
    expected = r"job: .*\.job has had message s1/b/1 for [\d.]+ s, over its time limit: cancelled at "
    assert re.fullmatch(rf"{expected}{re.escape(__file__)}:\d+", line)


@pytest.mark.parametrize(
    ("welcome", "meta"),
    [
        ({"request_ms": 60_000}, {"deadline_ms": LIMIT_MS}),
        ({"request_ms": 60_000, "timeouts_ms": {"job": LIMIT_MS, "other": 1}}, {}),
        ({"request_ms": LIMIT_MS}, {"deadline_ms": 60_000}),
        ({"request_ms": "odd", "timeouts_ms": {"job": None}}, {"deadline_ms": LIMIT_MS}),
        ({"request_ms": 60_000, "timeouts_ms": 5}, {"deadline_ms": 0}),
    ],
)
async def test_shortest_limit_counts(endpoint: str, welcome: dict[str, Any], meta: dict[str, Any]) -> None:
    app = App()

    @app.handler("job")
    async def job(message: Message) -> None:
        await asyncio.Event().wait()

    async with running(app, endpoint, **welcome) as (broker, _):
        broker.send(request(1, b"1", "job", **meta))
        assert failed(await broker.expect(Reply)) in (TOO_LONG, NOT_BEGUN)  # not begun, where the machine stood still


async def test_many_hanging_handlers_return_their_credit(endpoint: str) -> None:
    app = App(credit=300)

    @app.handler("job")
    async def job(message: Message) -> Command:
        await (asyncio.Event().wait() if message.data % 3 else asyncio.sleep(0))
        return message.reply(None)

    async with running(app, endpoint) as (broker, _):
        limits = (LIMIT_MS if token % 3 else 60_000 for token in range(300))
        broker.send(*(request(token, b"%d" % token, "job", deadline_ms=limit) for token, limit in enumerate(limits)))
        replies = await broker.replies(300)
    assert [replies[token].status for token in range(300)] == [1 if token % 3 else 0 for token in range(300)]


async def test_next_of_a_group_begins_after_an_overdue_one(endpoint: str) -> None:
    app = App()

    @app.handler("chat", order="user")
    async def chat(message: Message) -> Command:
        if message.data == "hang":
            await asyncio.Event().wait()
        return message.reply("ok")

    async with running(app, endpoint) as (broker, _):
        broker.send(
            *(request(token, body, "chat", deadline_ms=LIMIT_MS) for token, body in ((1, b'"hang"'), (2, b'"go"')))
        )
        broker.send(request(3, b'"go"', "chat", user="v"))
        assert (await broker.expect(Reply)).token == 3
        both = await broker.replies(2)
        assert failed(both[1]) == TOO_LONG
        # Received with the hanging request, and overdue when its turn came.
        assert failed(both[2]) == NOT_BEGUN
        assert (await broker.ask(4, b'"go"', "chat")).status == 0


async def test_stubborn_handler_keeps_its_credit_and_is_not_waited_for(
    endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bester.handlers.task_pool.STUBBORN_S", 0.2)
    app = App()

    @app.handler("job")
    async def job(message: Message) -> Command:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return message.reply("late")

    async with letting_go() as let_go, running(app, endpoint) as (broker, worker):
        broker.send(*(request(token, b"1", "job", deadline_ms=LIMIT_MS) for token in (1, 2)))
        await until(lambda: caplog.text.count("s ago, but still running") == 2)
        stopping = asyncio.create_task(worker.stop())
        await broker.expect(Goodbye)
        await asyncio.wait_for(stopping, PATIENCE_S / 2)
        assert "2 requests are outstanding: they hang" in caplog.text
        assert "handlers did not end when they were cancelled" in caplog.text
        let_go.set()


async def test_next_of_a_group_does_not_wait_for_a_stubborn_handler(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bester.handlers.task_pool.STUBBORN_S", 0.2)
    app = App()

    @app.handler("chat", order="user")
    async def chat(message: Message) -> Command:
        while message.data == "hang" and not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return message.reply(message.data)

    async with letting_go() as let_go, running(app, endpoint, request_ms=60_000) as (broker, _):
        broker.send(request(1, b'"hang"', "chat", deadline_ms=LIMIT_MS), request(2, b'"next"', "chat"))
        assert (await broker.expect(Reply)).token == 2
        assert (await broker.ask(3, b'"more"', "chat")).status == 0
        let_go.set()
        assert (await broker.expect(Reply)).token == 1
        assert (await broker.ask(4, b'"more"', "chat")).status == 0


# --- functions in threads -------------------------------------------------------------------------------------------


async def test_late_thread_is_logged_and_not_answered_for(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    app, gate = App(threads=2), threading.Event()

    @app.handler("job")
    def job(message: Message) -> Command:
        if message.data == "hang":
            gate.wait(PATIENCE_S)
        return message.reply("ok")

    async with running(app, endpoint) as (broker, _):
        broker.send(request(1, b'"hang"', "job", deadline_ms=LIMIT_MS))
        await until(lambda: "1 of 2 threads are usable" in caplog.text)
        assert re.search(rf"now at {re.escape(__file__)}:\d+, in threading\.", caplog.text)
        for token in range(2, 6):
            assert (await broker.ask(token, b'"go"', "job")).status == 0
        gate.set()
        assert await broker.expect(Reply) == Reply(1, 0, [Command("sendClients", ["u"], b'"ok"')], None)
        await until(lambda: "the credit is back" in caplog.text)


async def test_overdue_request_queued_for_a_thread_is_not_begun(endpoint: str) -> None:
    app, gate = App(threads=1), threading.Event()
    seen: list[Any] = []

    @app.handler("job")
    def job(message: Message) -> None:
        seen.append(message.data)
        gate.wait(PATIENCE_S)

    async with running(app, endpoint, request_ms=60_000) as (broker, _):
        broker.send(request(1, b"1", "job"), request(2, b"2", "job", deadline_ms=LIMIT_MS))
        reply = await broker.expect(Reply)
        assert (reply.token, failed(reply)) == (2, NOT_BEGUN)
        gate.set()
        assert (await broker.expect(Reply)).token == 1
        assert (await broker.ask(3, b"3", "job")).status == 0
    assert seen == [1, 3]


async def test_worker_ends_when_all_threads_hang(
    endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bester.handlers.overtime.USELESS_S", 0.3)
    app, gate = App(threads=2), threading.Event()

    @app.handler("job")
    def job(message: Message) -> None:
        gate.wait(PATIENCE_S)

    @app.handler("other")
    async def other(message: Message) -> Command:
        await asyncio.sleep(0.05)
        return message.reply("ok")

    async with running(app, endpoint, request_ms=LIMIT_MS, timeouts_ms={"other": 60_000}) as (broker, worker):
        broker.send(*(request(token, b"1", "job") for token in range(4)))
        await asyncio.wait_for(worker.wait_over(), PATIENCE_S)
        assert worker.failure is not None
        assert worker.failure.startswith("all 2 threads hang: tests.e2e.test_overtime.")
        stopping = asyncio.create_task(worker.stop())
        broker.send(request(9, b"1", "other"))
        assert [type(await broker.next()) for _ in range(3)][-1] in (Goodbye, Reply)
        await asyncio.wait_for(stopping, PATIENCE_S / 2)
        gate.set()
    assert caplog.text.count("this worker cannot serve any more and ends") == 1


async def test_worker_ends_when_its_whole_credit_hangs(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bester.handlers.overtime.USELESS_S", 0.3)
    app, gate = App(threads=8, credit=2), threading.Event()

    @app.handler("job")
    def job(message: Message) -> None:
        gate.wait(PATIENCE_S)

    async with running(app, endpoint, request_ms=LIMIT_MS) as (broker, worker):
        broker.send(request(1, b"1", "job"), request(2, b"1", "job"))
        await asyncio.wait_for(worker.wait_over(), PATIENCE_S)
        assert worker.failure == "the whole credit (2) is held by handlers that hang"
        gate.set()


async def test_senders_short_deadline_makes_no_worker_useless(
    endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bester.handlers.overtime.USELESS_S", 0.0)
    app, gate = App(threads=1), threading.Event()

    @app.handler("job")
    def job(message: Message) -> None:
        gate.wait(PATIENCE_S)

    async with running(app, endpoint, request_ms=60_000) as (broker, worker):
        broker.send(request(1, b"1", "job", deadline_ms=LIMIT_MS))
        await until(lambda: "0 of 1 threads are usable" in caplog.text)
        await asyncio.sleep(0)  # the check for a useless worker has run with that log line
        assert worker.failure is None
        gate.set()
        assert (await broker.expect(Reply)).status == 0


async def test_group_in_threads_goes_on_without_a_hanging_request(endpoint: str) -> None:
    app, gate = App(threads=2), threading.Event()

    @app.handler("chat", order="user")
    def chat(message: Message) -> Command:
        if message.data == "hang":
            gate.wait(PATIENCE_S)
        return message.reply(message.data)

    async with running(app, endpoint, request_ms=60_000) as (broker, _):
        broker.send(request(1, b'"hang"', "chat", deadline_ms=LIMIT_MS), request(2, b'"next"', "chat"))
        assert (await broker.expect(Reply)).token == 2
        gate.set()
        assert (await broker.expect(Reply)).token == 1
        assert (await broker.ask(3, b'"more"', "chat")).status == 0


# --- handlers that hold the loop ------------------------------------------------------------------------------------


class Holder:
    """Runs a worker on a loop and a thread of its own, so that its handlers can hold that loop."""

    def __init__(self, app: App, endpoint: str) -> None:
        self.worker = Worker(app, endpoint, name="w")
        self.hung = threading.Event()
        self.worker.on_hung(self.hung.set)
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.worker.start()
        await self.worker.wait_ready()
        self._ready.set()
        await self._stop.wait()
        await self.worker.stop()

    async def start(self) -> None:
        self._thread.start()
        assert await asyncio.to_thread(self._ready.wait, PATIENCE_S)

    async def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join, PATIENCE_S)
        assert not self._thread.is_alive()


@asynccontextmanager
async def held(app: App, endpoint: str, **options: Any) -> AsyncIterator[tuple[StandIn, Holder]]:
    async with StandIn(endpoint, **{"request_ms": 60_000, **options}) as broker:
        holder = Holder(app, endpoint)
        await holder.start()
        await broker.expect(Hello)
        try:
            yield broker, holder
        finally:
            await holder.stop()


def blocking_app() -> App:
    app = App()

    @app.handler("slow")
    async def slow(message: Message) -> Command:
        nested(message.data)
        return message.reply("done")

    @app.handler("after")
    async def after(message: Message) -> Command:
        await asyncio.sleep(0.01)
        time.sleep(message.data)
        return message.reply("done")

    @app.handler("inline", inline=True)
    def inline(message: Message) -> Command:
        time.sleep(message.data)
        return message.reply("done")

    @app.handler("task")
    async def in_a_task(message: Message) -> Command:
        async def other() -> None:
            time.sleep(message.data)

        await asyncio.create_task(other())
        return message.reply("done")

    @app.handler("quick")
    async def quick(message: Message) -> Command:
        return message.reply("quick")

    return app


def nested(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize(
    ("type_", "name"),
    [("slow", "slow"), ("after", "after"), ("inline", "inline"), ("task", r"in_a_task\.<locals>\.other")],
)
async def test_held_loop_sends_heartbeats_is_logged_once_and_loses_nothing(
    endpoint: str, caplog: pytest.LogCaptureFixture, type_: str, name: str
) -> None:
    async with held(blocking_app(), endpoint) as (broker, _):
        broker.send(request(1, b"1.5", type_))
        before = broker.heartbeats
        broker.send(request(2, b"1", "quick"))
        replies = await broker.replies(
            2
        )  # 1.5 s are more than the three heartbeats after which a worker counts as dead
        assert [replies[token].status for token in (1, 2)] == [0, 0]
        assert broker.heartbeats - before >= 4
        assert len(broker.hellos) == 1
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, lines
    assert re.match(
        rf"w: tests\.e2e\.test_overtime\.blocking_app\.<locals>\.{name} \(at {re.escape(__file__)}:\d+\) "
        r"held the loop for \d+\.\d s: ",
        lines[0],
    )


async def test_replies_leave_between_handlers_that_hold_the_loop(endpoint: str) -> None:
    app, begun = App(), 0

    @app.handler("slow")
    async def slow(message: Message) -> None:
        nonlocal begun
        begun += 1
        time.sleep(0.8)

    async with held(app, endpoint) as (broker, _):
        broker.send(*(request(token, b"1", "slow") for token in range(4)))
        for token in range(4):
            assert (await broker.expect(Reply)).token == token
            assert begun <= token + 2


async def test_request_overdue_behind_a_held_loop_is_not_begun(endpoint: str) -> None:
    async with held(blocking_app(), endpoint) as (broker, _):
        broker.send(request(1, b"0.9", "slow"), request(2, b"0", "slow", deadline_ms=LIMIT_MS))
        replies = await broker.replies(2)
        assert replies[1].status == 0
        assert failed(replies[2]) == NOT_BEGUN


async def test_held_worker_keeps_its_broker(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    async with held(blocking_app(), endpoint, life="one") as (broker, _):
        assert (await broker.ask(1, b"2.0", "slow")).status == 0
        assert (await broker.ask(2, b"1", "quick")).status == 0
        assert len(broker.hellos) == 1
    assert "no link to the broker" not in caplog.text
    assert "restarted" not in caplog.text


@pytest.mark.parametrize(
    ("lives", "expected"), [(("one", "one"), "given up"), (("one", "two"), "the broker has restarted")]
)
async def test_only_a_restarted_broker_is_logged_as_restarted(
    endpoint: str, caplog: pytest.LogCaptureFixture, lives: tuple[str, str], expected: str
) -> None:
    async with running(blocking_app(), endpoint, life=lives[0]) as (broker, _):
        broker.options["life"] = lives[1]
        broker.send(Error("hello-first", "who are you?"))
        await broker.expect(Hello)
        await until(lambda: " again: " in caplog.text)
    assert ("restarted" in caplog.text) == (expected != "given up")
    assert expected in caplog.text
    assert "the broker does not know this link any more" in caplog.text


async def test_hanging_loop_sends_no_more_heartbeats_and_is_logged(
    endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bester.handlers.overtime.USELESS_S", 1.0)
    async with held(blocking_app(), endpoint, request_ms=500) as (broker, holder):
        broker.send(request(1, b"4", "slow"))
        assert await asyncio.to_thread(holder.hung.wait, PATIENCE_S)
        assert "slow" in caplog.text
        assert "over its time limit: no other handler runs" in caplog.text
        before = broker.heartbeats
        await broker.expect(Reply)  # the loop came back after all
        assert broker.heartbeats - before <= 1
        assert (await broker.ask(2, b"1", "quick")).status == 0


async def test_task_that_holds_the_loop_at_the_start_sends_heartbeats(endpoint: str) -> None:
    app = blocking_app()

    @app.task
    async def begin() -> None:
        time.sleep(1.5)

    async with held(app, endpoint) as (broker, _):
        assert (await broker.ask(1, b"1", "quick")).status == 0
        assert len(broker.hellos) == 1
        assert broker.heartbeats >= 3


async def test_messages_are_handled_between_timers_that_hold_the_loop(endpoint: str) -> None:
    app, ticks = blocking_app(), 0

    @app.every(0.1)
    async def tick() -> None:
        nonlocal ticks
        ticks += 1
        time.sleep(0.5)

    async with held(app, endpoint) as (broker, _):
        for token in range(3):
            before = ticks
            assert (await broker.ask(token, b"1", "quick")).status == 0
            assert ticks - before <= 2  # three turns would do: read, handle, answer


# --- the options of HELLO -------------------------------------------------------------------------------------------


def test_long_lease_is_asked_for_over_ipc() -> None:
    app = blocking_app()
    assert hello_options(app, app.routes, "ipc:///x")["lease_ms"] == LEASE_MS
    assert "lease_ms" not in hello_options(app, app.routes, "tcp://127.0.0.1:1")
    app.lease_ms = 7
    assert hello_options(app, app.routes, "ipc:///x")["lease_ms"] == 7
