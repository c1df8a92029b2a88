"""A handler linked to several brokers of one server: each serves by itself, and one is enough."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import (
    Answer,
    Ask,
    Command,
    Emit,
    Error,
    Goodbye,
    Heartbeat,
    Hello,
    Outcome,
    Reply,
    Welcome,
)
from bester.handlers import App, Message, send_clients
from bester.handlers.cluster import Cluster
from tests.e2e.broker_stand_in import StandIn, request

DEADLINE_S = 30.0
MUTE_MS = 600_000
"""Heartbeat of a stand-in whose end is told by `Goodbye` alone."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        yield Path(name)


@asynccontextmanager
async def running(
    app: App, folder: Path, *, count: int = 2, **options: Any
) -> AsyncIterator[tuple[list[StandIn], Cluster]]:
    async with AsyncExitStack() as stack:
        endpoints = [f"ipc://{folder}/{number}" for number in range(count)]
        brokers = [
            await stack.enter_async_context(StandIn(each, heartbeat_ms=MUTE_MS, **options)) for each in endpoints
        ]
        worker = Cluster(app, [(endpoint, None) for endpoint in endpoints])
        await worker.prepare()
        worker.start()
        for broker in brokers:
            await broker.expect(Hello)
        await asyncio.gather(*(each.wait_ready() for each in worker.workers))
        try:
            yield brokers, worker
        finally:
            await asyncio.wait_for(worker.stop(), DEADLINE_S)


def echo_app() -> App:
    app = App("e")

    @app.handler("echo")
    async def echo(message: Message) -> Command:
        return message.reply(raw=message.raw)

    @app.handler("plain")
    def plain(message: Message) -> Command:
        return message.reply(raw=message.raw)

    @app.handler("quick", inline=True)
    def quick(message: Message) -> Command:
        return message.reply(raw=message.raw)

    return app


@pytest.mark.parametrize("type_", ["echo", "plain", "quick"])
async def test_reply_leaves_on_the_link_of_its_request(folder: Path, type_: str) -> None:
    async with running(echo_app(), folder, count=3) as (brokers, _):
        for number, broker in enumerate(brokers):  # the same token at each
            broker.send(*(request(token, b"%d" % (1000 * number + token), type_) for token in range(50)))
        for number, broker in enumerate(brokers):
            replies = await broker.replies(50)
            bodies = [replies[token].commands[0].body for token in range(50)]
            assert bodies == [b"%d" % (1000 * number + token) for token in range(50)]


async def test_loss_of_one_broker_ends_its_requests_alone(folder: Path) -> None:
    app = App()
    ends: asyncio.Queue[str] = asyncio.Queue()
    go_on = asyncio.Event()

    @app.handler("echo", order="user")
    async def echo(message: Message) -> Command:
        ends.put_nowait(f"begun {message.user}")
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            ends.put_nowait(f"cancelled {message.user}")
            raise
        return message.reply(raw=message.raw)

    async with running(app, folder) as ((first, second), _):
        first.send(*(request(token, b"1", user="a") for token in range(3)))
        second.send(*(request(token, b"2", user="b") for token in range(3)))
        async with asyncio.timeout(DEADLINE_S):
            assert {await ends.get(), await ends.get()} == {"begun a", "begun b"}
            first.send(Goodbye("stopping"))
            assert await ends.get() == "cancelled a"
        go_on.set()
        replies = await second.replies(3)
        assert sorted(replies) == [0, 1, 2]
        assert (await first.expect(Goodbye)).reason == "parting"
        await first.expect(Hello)  # the broker is there, and so the handler comes back
        assert (await first.ask(9, b"9")).commands[0].body == b"9"
        assert [ends.get_nowait() for _ in range(ends.qsize())] == ["begun b", "begun b", "begun u"]


async def test_messages_of_a_user_keep_their_order_whichever_broker_has_them(folder: Path) -> None:
    app = App()
    running_now: list[str] = []
    most: list[int] = []
    begun: asyncio.Queue[None] = asyncio.Queue()
    go_on = asyncio.Semaphore(0)

    @app.handler("echo", order="user")
    async def echo(message: Message) -> Command:
        running_now.append(str(message.user))
        most.append(running_now.count("u"))
        begun.put_nowait(None)
        await go_on.acquire()
        running_now.remove(str(message.user))
        return message.reply(raw=message.raw)

    async with running(app, folder) as ((first, second), _), asyncio.timeout(DEADLINE_S):
        first.send(request(1, b"1"))
        await begun.get()
        second.send(request(1, b"2"), request(2, b"3", user="other"))
        await begun.get()  # of the other user
        assert running_now == ["u", "other"]
        for _ in range(3):
            go_on.release()
        await first.replies(1)
        await second.replies(2)
        assert max(most) == 1


