"""The App: registration of handlers, and errors for wrong ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from bester.broker.wire.messages import MAX_CREDIT, Request
from bester.handlers import App, Message, SchemaError
from bester.handlers.app import Runs
from bester.handlers.hello import hello_options


class Letter(msgspec.Struct):
    text: str
    copies: int = 1


@dataclass
class Note:
    text: str


async def takes_message(message: Message) -> None: ...


def plainly(message: Message) -> None: ...


async def read(message: Message, data: Letter) -> int:
    return data.copies


class Caller:
    async def __call__(self, message: Message) -> None: ...

    def method(self, message: Message) -> None: ...


def test_kind_of_function_selects_loop_or_thread() -> None:
    app = App()
    assert app.handler("a")(takes_message) is takes_message
    app.handler("b", "c")(plainly)
    app.handler("d", inline=True)(plainly)
    app.handler("e")(Caller())
    app.handler("f", order="user")(Caller().method)
    assert [app.routes[type_].runs for type_ in "abcdef"] == [
        Runs.LOOP, Runs.THREAD, Runs.THREAD, Runs.INLINE, Runs.LOOP, Runs.THREAD,
    ]  # fmt: skip
    assert [app.routes[type_].by_user for type_ in "ef"] == [False, True]


async def no_parameters() -> None: ...


async def three(message: Message, data: int, more: int) -> None: ...


async def keyword(message: Message, *, needed: int) -> None: ...


async def generator(message: Message) -> AsyncIterator[int]:
    yield 1


async def nameless(message: Message, data: Absent) -> None: ...  # type: ignore[name-defined]  # noqa: F821 (that it is not defined is the test)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_parameters, "no_parameters takes 0 parameters"),
        (three, "three takes 3 parameters"),
        (keyword, r"takes \(message\) or \(message, data\)"),
        (generator, "generator yields"),
        (nameless, "'Absent' is not defined; define the payload's type at the top of the module"),
    ],
)
def test_wrong_function_is_refused(function: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        App().handler("x")(function)


def test_wrong_registration_is_refused() -> None:
    app = App()
    app.handler("a")(takes_message)
    with pytest.raises(ValueError, match="a handler of 'a' already"):
        app.handler("b", "a")
    for unnamed in ("a,b", "", " b", "b\n", "b" * 129):
        with pytest.raises((ValueError, TypeError), match="type"):
            app.handler("c", unnamed)(takes_message)
    assert list(app.routes) == ["a"]
    for reserved in ("dummy", "builtin"):
        with pytest.raises(ValueError, match="belong to Bester itself"):
            app.handler(reserved)
    with pytest.raises(TypeError, match=r'@app\.handler\("english"\)'):
        app.handler(takes_message)  # type: ignore[arg-type]  # as `@app.handler` alone would
    with pytest.raises(TypeError, match="which message types"):
        app.handler()
    with pytest.raises(ValueError, match='order is "user" or None'):
        app.handler("c", order="type")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match="inline=True is for a plain one"):
        app.handler("c", inline=True)(takes_message)
    with pytest.raises(TypeError, match=r"@app\.task is for an async def"):
        app.task(plainly)
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        app.every(0)


@pytest.mark.parametrize("options", [{"credit": 0}, {"credit": MAX_CREDIT + 1}, {"lease_ms": 0}, {"threads": 0}])
def test_options_are_bounded(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not"):
        App(**options)  # type: ignore[arg-type]  # a mix of options


@pytest.mark.parametrize("declared", [Letter, Note])
def test_payload_typed_by_annotation(declared: type) -> None:
    app = App()

    def call(message: Message, data: Any) -> Any:
        return data

    call.__annotations__["data"] = declared
    app.handler("x")(call)
    route = app.routes["x"]
    assert route.call(Message(Request(1, "x", b'{"text":"hi"}', None, {}))) == declared("hi")
    with pytest.raises(SchemaError, match=r"schema: data\.text: expected a string$"):
        route.call(Message(Request(1, "x", b'{"text":7}', None, {})))
    for bad in (b"[]", b"1e400", b"{}"):
        with pytest.raises(SchemaError):
            route.call(Message(Request(1, "x", bad, None, {})))
    schema = hello_options(app, app.serving(["x"]))["schema"]["x"]
    assert declared.__name__ in str(schema)


async def test_annotation_given_as_text_is_resolved() -> None:
    app = App()
    app.handler("x")(read)
    assert await app.routes["x"].call(Message(Request(1, "x", b'{"text":"hi","copies":3}', None, {}))) == 3


def test_untyped_data_is_passed_decoded() -> None:
    app = App()
    app.handler("x")(lambda message, data: data)
    assert app.routes["x"].call(Message(Request(1, "x", b"[1]", None, {}))) == [1]
    assert "schema" not in hello_options(app, app.routes)


def test_types_that_an_app_serves() -> None:
    app = App()
    with pytest.raises(ValueError, match="the app has no handlers"):
        app.serving(None)
    app.handler("a", "b")(takes_message)
    assert list(app.serving(None)) == ["a", "b"]
    assert list(app.serving(["b"])) == ["b"]
    assert app.serving(["english"])["english"] is app.routes["a"]  # a single handler serves any type
    app.handler("c")(plainly)
    assert app.serving(["c", "a"]) == {"c": app.routes["c"], "a": app.routes["a"]}
    with pytest.raises(ValueError, match="no handler of 'english', only of a, b, c"):
        app.serving(["a", "english"])


async def test_emit_outside_a_running_app_raises() -> None:
    app = App()
    with pytest.raises(RuntimeError, match="the app is not running"):
        await app.emit("x", [])
    with pytest.raises(RuntimeError, match="the app is not running"):
        await app.ask.is_client("g")
    with pytest.raises(ValueError, match="is_client takes a user's name, a string, not a int"):
        await app.ask.is_client(cast(Any, 5))
    with pytest.raises(ValueError, match="an emit's id is a string, not a int"):
        await app.emit("x", [], id=cast(Any, 5))
    for id_ in ("", "x" * 513):
        with pytest.raises(ValueError, match=f"1 to 512 characters, not {len(id_)}"):
            await app.emit("x", [], id=id_)
