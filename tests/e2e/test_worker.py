"""An App on a real DEALER link, against a ROUTER that speaks BFP/1."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bester.broker import fabric
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import (
    DONE,
    FAILED,
    REFUSED,
    Answer,
    Ask,
    Command,
    Emit,
    Error,
    Goodbye,
    Hello,
    Outcome,
    Reply,
)
from bester.handlers import App, HandlerError, Message, send_clients
from bester.handlers.worker import Worker
from tests.e2e.broker_stand_in import PATIENCE_S, StandIn, request


@pytest.fixture
def endpoint() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="b-")
    yield f"ipc://{folder}/f.sock"
    shutil.rmtree(folder)


@asynccontextmanager
async def running(app: App, endpoint: str, **options: Any) -> AsyncIterator[tuple[StandIn, Worker]]:
    async with StandIn(endpoint) as broker:
        worker = Worker(app, endpoint, **options)
        worker.start()
        await broker.expect(Hello)
        try:
            yield broker, worker
        finally:
            await asyncio.wait_for(worker.stop(), PATIENCE_S)


def echo_app(**options: Any) -> App:
    app = App(**options)

    @app.handler("echo")
    async def echo(message: Message) -> Command:
        return message.reply(raw=message.raw)

    return app


async def test_hello_holds_the_apps_options(endpoint: str) -> None:
    app = App("talker", credit=7, lease_ms=9000, version="2")

    @app.handler("chat", order="user")
    async def chat(message: Message) -> None: ...

    async with running(app, endpoint) as (broker, _):
        hello = broker.hellos[0]
    assert (hello.version, hello.role, hello.name) == (1, "handler", "talker")
    options = dict(hello.options)
    assert "Python" in options.pop("software")
    assert options == {"types": ["chat"], "credit": 7, "lease_ms": 9000, "version": "2", "order": {"chat": "user"}}


async def test_bytes_are_returned_unchanged(endpoint: str) -> None:
    async with running(echo_app(), endpoint) as (broker, _):
        for token, body in enumerate((b"0.1", b"-0", b"1e400", b'{"a":1,"a":2}', rb'"\u00e9"', b"[ 1 ]")):
            reply = await broker.ask(token, body)
            assert reply == Reply(token, 0, [Command("sendClients", ["u"], body)], None)


async def test_batch_of_300_is_answered_in_few_batches(endpoint: str) -> None:
    async with running(echo_app(credit=300), endpoint) as (broker, _):
        before = len(broker.frames)
        broker.send(*(request(token, b"%d" % token) for token in range(300)))
        replies = await broker.replies(300)
        assert [replies[token].commands[0].body for token in range(300)] == [b"%d" % token for token in range(300)]
        assert len(broker.frames) - before <= 5


@pytest.mark.parametrize("runs", ["loop", "inline"])
async def test_replies_and_grants_are_sent_on_a_link_that_takes_no_more_emits(
    endpoint: str, runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App()

    @app.handler("echo", inline=runs == "inline")
    def echo(message: Message) -> Command:
        if message.raw == b"0":
            raise HandlerError("no")
        return message.reply(raw=message.raw)

    async with running(app, endpoint) as (broker, worker):
        await worker.wait_ready()
        monkeypatch.setattr(fabric, "MAX_QUEUED", 0)
        with pytest.raises(BesterError, match="no link"):
            await app.emit("echo", [], timeout_s=5.0)
        worker.requests.tell({"exclusive": 3})
        assert await asyncio.wait_for(broker.signals.get(), PATIENCE_S) == {"exclusive": 3}
        broker.send(request(1, b"1"), request(2, b"0"), request(3, b"1"), request(4, b"1", "other"))
        replies = await broker.replies(4)
        assert [replies[token].status for token in (1, 2, 3, 4)] == [DONE, REFUSED, DONE, FAILED]


async def test_large_bodies_are_attachments(endpoint: str) -> None:
    body = b'"' + b"x" * 1_000_000 + b'"'
    async with running(echo_app(), endpoint) as (broker, _):
        reply = await broker.ask(1, body)
        assert reply.commands[0].body == body
        assert broker.frames[-1][1] == body


async def test_failure_has_a_note_and_the_next_message_is_served(
    endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    @app.handler("moody")
    async def moody(message: Message) -> Any:
        if message.data == "refuse":
            raise HandlerError("not today")
        if message.data == "odd":
            return 5
        return message.reply(1 / message.data)

    async with running(app, endpoint) as (broker, _):
        assert (await broker.ask(1, b'"refuse"', "moody"))[1:] == (2, [], "not today", None)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert (await broker.ask(2, b"0", "moody"))[1:] == (1, [], "ZeroDivisionError: division by zero", None)
        assert any(record.exc_info and "moody failed on message s1/b/2" in record.message for record in caplog.records)
        odd = await broker.ask(3, b'"odd"', "moody")
        assert (odd.status, odd.code) == (1, "bad-reply")
        assert odd.note is not None
        assert odd.note.startswith("the handler returned a int")
        assert (await broker.ask(4, b"4", "moody")).commands == [Command("sendClients", ["u"], b"0.25")]
        assert (await broker.ask(5, b"4", "other")).status == 1


async def test_plain_functions_run_concurrently_in_threads(endpoint: str) -> None:
    app = App(threads=3)
    together = threading.Barrier(3, timeout=PATIENCE_S)
    main = threading.get_ident()

    @app.handler("slow")
    def slow(message: Message) -> Command:
        assert threading.get_ident() != main
        together.wait()
        return message.reply(app.blocking.is_client("g"))

    async with running(app, endpoint) as (broker, _):
        broker.send(*(request(token, b"1", "slow") for token in range(3)))
        questions = [await broker.expect(Ask) for _ in range(3)]
        assert [question[1:] for question in questions] == [("isClient", "g")] * 3
        broker.send(*(Answer(question.token, 0, True) for question in questions))
        replies = await broker.replies(3)
        assert {reply.commands[0].body for reply in replies.values()} == {b"true"}


async def test_any_exception_in_a_thread_is_answered(endpoint: str) -> None:
    app = App(threads=1)

    @app.handler("quits")
    def quits(message: Message) -> Command:
        if message.data:
            raise SystemExit(3)
        return message.reply(None)

    async with running(app, endpoint) as (broker, _):
        assert (await broker.ask(1, b"true", "quits"))[1:] == (1, [], "SystemExit: 3", None)
        assert (await broker.ask(2, b"false", "quits")).status == 0


async def test_inline_functions_answer_at_once(endpoint: str) -> None:
    app = App()

    @app.handler("quick", inline=True)
    def quick(message: Message) -> Command:
        assert threading.current_thread() is threading.main_thread()
        return message.reply(10 // message.data)

    async with running(app, endpoint) as (broker, _):
        assert (await broker.ask(1, b"5", "quick")).commands[0].body == b"2"
        assert (await broker.ask(2, b"0", "quick")).status == 1


async def test_waiting_handler_delays_no_other(endpoint: str) -> None:
    app = App()
    gate = asyncio.Event()
    waiting = 0

    @app.handler("mixed")
    async def mixed(message: Message) -> Command:
        nonlocal waiting
        if message.data == "wait":
            waiting += 1
            await gate.wait()
        return message.reply(message.data)

    async with running(app, endpoint) as (broker, _):
        bodies = [b'"wait"' if token % 3 else b'"go"' for token in range(200)]
        broker.send(*(request(token, body, "mixed") for token, body in enumerate(bodies)))
        quick = await broker.replies(67)
        assert all(token % 3 == 0 for token in quick)
        assert waiting == 133
        gate.set()
        assert len(await broker.replies(133)) == 133


async def test_every_handler_runs_in_a_task_of_its_own(endpoint: str) -> None:
    """Timeouts, context variables and cancellation stay within one message."""
    app = App()
    colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")
    at_once: set[asyncio.Task[Any] | None] = set()
    gate = asyncio.Event()

    @app.handler("task")
    async def task(message: Message) -> Command:
        before = colour.get()
        colour.set(str(message.data))
        if message.data == "timeout":
            try:
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            except TimeoutError:
                return message.reply("timed out")
        if message.data == "cancel":
            current = asyncio.current_task()
            assert current is not None
            current.cancel()
        if message.data == "gather":
            at_once.add(asyncio.current_task())
            if len(at_once) == 3:
                gate.set()
            await gate.wait()
        return message.reply(before)

    async with running(app, endpoint) as (broker, _):
        for token in range(4):
            assert (await broker.ask(token, b'"plain"', "task")).commands[0].body == b'"none"'
        assert (await broker.ask(10, b'"timeout"', "task")).commands[0].body == b'"timed out"'
        await broker.ask(11, b'"cancel"', "task")
        broker.send(*(request(token, b'"gather"', "task") for token in range(20, 23)))
        replies = await broker.replies(3)
        assert {reply.commands[0].body for reply in replies.values()} == {b'"none"'}
        assert len(at_once) == 3
        assert None not in at_once


async def test_one_users_messages_are_in_order_and_others_concurrent(endpoint: str) -> None:
    app = App()
    gate = asyncio.Event()
    seen: list[tuple[str | None, int]] = []

    @app.handler("chat", order="user")
    async def chat(message: Message) -> None:
        if message.user == "slow" and message.data == 0:
            await gate.wait()
        seen.append((message.user, message.data))

    async with running(app, endpoint) as (broker, _):
        broker.send(*(request(token, b"%d" % token, "chat", "slow") for token in range(5)))
        broker.send(*(request(token, b"%d" % token, "chat", "quick") for token in range(5, 8)))
        assert set(await broker.replies(3)) == {5, 6, 7}
        gate.set()
        assert list(await broker.replies(5)) == [0, 1, 2, 3, 4]
    assert seen == [("quick", n) for n in (5, 6, 7)] + [("slow", n) for n in range(5)]


async def test_order_holds_for_threads_and_failures(endpoint: str) -> None:
    app = App(threads=4)
    seen: list[int] = []

    @app.handler("chat", order="user")
    def chat(message: Message) -> None:
        seen.append(message.data)
        if message.data % 2:
            raise HandlerError("odd")

    async with running(app, endpoint) as (broker, _):
        broker.send(*(request(token, b"%d" % token, "chat") for token in range(20)))
        replies = await broker.replies(20)
    assert seen == list(range(20))
    assert [replies[token].status for token in range(20)] == [0, 2] * 10


async def test_emit_waits_for_its_outcome(endpoint: str) -> None:
    app = echo_app()

    async with running(app, endpoint) as (broker, _):
        emitting = asyncio.create_task(app.emit("echo", send_clients(["a", "b"], {"t": 20}), id="reading-1"))
        emit = await broker.expect(Emit)
        assert emit[1:] == ("echo", [Command("sendClients", ["a", "b"], b'{"t":20}')], {"id": "reading-1"})
        broker.send(Outcome(emit.token, 1, {"b": "failed:not-connected"}, "not-connected"))
        outcome = await emitting
        assert not outcome.good
        assert outcome.recipients == {"b": "failed:not-connected"}
        assert outcome.reason == "not-connected"

        emitting = asyncio.create_task(app.emit("echo", []))
        emit = await broker.expect(Emit)
        broker.send(Error("not-allowed", "not you", 12, emit.token))
        with pytest.raises(BesterError, match="not-allowed: not you"):
            await emitting
        with pytest.raises(ValueError, match="not as 'other'"):
            await app.emit("other", [])


async def test_repeated_emit_is_marked_again(endpoint: str) -> None:
    app = echo_app()

    async with running(app, endpoint) as (broker, _):
        with pytest.raises(BesterError, match="timeout"):
            await app.emit("echo", [], id="noon", timeout_s=0.05)
        for answered, expected in ((Error, {"id": "noon", "again": True}), (Outcome, {"id": "noon"})):
            emitting = asyncio.create_task(app.emit("echo", [], id="noon"))
            emit = await broker.expect(Emit)
            while "again" in expected and "again" not in emit.meta:  # the first emit is still in flight
                emit = await broker.expect(Emit)
            assert emit.meta == expected
            broker.send(Outcome(emit.token, 0, {}) if answered is Outcome else Error("overloaded", "", 12, emit.token))
            if answered is Outcome:
                assert (await emitting).good
            else:
                with pytest.raises(BesterError, match="overloaded"):
                    await emitting


async def test_questions(endpoint: str) -> None:
    app = echo_app()
    values: dict[str, Any] = {"listClients": ["g", "t"], "isClient": False, "serverInfo": {"clientCount": "2"}}

    async with running(app, endpoint) as (broker, _):
        for ask in (app.ask.list_clients, app.ask.server_info, lambda: app.ask.is_client("x")):
            asking = asyncio.ensure_future(ask())
            question = await broker.expect(Ask)
            broker.send(Answer(question.token, 0, values[question.question]))
            assert await asking == values[question.question]
        asking = asyncio.ensure_future(app.ask.list_clients())
        question = await broker.expect(Ask)
        broker.send(Answer(question.token, 1, "not-allowed"))
        with pytest.raises(BesterError, match="not-allowed"):
            await asking
        with pytest.raises(BesterError, match="timeout"):
            await app.ask.list_clients(timeout_s=0.01)
        with pytest.raises(RuntimeError, match=r"await app\.emit"):
            app.blocking.list_clients()


async def test_timers_and_tasks_begin_with_the_link(endpoint: str) -> None:
    app = echo_app()
    ended = asyncio.Event()

    @app.every(0.01)
    async def reading() -> None:
        await app.emit("echo", [])

    @app.task
    async def forever() -> None:
        try:
            await app.emit("echo", send_clients(["a"], 1))
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running(app, endpoint) as (broker, _):
        for _ in range(4):
            emit = await broker.expect(Emit)
            broker.send(Outcome(emit.token, 0, {}))
        assert not ended.is_set()
    assert ended.is_set()


async def test_stop_sends_goodbye_and_finishes_outstanding_requests(endpoint: str) -> None:
    app = App()
    begun, gate = asyncio.Event(), asyncio.Event()

    @app.handler("slow")
    async def slow(message: Message) -> Command:
        begun.set()
        await gate.wait()
        return message.reply("done")

    async with StandIn(endpoint) as broker:
        worker = Worker(app, endpoint)
        worker.start()
        await broker.expect(Hello)
        broker.send(request(1, b"null", "slow"))
        await begun.wait()
        stopping = asyncio.create_task(worker.stop())
        await broker.expect(Goodbye)
        gate.set()
        assert (await broker.expect(Reply)).commands[0].body == b'"done"'
        await asyncio.wait_for(stopping, PATIENCE_S)


async def test_unfinished_request_is_abandoned_after_the_drain(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    begun, ended = asyncio.Event(), asyncio.Event()

    @app.handler("stuck")
    async def stuck(message: Message) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with StandIn(endpoint) as broker:
        worker = Worker(app, endpoint)
        worker.start()
        await broker.expect(Hello)
        broker.send(request(1, b"null", "stuck"))
        await begun.wait()
        await asyncio.wait_for(worker.stop(drain_s=0.05), PATIENCE_S)
    assert ended.is_set()
    assert "1 requests are outstanding: they did not end" in caplog.text


@pytest.mark.parametrize("threaded", [False, True], ids=["task", "thread"])
async def test_restarted_broker_gets_hello_and_no_old_replies(endpoint: str, threaded: bool) -> None:
    app = App()
    begun, gate = threading.Event(), threading.Event()
    cancelled = asyncio.Event()

    def slow_in_thread(message: Message) -> Command:
        begun.set()
        if message.data == "old":
            assert gate.wait(PATIENCE_S)
        return message.reply(message.data)

    async def slow_in_task(message: Message) -> Command:
        begun.set()
        try:
            if message.data == "old":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
        return message.reply(message.data)

    slow: Callable[[Message], Any] = slow_in_thread if threaded else slow_in_task
    app.handler("slow", order="user")(slow)
    async with StandIn(endpoint) as broker:
        worker = Worker(app, endpoint)
        worker.start()
        await broker.expect(Hello)
        broker.send(request(1, b'"old"', "slow"), request(2, b'"queued"', "slow"))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        emitting = asyncio.create_task(app.emit("slow", []))
        await broker.expect(Emit)
    async with StandIn(endpoint) as broker:
        await broker.expect(Hello)
        with pytest.raises(BesterError, match="unreachable"):
            await emitting
        broker.send(request(3, b'"new"', "slow"))
        gate.set()
        reply = await broker.expect(Reply)
        assert (reply.token, reply.commands[0].body) == (3, b'"new"')
        assert threaded or cancelled.is_set()
        await worker.stop()


async def test_refusal_ends_the_worker(endpoint: str) -> None:
    async with StandIn(endpoint, refuse=Error("reserved", "bester.auth is not yours", 1)):
        worker = Worker(echo_app(), endpoint)
        worker.start()
        await asyncio.wait_for(worker.wait_over(), PATIENCE_S)
        assert worker.refusal is not None
        assert worker.refusal.code == "reserved"
        await worker.stop()


async def test_app_with_one_handler_serves_any_type(endpoint: str) -> None:
    async with running(echo_app(), endpoint, types=["english", "afrikaans"], name="e") as (broker, _):
        assert broker.hellos[0].options["types"] == ["english", "afrikaans"]
        assert (await broker.ask(1, b"1", "afrikaans")).status == 0
        assert (await broker.ask(2, b"1", "echo")).status == 1
