"""Faulty handlers: one message fails, and the worker serves the others."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from bester.broker.logs import LineFormatter
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import DONE, FAILED, REFUSED, Command, Emit, Hello, Outcome, Reply
from bester.handlers import App, HandlerError, Message, send_clients
from bester.handlers.message_groups import MessageGroups
from bester.handlers.stock import chat
from bester.handlers.worker import Worker
from tests.e2e.broker_stand_in import PATIENCE_S, StandIn, request

HALF = "\udcff"


class BrokenError(Exception):
    """An exception whose text raises."""

    def __init__(self, text: Any) -> None:
        self.given: Any = text

    def __str__(self) -> str:
        if self.given is None:
            raise AttributeError("no text")
        return self.given  # type: ignore[no-any-return]  # the point of the test


class NamelessType(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]  # the point of the test
        raise KeyError("no name")

    def __eq__(cls, other: object) -> bool:
        raise KeyError("not comparable")

    __hash__ = type.__hash__


class NamelessError(Exception, metaclass=NamelessType):
    """Object whose class raises."""


class ClosedError(Exception):
    """Object whose attributes raise."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class ClosedRefusalError(HandlerError):
    """Refusal whose text raises."""

    def __getattribute__(self, name: str) -> Any:
        raise NamelessError("closed")


@pytest.fixture
def endpoint() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="b-")
    yield f"ipc://{folder}/f.sock"
    shutil.rmtree(folder)


@asynccontextmanager
async def running(app: App, endpoint: str, **options: Any) -> AsyncIterator[StandIn]:
    async with StandIn(endpoint, **options) as broker:
        worker = Worker(app, endpoint)
        worker.start()
        await broker.expect(Hello)
        await worker.wait_ready()
        try:
            yield broker
        finally:
            await asyncio.wait_for(worker.stop(), PATIENCE_S)


def raises(make: Callable[[], BaseException]) -> Callable[[Message], Any]:
    def function(message: Message) -> Any:
        raise make()

    return function


def loop() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


DEEDS: dict[str, tuple[Callable[[Message], Any], int, str | None, str]] = {
    "half a pair in a refusal": (
        raises(lambda: HandlerError(f"no such file: {HALF}.txt")), REFUSED, None, "no such file: \ufffd.txt",
    ),
    "half a pair in an exception": (
        raises(lambda: OSError(2, "no such file", f"{HALF}.txt")),
        FAILED, None, "FileNotFoundError: [Errno 2] no such file",
    ),
    "no text": (
        raises(lambda: BrokenError(None)),
        FAILED, None, "BrokenError: its text cannot be had: str() raised AttributeError",
    ),
    "a text that is none": (
        raises(lambda: BrokenError(7)), FAILED, None, "BrokenError: its text cannot be had: str() raised TypeError",
    ),
    "no name": (raises(lambda: NamelessError("x")), FAILED, None, "NamelessError: x"),
    "a text that raises what has no name": (
        raises(lambda: BrokenError(NamelessError)),
        FAILED, None, "BrokenError: its text cannot be had: str() raised TypeError",
    ),
    "no attributes": (raises(lambda: ClosedError("x")), FAILED, None, "ClosedError: x"),
    "a refusal without attributes": (raises(lambda: ClosedRefusalError.__new__(ClosedRefusalError)), REFUSED, None, ""),
    "a result of a class that raises": (
        lambda message: NamelessError("x"), FAILED, "bad-reply", "the handler returned a NamelessError",
    ),
    "a megabyte": (raises(lambda: ValueError("line\n" * 200_000)), FAILED, None, "ValueError: line line line"),
    "StopIteration": (lambda message: next(iter([])), FAILED, None, ""),
    "SystemExit": (raises(lambda: SystemExit(3)), FAILED, None, "SystemExit: 3"),
    "KeyboardInterrupt": (raises(KeyboardInterrupt), FAILED, None, "KeyboardInterrupt"),
    "GeneratorExit": (raises(GeneratorExit), FAILED, None, "GeneratorExit"),
    "CancelledError": (raises(asyncio.CancelledError), FAILED, None, "CancelledError"),
    "a group": (
        raises(lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), BrokenError(None)])),
        FAILED, None, "BaseExceptionGroup: several",
    ),
    "half a pair in a target": (
        lambda message: message.send_clients(["bob", f"carol{HALF}"], 1),
        FAILED, "bad-reply", "a text has half a surrogate pair in it ('\\udcff' at 5)",
    ),
    "half a pair in a server": (
        lambda message: message.send_servers([f"s2{HALF}"], 1), FAILED, "bad-reply", "a text has half a surrogate pair",
    ),
    "half a pair in a type": (
        lambda message: message.send_servers(["s2"], 1, as_type=HALF),
        FAILED, "bad-reply", "a text has half a surrogate pair",
    ),
    "half a pair in the data": (
        lambda message: message.reply({"x": HALF}),
        FAILED, None, "ValueError: a text of the data has half a surrogate pair in it",
    ),
    "no JSON": (lambda message: message.reply(object()), FAILED, None, "TypeError: "),
    "what holds itself": (lambda message: message.reply(loop()), FAILED, None, "RecursionError: "),
    "a body too large": (
        lambda message: [message.reply("ok"), message.reply("x" * 2_000_000)],
        FAILED, "bad-reply", "a body of 2000002 bytes; 1000000 are allowed",
    ),
    "too many targets to be read": (
        lambda message: message.send_clients(["x"] * 200_000, 1),
        FAILED, "bad-reply", "an array of 200000 elements; 131072 are allowed",
    ),
    "a command made by hand": (
        lambda message: Command("sendClients", ["bob"], cast("bytes", 7)),
        FAILED, "bad-reply", "a value cannot be written in MessagePack",
    ),
    "a body made by hand": (
        lambda message: Command("sendClients", ["bob"], cast("bytes", "x" * 20_000)),
        FAILED, "bad-reply", "a value cannot be written in MessagePack",
    ),
    "no command": (lambda message: {"to": "bob"}, FAILED, "bad-reply", "the handler returned a dict"),
    "a list with something else in it": (
        lambda message: [message.reply(1), None], FAILED, "bad-reply", "the handler returned a list",
    ),
    "fine": (lambda message: message.reply("ok"), DONE, None, ""),
}  # fmt: skip
"""Faults of handlers, and their REPLY: status, code, and the begin of the note."""


