"""Time limits, retries, middleware, start and stop hooks of an App; and payloads declared by pydantic models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from bester.broker.wire.messages import Request
from bester.handlers import App, HandlerError, Message, Middleware
from bester.handlers.deadlines import Deadlines
from bester.handlers.hello import hello_options
from bester.handlers.testing import Sent, Tester

# --- time limits and retries ---


def test_a_handler_over_its_own_limit_is_cancelled() -> None:
    app = App()

    @app.on("slow", timeout_s=0.05)
    async def slow(message: Message) -> None:
        await asyncio.Event().wait()

    result = Tester(app).run("slow", {})
    assert (result.status, result.reason) == (1, "timeout")


def test_limits_of_the_worker_and_of_the_broker_the_shorter_counts() -> None:
    deadlines = Deadlines({"quick": 2.0, "long": 100.0})
    deadlines.set_limits({"request_ms": 30_000})
    assert deadlines.due(Request(1, "quick", b"1", None, {}), 10.0) == 12.0
    assert deadlines.due(Request(1, "long", b"1", None, {}), 10.0) == 40.5  # the broker's, and its grace
    assert deadlines.due(Request(1, "quick", b"1", None, {"deadline_ms": 500}), 10.0) == 11.0
    assert (deadlines.limit_s("quick"), deadlines.limit_s("other")) == (2.0, 30.0)


def test_a_long_limit_asks_the_broker_for_a_long_lease() -> None:
    app = App()
    app.on("report", timeout_s=120)(lambda message: None)
    assert hello_options(app, app.routes)["lease_ms"] == 120_000


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"timeout_s": 601},
        {"retries": -1},
        {"retries": 101},
        {"retries": 1000},
    ],
)
def test_limits_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        App().on("x", **options)(lambda message: None)


@pytest.mark.parametrize("options", [{"timeout_s": 1}, {"retries": 1}])
def test_an_inline_handler_has_neither(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="inline"):
        App().on("x", inline=True, **options)(lambda message: None)


def failing(app: App, times: int, error: Exception, kind: str, retries: int) -> list[int]:
    """Register a handler that raises so often, then replies; return its list of calls."""
    calls: list[int] = []

    def plain(message: Message) -> Any:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return message.reply(len(calls))

    async def awaited(message: Message) -> Any:
        return plain(message)

    app.on("x", retries=retries)(plain if kind == "plain" else awaited)
    return calls


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize(("times", "retries", "done", "count"), [(1, 1, True, 2), (2, 2, True, 3), (2, 1, False, 2)])
def test_failures_are_retried(kind: str, times: int, retries: int, done: bool, count: int) -> None:
    app = App()
    calls = failing(app, times, OSError("away"), kind, retries)
    result = Tester(app).run("x", {}, user="t")
    assert len(calls) == count
    assert result.commands == ([Sent("sendClients", ["t"], count)] if done else [])
    assert result.reason == (None if done else "handler-failed")


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_refusal_is_an_answer_and_is_not_retried(kind: str) -> None:
    app = App()
    calls = failing(app, 1, HandlerError("too many"), kind, 3)
    assert Tester(app).run("x", {}).note == "too many"
    assert len(calls) == 1


def test_no_retry_begins_after_the_limit() -> None:
    app = App()
    calls: list[int] = []

    @app.on("x", retries=50, timeout_s=0.01)
    def x(message: Message) -> None:
        calls.append(1)
        raise OSError("away")

    assert Tester(app).run("x", {}).reason == "handler-failed"
    assert len(calls) == 1


# --- middleware ---


class Recorder(Middleware):
    """Records the calls of its hooks."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def on_start(self, app: App) -> None:
        self.log.append(f"{self.name} start")

    def on_stop(self, app: App) -> None:
        self.log.append(f"{self.name} stop")

    def before_message(self, message: Message) -> None:
        self.log.append(f"{self.name} before")

    def after_message(self, message: Message, result: Any) -> None:
        self.log.append(f"{self.name} after")

    def on_error(self, message: Message, error: BaseException) -> None:
        self.log.append(f"{self.name} {type(error).__name__}")

    def on_retry(self, message: Message, error: BaseException, retry: int, delay_s: float) -> None:
        self.log.append(f"{self.name} retry {retry}")


def test_hooks_nest_around_start_message_and_stop() -> None:
    log: list[str] = []
    app = App(middleware=[Recorder("a", log), Recorder("b", log)])
    failing(app, 1, OSError("away"), "async", 1)
    assert Tester(app).run("x", {}, user="t").status == 0
    assert log == [
        "a start", "b start", "a before", "b before", "b retry 1", "a retry 1", "b after", "a after", "b stop",
        "a stop",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_an_error_is_told_once_after_the_last_retry(kind: str) -> None:
    log: list[str] = []
    app = App(middleware=[Recorder("a", log)])
    failing(app, 9, ValueError("bad"), kind, 1)
    Tester(app).run("x", {})
    assert log[1:-1] == ["a before", "a retry 1", "a ValueError"]


def test_a_hook_before_the_message_may_refuse_it() -> None:
    class Gate(Middleware):
        def before_message(self, message: Message) -> None:
            if message.user is None:
                raise HandlerError("log in first")

    app = App(middleware=[Gate()])
    calls = failing(app, 0, OSError(), "plain", 0)
    assert Tester(app).run("x", {}).note == "log in first"
    assert calls == []


def test_a_failing_hook_after_the_message_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Middleware):
        def after_message(self, message: Message, result: Any) -> None:
            raise RuntimeError("broken")

    app = App(middleware=[Broken()])
    failing(app, 0, OSError(), "plain", 0)
    with caplog.at_level(logging.ERROR):
        assert Tester(app).run("x", {}, user="t").status == 0
    assert "Broken.after_message failed" in caplog.text