def held_app(begun: asyncio.Queue[str], go_on: Callable[[], Awaitable[Any]]) -> App:
    """Return an app whose handlers, but for an inline one, tell that they have begun, and wait."""
    app = App("e", threads=1)
    loop = asyncio.get_running_loop()

    def tell(message: Message) -> None:
        begun.put_nowait(message.raw.decode())

    @app.handler("ordered", order="user")
    async def ordered(message: Message) -> Command:
        tell(message)
        await go_on()
        return message.reply(raw=message.raw)

    @app.handler("plain")
    def plain(message: Message) -> Command:
        async def held() -> None:
            tell(message)
            await go_on()

        asyncio.run_coroutine_threadsafe(held(), loop).result()
        return message.reply(raw=message.raw)

    @app.handler("quick", inline=True)
    def quick(message: Message) -> Command:
        tell(message)
        return message.reply(raw=message.raw)

    return app


@asynccontextmanager
async def held(
    folder: Path, **options: Any
) -> AsyncIterator[tuple[StandIn, StandIn, Cluster, asyncio.Queue[str], asyncio.Semaphore]]:
    """Run the app of `held_app` at two brokers; its handlers put into the queue what they begin, and the semaphore lets
    one after the other go on."""
    begun: asyncio.Queue[str] = asyncio.Queue()
    go_on = asyncio.Semaphore(0)
    async with running(held_app(begun, go_on.acquire), folder, **options) as ((first, second), worker):
        async with asyncio.timeout(DEADLINE_S):
            yield first, second, worker, begun, go_on


async def test_process_has_one_name_at_all_brokers_and_another_process_has_another(folder: Path) -> None:
    names = []
    for number in range(2):
        (folder / str(number)).mkdir()
        async with running(echo_app(), folder / str(number), count=3) as (brokers, _):
            assert len({broker.hellos[0].options["shared"] for broker in brokers}) == 1
            names.append(brokers[0].hellos[0].options["shared"])
    assert names[0] != names[1]


@pytest.mark.parametrize("type_", ["ordered", "plain"])
async def test_broker_that_asks_has_the_process_alone_and_the_others_get_back_what_has_not_begun(
    folder: Path, type_: str
) -> None:
    async with held(folder, exclusive=True) as (first, second, _, begun, go_on):
        second.send(*(request(token, b"%d" % token, type_) for token in (1, 2, 3)))
        assert await begun.get() == "1"
        first.send(Heartbeat({"exclusive": 7}))
        assert await second.signal() == {"paused": 1}
        second.send(request(4, b"4", type_), request(5, b"5", "quick"))  # before the broker has read it
        second.send(Heartbeat({"paused": 1}))
        assert await second.signal() == {"unbegun": [2, 3, 4, 5]}
        assert first.signals.empty()
        go_on.release()
        assert (await second.expect(Reply)).token == 1
        assert await first.signal() == {"exclusive": 7}
        go_on.release()
        assert (await first.ask(1, b"alone", type_)).commands[0].body == b"alone"
        first.send(Heartbeat({"exclusive": 0}))
        assert await second.signal() == {"paused": 0}
        go_on.release()
        assert (await second.ask(6, b"6", type_)).commands[0].body == b"6"
        assert [begun.get_nowait() for _ in range(begun.qsize())] == ["alone", "6"]


@pytest.mark.parametrize("type_", ["ordered", "plain", "quick"])
async def test_messages_held_for_another_broker_that_asks_no_more_are_handled_in_order(
    folder: Path, type_: str
) -> None:
    async with held(folder, exclusive=True) as (first, second, _, begun, go_on):
        second.send(request(1, b"1", "ordered", user="other"))
        await begun.get()
        first.send(Heartbeat({"exclusive": 1}))
        await second.signal()
        second.send(*(request(token, b"%d" % token, type_) for token in (2, 3)))
        go_on.release()
        assert (await second.expect(Reply)).token == 1
        first.send(Heartbeat({"exclusive": 0}))
        assert await second.signal() == {"paused": 0}
        for _ in range(2):
            go_on.release()
        assert sorted(await second.replies(2)) == [2, 3]
        assert [begun.get_nowait() for _ in range(begun.qsize())] == ["2", "3"]


async def test_second_welcome_of_a_paused_link_loses_nothing_that_is_held(folder: Path) -> None:
    async with held(folder, exclusive=True) as (first, second, *_):
        first.send(Heartbeat({"exclusive": 1}))
        assert await second.signal() == {"paused": 1}
        second.send(request(1, b"1", "plain"), Welcome(1, "s1", second.options))
        assert await second.signal() == {"paused": 2}
        second.send(Heartbeat({"paused": 2}))
        assert await second.signal() == {"unbegun": [1]}
        assert await first.signal() == {"exclusive": 1}