def deed(message: Message) -> Any:
    return DEEDS[message.data][0](message)


@pytest.mark.parametrize("kind", ["async", "waits", "thread", "inline", "ordered"])
async def test_faulty_message_fails_alone(endpoint: str, kind: str) -> None:
    app = App(threads=2)

    if kind in ("async", "waits", "ordered"):

        @app.handler("x", order="user" if kind == "ordered" else None)
        async def on_loop(message: Message) -> Any:
            if kind == "waits":
                await asyncio.sleep(0)
            return deed(message)

    else:

        @app.handler("x", inline=kind == "inline")
        def plain(message: Message) -> Any:
            return deed(message)

    async with running(app, endpoint, max_body=1_000_000) as broker:
        for at, name in enumerate(DEEDS):  # each fault alone, among good ones in the same batch
            doing = ("fine", name, "fine")
            broker.send(*(request(10 * at + n, b'"%b"' % each.encode(), "x") for n, each in enumerate(doing)))
            replies = await broker.replies(3)
            assert [replies[10 * at + n].status for n in (0, 2)] == [DONE, DONE], name
            bad = replies[10 * at + 1]
            _, status, code, note = DEEDS[name]
            assert (bad.status, bad.code) == (status, code), name
            assert (bad.note or "").startswith(note) and len(bad.note or "") <= 500, name
        # All faults at once.
        broker.send(*(request(1000 + at, b'"%b"' % name.encode(), "x") for at, name in enumerate(DEEDS)))
        replies = await broker.replies(len(DEEDS))
        assert [replies[1000 + at].status for at in range(len(DEEDS))] == [each[1] for each in DEEDS.values()]