# --- start and stop hooks, state ---


class Shop:
    """State of an app."""

    def __init__(self) -> None:
        self.open = True


def shop_app(shops: list[Shop]) -> App:
    """An app whose start hook opens a shop, and whose stop hook closes it."""
    app = App()

    @app.on_start
    async def start() -> Shop:
        shops.append(Shop())
        return shops[-1]

    @app.on_stop
    async def stop(shop: Shop) -> None:
        shop.open = False

    @app.on("open")
    async def is_open(message: Message) -> Any:
        return message.reply(app.state(Shop).open)

    return app


def test_state_lives_from_start_to_stop() -> None:
    shops: list[Shop] = []
    result = Tester(shop_app(shops)).run("open", user="t")
    assert result.commands[0].data is True
    assert [shop.open for shop in shops] == [False]


async def test_one_state_serves_all_messages_of_a_tester() -> None:
    shops: list[Shop] = []
    async with Tester(shop_app(shops)) as tester:
        for _ in range(3):
            assert (await tester.send("open", user="t")).status == 0
    assert len(shops) == 1 and not shops[0].open


def test_a_stand_in_comes_before_the_state_of_a_start_hook() -> None:
    app, stand_in = shop_app([]), Shop()
    stand_in.open = False
    app.states.provide(stand_in)
    assert Tester(app).run("open", user="t").commands[0].data is False


def test_state_that_no_hook_made_is_named() -> None:
    with pytest.raises(LookupError, match=r"no start hook has returned a Shop \(there is none\)"):
        App().state(Shop)


async def test_all_stop_hooks_run_where_one_fails() -> None:
    app, ran = App(), list[str]()

    @app.on_stop
    def first() -> None:
        ran.append("first")

    @app.on_stop
    def second() -> None:
        raise RuntimeError("second")

    await app.start()
    with pytest.raises(RuntimeError, match="second"):
        await app.stop()
    assert ran == ["first"]


def _takes_one(value: int) -> None: ...


async def _yields() -> Any:
    yield 1


@pytest.mark.parametrize(("function", "fault"), [(_takes_one, "takes none"), (_yields, "yields")])
def test_wrong_start_hooks_are_refused(function: Callable[..., Any], fault: str) -> None:
    with pytest.raises(TypeError, match=fault):
        App().on_start(function)


# --- pydantic ---


class Letter(pydantic.BaseModel):
    """A payload."""

    model_config = pydantic.ConfigDict(extra="forbid")
    to: list[str]
    text: str = pydantic.Field(max_length=5)
    copies: int = 1

    @pydantic.field_validator("copies")
    @classmethod
    def _few(cls, value: int) -> int:
        if value > 9:
            raise ValueError("the secret of this handler")
        return value


def letters() -> App:
    """An app that takes Letters, and answers one."""
    app = App()

    @app.on("letter")
    async def letter(message: Message, data: Letter) -> Any:
        return message.reply(data)

    return app


def test_a_pydantic_model_is_decoded_and_encoded() -> None:
    result = Tester(letters()).run("letter", {"to": ["g"], "text": "hi"}, user="t")
    assert result.commands[0].data == {"to": ["g"], "text": "hi", "copies": 1}


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ({"to": ["a", 1], "text": "x"}, "data.to[1]: expected a string"),
        ({"to": []}, "data.text: required, but missing"),
        ({"to": [], "text": "x", "cc": 1}, "data.cc: not a known field"),
        ({"to": {}, "text": "x"}, "data.to: expected an array"),
        ({"to": [], "text": "x", "copies": "many"}, "data.copies: expected an integer"),
        ({"to": [], "text": "too long"}, "data.text: not allowed (string too long)"),
        ({"to": [], "text": "x", "copies": 10}, "data.copies: not allowed"),
        ([], "data: expected an object"),
    ],
)
def test_misfits_of_a_pydantic_model_are_named(data: Any, note: str) -> None:
    result = Tester(letters()).run("letter", data)
    assert (result.reason, result.note) == ("schema", note)


def test_the_schema_of_a_pydantic_model_is_sent_unless_it_stays_here() -> None:
    app = letters()
    assert hello_options(app, app.routes)["schema"]["letter"]["properties"]["copies"]["type"] == "integer"
    quiet = App()

    @quiet.on("letter", contract=False)
    async def letter(message: Message, data: Letter) -> None: ...

    assert "schema" not in hello_options(quiet, quiet.routes)