async def test_function_of_a_lost_link_is_waited_for_before_another_broker_has_the_process(folder: Path) -> None:
    """The function may kill the process, and the broker would blame its own message for that."""
    app, begun, go_on, ended = App(), threading.Event(), threading.Event(), threading.Event()

    @app.handler("plain")
    def plain(message: Message) -> Command:
        begun.set()
        go_on.wait(DEADLINE_S)
        ended.set()
        return message.reply(raw=message.raw)

    async with running(app, folder, exclusive=True) as ((first, second), _), asyncio.timeout(DEADLINE_S):
        second.send(request(1, b"1", "plain"))
        await asyncio.to_thread(begun.wait)
        second.send(Goodbye("stopping"))
        assert isinstance(await second.next(), Goodbye)
        await second.expect(Hello)
        first.send(Heartbeat({"exclusive": 1}))
        second.send(Heartbeat(await second.signal()))
        asyncio.get_running_loop().call_later(0.5, go_on.set)  # a use that is granted too early comes before
        assert await first.signal() == {"exclusive": 1}
        assert ended.is_set()


async def test_stop_hands_back_what_is_held(folder: Path) -> None:
    async with held(folder, exclusive=True) as (first, second, worker, begun, go_on):
        second.send(*(request(token, b"1", "plain") for token in (1, 2)))
        await begun.get()
        first.send(Heartbeat({"exclusive": 1}))
        assert await second.signal() == {"paused": 1}
        stop = asyncio.create_task(worker.stop())
        second.send(Heartbeat({"paused": 1}))
        await second.expect(Goodbye)
        assert await second.signal() == {"unbegun": [2]}
        go_on.release()
        assert (await second.expect(Reply)).token == 1
        await stop


async def test_broker_without_exclusive_use_is_served_beside_the_one_that_asks(folder: Path) -> None:
    async with held(folder) as (first, second, _, begun, go_on):
        second.send(request(1, b"1", "ordered"))
        await begun.get()
        first.send(Heartbeat({"exclusive": 1}))
        assert await first.signal() == {"exclusive": 1}
        assert (await second.ask(2, b"2", "quick")).commands[0].body == b"2"
        go_on.release()
        assert (await second.expect(Reply)).token == 1


async def test_emit_with_an_id_goes_to_another_broker_marked(folder: Path) -> None:
    app = echo_app()
    async with running(app, folder) as ((first, second), _):
        emit = asyncio.create_task(app.emit("echo", send_clients(["u"], 1), id="reading-1"))
        sent = await first.expect(Emit)
        assert sent.meta == {"id": "reading-1"}
        first.send(Goodbye("stopping"))
        again = await second.expect(Emit)
        assert again.meta == {"id": "reading-1", "again": True}
        second.send(Outcome(again.token, 0, {}, None))
        assert (await asyncio.wait_for(emit, DEADLINE_S)).good


async def test_emit_without_an_id_is_not_sent_twice(folder: Path) -> None:
    app = echo_app()
    async with running(app, folder) as ((first, second), _):
        emit = asyncio.create_task(app.emit("echo", send_clients(["u"], 1)))
        await first.expect(Emit)
        first.send(Goodbye("stopping"))
        with pytest.raises(BesterError, match="unreachable"):
            await asyncio.wait_for(emit, DEADLINE_S)
        asked = asyncio.create_task(app.ask.is_client("u"))
        question = await second.expect(Ask)  # and no EMIT before it
        second.send(Answer(question.token, 0, True))
        assert await asyncio.wait_for(asked, DEADLINE_S)


async def test_question_goes_to_another_broker(folder: Path) -> None:
    app = echo_app()
    async with running(app, folder) as ((first, second), _):
        asked = asyncio.create_task(app.ask.list_clients())
        await first.expect(Ask)
        first.send(Goodbye("stopping"))
        question = await second.expect(Ask)
        second.send(Answer(question.token, 0, ["a", "b"]))
        assert await asyncio.wait_for(asked, DEADLINE_S) == ["a", "b"]


async def test_invalid_emit_is_an_error_without_any_broker(folder: Path) -> None:
    app = echo_app()
    worker = Cluster(app, [(f"ipc://{folder}/nobody{number}", None) for number in range(2)])
    worker.start()
    with pytest.raises(ValueError, match="emits as one of its own types"):
        await app.emit("other", send_clients(["u"], 1))
    with pytest.raises(BesterError, match=r"no broker at ipc.*nobody0, ipc.*nobody1 answered"):
        await app.emit("echo", send_clients(["u"], 1), timeout_s=0.01)
    await asyncio.wait_for(worker.stop(), DEADLINE_S)