@pytest.mark.parametrize("kind", ["async", "inline"])
async def test_fault_of_the_worker_over_one_message_spares_the_batch(
    endpoint: str, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()

    if kind == "inline":

        @app.handler("x", inline=True)
        def plain(message: Message) -> Command:
            return message.reply(1 // (message.data - 2))

    else:

        @app.handler("x", order="user")
        async def ordered(message: Message) -> Command:
            return message.reply(message.data)

    def enter(groups: MessageGroups, job: Any) -> bool:
        if job[0].body == b"2":
            raise MemoryError("no room for it")
        return real(groups, job)

    def verdict_on(error: BaseException) -> None:
        raise MemoryError("no room for it")

    real = MessageGroups.enter
    monkeypatch.setattr(MessageGroups, "enter", enter)
    monkeypatch.setattr("bester.handlers.requests.verdict_on", verdict_on)
    async with running(app, endpoint) as broker:
        broker.send(*(request(token, b"%d" % token, "x", user=f"u{token}") for token in (1, 2, 3)))
        replies = await broker.replies(3)
        assert [replies[token].status for token in (1, 2, 3)] == [DONE, FAILED, DONE]
        assert replies[2].note == "the worker failed over it: MemoryError: no room for it"
    assert any("REQUEST: the worker failed over it" in record.getMessage() for record in caplog.records)


async def test_unsendable_emit_or_question_raises_at_the_call(endpoint: str) -> None:
    app = App()

    @app.handler("x")
    async def handler(message: Message) -> Command:
        for wrong in (
            lambda: app.emit("x", [], id=HALF),
            lambda: app.emit("x", send_clients([HALF], 1)),
            lambda: app.emit("x", send_clients(["bob"], "x" * 2_000_000)),
            lambda: app.emit("x", send_clients(["x"] * 200_000, 1)),
            lambda: app.ask.is_client(HALF),
            lambda: app.ask.is_client(cast("str", 2**64)),
            lambda: app.ask.is_client(cast("str", object())),
        ):
            with pytest.raises(ValueError, match=r"half a surrogate pair|are allowed|a string, not a"):
                await wrong()
        outcome = await app.emit("x", send_clients(["bob"], 1), id="a")
        return message.reply(outcome.good)

    @app.handler("t")
    def in_a_thread(message: Message) -> Command:
        with pytest.raises(ValueError, match="half a surrogate pair"):
            app.blocking.emit("x", send_clients(["bob"], 1), id=HALF)
        with pytest.raises(ValueError, match="half a surrogate pair"):
            app.blocking.is_client(HALF)
        return message.reply("ok")

    async with running(app, endpoint, max_body=1_000_000) as broker:
        broker.send(request(1, b"1", "x"))
        emit = await broker.expect(Emit)  # the only one sent
        assert emit.meta == {"id": "a"}
        broker.send(Outcome(emit.token, 0, {}))
        assert (await broker.expect(Reply)).commands == [Command("sendClients", ["u"], b"true")]
        assert (await broker.ask(2, b"1", "t")).status == DONE


async def test_failing_timer_goes_on(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    calls: dict[str, int] = {}
    often = asyncio.Event()

    def raising(error: BaseException) -> None:
        name = type(error).__name__
        calls[name] = calls.get(name, 0) + 1
        if len(calls) == 5 and min(calls.values()) >= 2:
            app.runtime.loop.call_soon_threadsafe(often.set)
        raise error

    for error in (SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()):

        @app.every(0.01)
        async def on_loop(error: BaseException = error) -> None:
            raising(error)

    for other in (StopIteration(), BrokenError(None)):

        @app.every(0.01)
        def plain(error: BaseException = other) -> None:
            raising(error)

    @app.handler("x")
    async def handler(message: Message) -> Command:
        return message.reply("ok")

    async with running(app, endpoint) as broker, asyncio.timeout(PATIENCE_S):
        await often.wait()
        assert (await broker.ask(1, b"1", "x")).status == DONE
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


def test_worker_with_an_unsendable_hello_does_not_start(endpoint: str) -> None:
    app = App()
    app.handler("x")(lambda message: None)
    with pytest.raises(ValueError, match="HELLO"):
        Worker(app, endpoint, name=f"x{HALF}")  # as of --name
    with pytest.raises(ValueError, match="name has half a surrogate pair"):
        App(f"x{HALF}")
    with pytest.raises(ValueError, match="version has half a surrogate pair"):
        App(version=HALF)


def test_invalid_type_is_refused_at_registration() -> None:
    for type_ in (HALF, "a\nb", "x" * 129, "a,b", ""):
        with pytest.raises((ValueError, TypeError)):
            App().handler(type_)


async def test_refused_message_is_logged_with_its_reason(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    app = App(name="teller")

    @app.handler("x")
    async def handler(message: Message) -> Command:
        return message.send_clients([HALF], 1)

    async with running(app, endpoint) as broker:
        await broker.ask(1, b"1", "x")
    assert "teller: a reply cannot be sent: a text has half a surrogate pair" in caplog.text


async def test_cause_of_a_refusal_is_in_the_log_alone(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = App()

    @app.handler("x")
    async def handler(message: Message) -> Command:
        try:
            return message.reply(message.data["key of the safe"])
        except KeyError as error:
            raise HandlerError("no such letter") from error

    async with running(app, endpoint) as broker:
        assert (await broker.ask(1, b"{}", "x"))[1:] == (REFUSED, [], "no such letter", None)
    assert "no such letter (KeyError: 'key of the safe')" in caplog.text


async def test_answered_request_is_not_logged_as_an_error(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(chat.app, endpoint) as broker:
        reply = await broker.ask(1, b"7", "chat")
    assert reply.status == REFUSED
    assert (reply.note or "").startswith("chat: send ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_uncaught_bester_error_is_a_failure(endpoint: str) -> None:
    app = App()

    @app.handler("x")
    async def handler(message: Message) -> None:
        raise BesterError("unreachable", "the database of prices")

    async with running(app, endpoint) as broker:
        reply = await broker.ask(1, b"1", "x")
    assert (reply.status, reply.code) == (FAILED, None)


@pytest.mark.parametrize(
    ("error", "shown", "characters"),
    [
        (ValueError("bad"), "ValueError: bad", 1_000),
        (ValueError("line\n" * 200_000), "characters left out", 40_000),
        (ExceptionGroup("many", [ValueError(str(n)) for n in range(5_000)]), "many", 17_000),
        (BrokenError(None), "BrokenError", 1_000),
        (ValueError(HALF), repr(HALF)[1:-1], 1_000),
    ],
    ids=["plain", "long", "group", "no text", "half a pair"],
)
def test_traceback_in_the_log_is_bounded(error: Exception, shown: str, characters: int) -> None:
    try:
        raise error
    except Exception:  # noqa: BLE001 (as a worker does)
        record = logging.LogRecord("x", logging.ERROR, "p", 1, "failed", (), sys.exc_info())
    line = LineFormatter().format(record)
    assert shown in line
    assert len(line) < characters