async def test_start_and_stop_hooks_and_tasks_run_once(folder: Path) -> None:
    app = echo_app()
    calls: list[str] = []
    has_begun = asyncio.Event()

    @app.on_start
    def begin() -> None:
        calls.append("start")

    @app.on_stop
    def end() -> None:
        calls.append("stop")

    @app.task
    async def task() -> None:
        calls.append("task")
        has_begun.set()

    async with running(app, folder) as (brokers, _):
        await asyncio.wait_for(has_begun.wait(), DEADLINE_S)
        for broker in brokers:
            await broker.ask(1, b"1")
    assert calls == ["start", "task", "stop"]


async def test_stop_finishes_the_requests_of_every_broker(folder: Path) -> None:
    app = App()
    go_on = asyncio.Event()

    @app.handler("echo")
    async def echo(message: Message) -> Command:
        await go_on.wait()
        return message.reply(raw=message.raw)

    async with running(app, folder) as (brokers, worker):
        for broker in brokers:
            broker.send(request(1, b"1"))
        stop = asyncio.create_task(worker.stop())
        for broker in brokers:
            await broker.expect(Goodbye)
        go_on.set()
        for broker in brokers:
            assert (await broker.expect(Reply)).token == 1
        await asyncio.wait_for(stop, DEADLINE_S)


async def test_refusal_of_one_broker_leaves_the_others(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    app, refusal = echo_app(), Error("schema", "echo: too large", 1)
    links = [f"ipc://{folder}/0", f"ipc://{folder}/1"]
    async with StandIn(links[0], refuse=refusal) as first, StandIn(links[1], heartbeat_ms=MUTE_MS) as second:
        worker = Cluster(app, [(each, None) for each in links])
        worker.start()
        over = asyncio.create_task(worker.wait_over())
        with caplog.at_level(logging.ERROR, "bester.handlers"):
            await first.expect(Hello)
            await second.expect(Hello)
            async with asyncio.timeout(DEADLINE_S):
                while "refuses this handler" not in caplog.text:
                    await second.ask(1, b"1")
        assert f"the broker at {links[0]} refuses this handler" in caplog.text
        assert not over.done()
        assert worker.refusal is None
        over.cancel()
        await asyncio.wait_for(worker.stop(), DEADLINE_S)


async def test_refusal_of_all_brokers_ends_the_worker(folder: Path) -> None:
    refusal = Error("schema", "echo: too large", 1)
    links = [f"ipc://{folder}/0", f"ipc://{folder}/1"]
    async with StandIn(links[0], refuse=refusal), StandIn(links[1], refuse=refusal):
        worker = Cluster(echo_app(), [(each, None) for each in links])
        worker.start()
        await asyncio.wait_for(worker.wait_over(), DEADLINE_S)
        assert worker.refusal is not None
        assert worker.refusal.text == "echo: too large"
        await asyncio.wait_for(worker.stop(), DEADLINE_S)


APP = """
from bester.handlers import App
app = App()

@app.handler("echo")
async def echo(message):
    return message.reply(message.data)
"""


@pytest.mark.parametrize("workers", [1, 2])
async def test_program_serves_every_broker_named(folder: Path, workers: int) -> None:
    (folder / "mine.py").write_text(APP)
    links = [f"ipc://{folder}/0", f"ipc://{folder}/a,b"]
    arguments, environ = ["--workers", "2", "--fabric", links[0], "--fabric", links[1]], {}
    if workers == 1:
        arguments, environ = [], {"BESTER_FABRIC": ", ".join([*links, links[0]])}
    async with StandIn(links[0]) as first, StandIn(links[1]) as second:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bester.handlers", "mine:app", "--name", "w", *arguments,
            cwd=folder, env={**os.environ, **environ}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        for broker in (first, second):
            for _ in range(workers):
                await broker.expect(Hello)
            names = sorted(hello.name for hello in broker.hellos)
            assert names == (["w"] if workers == 1 else ["w.0", "w.1"])
            assert (await broker.ask(1, b"1")).commands[0].body == b"1"
        process.terminate()
        for broker in (first, second):
            for _ in range(workers):
                await broker.expect(Goodbye)
        _, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 0, errors


async def test_program_names_the_endpoint_that_is_wrong(folder: Path) -> None:
    (folder / "mine.py").write_text(APP)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bester.handlers", "mine:app", "--fabric", "tcp://127.0.0.1:1,tcp://127.0.0.1:x",
        cwd=folder, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 2
    assert b"--fabric (or BESTER_FABRIC): '127.0.0.1:x': the port is a number" in errors


def test_number_of_brokers_is_bounded() -> None:
    with pytest.raises(ValueError, match="linked to 1 to 64 brokers, not 65"):
        Cluster(echo_app(), [(f"tcp://127.0.0.1:{port}", None) for port in range(1, 66)])
