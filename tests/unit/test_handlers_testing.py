"""Apps without sockets: the Tester, and the stock handlers with the Tester."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import FAILED, REFUSED, Command
from bester.handlers import App, HandlerError, Message, Outcome, send_clients
from bester.handlers.stock import chat, echo
from bester.handlers.testing import Emitted, Sent, Tester


def make_app() -> App:
    app = App()

    @app.handler("english")
    async def english(message: Message) -> list[Command]:
        if not await app.ask.is_client("g"):
            raise HandlerError("g is away")
        return [message.send_clients(["g"], {"text": message.data["text"]}), message.reply("sent")]

    @app.handler("threaded")
    def threaded(message: Message) -> Command:
        outcome = app.blocking.emit("english", send_clients(["a"], 1), id="e1")
        return message.reply([app.blocking.list_clients(), outcome.good, message.attempt])

    return app


async def test_message_and_its_commands() -> None:
    tester = Tester(make_app(), clients=["g"])
    result = await tester.send("english", {"text": "hi"}, user="t")
    assert result.status == 0
    assert result.commands == [Sent("sendClients", ["g"], {"text": "hi"}), Sent("sendClients", ["t"], "sent")]
    assert tester.asked == [("isClient", "g")]


async def test_failure_has_a_note_and_the_error() -> None:
    tester = Tester(make_app())
    away = await tester.send("english", {"text": "hi"}, user="t")
    assert (away.status, away.commands, away.note, away.reason) == (2, [], "g is away", "refused")
    tester.clients.append("g")
    wrong = await tester.send("english", {}, user="t")
    assert (wrong.status, wrong.note, wrong.reason) == (1, "KeyError: 'text'", "handler-failed")
    assert isinstance(wrong.error, KeyError)
    with pytest.raises(KeyError):
        await tester.send("absent", {})


def test_question_in_another_loop_than_the_app_s_raises() -> None:
    app = App()

    @app.handler("a")
    def a(message: Message) -> Command:
        for work in (app.ask.is_client("g"), app.ask.list_clients(), app.ask.server_info(), app.emit("a", [])):
            with pytest.raises(RuntimeError, match=r"in a thread use app\.blocking"):
                asyncio.run(work)
        return message.reply(app.blocking.is_client("g"))

    assert Tester(app, clients=["g"]).run("a", user="t").commands == [Sent("sendClients", ["t"], True)]


def test_run_without_a_loop_and_in_a_thread() -> None:
    tester = Tester(make_app(), clients=["g"])
    result = tester.run("threaded", None, user="t", attempt=2)
    assert result.commands == [Sent("sendClients", ["t"], [["g"], True, 2])]
    assert tester.emitted == [Emitted("english", [Sent("sendClients", ["a"], 1)], "e1")]


async def test_several_messages_at_once() -> None:
    tester = Tester(make_app(), clients=["g"])
    results = await asyncio.gather(*(tester.send("english", {"text": str(n)}, user="t") for n in range(5)))
    assert [result.commands[0].data for result in results] == [{"text": str(n)} for n in range(5)]


async def test_answers_and_outcome_are_settable() -> None:
    app = App()
    seen: list[Any] = []

    @app.every(60)
    async def reading() -> None:
        seen.append(await app.emit("english", []))
        seen.append(await app.ask.server_info())

    tester = Tester(app)
    tester.outcome = Outcome(False, {"g": "failed:not-connected"}, "not-connected")
    tester.answers["serverInfo"] = lambda argument: {"asked": argument}
    await tester.tick(reading)
    assert seen == [tester.outcome, {"asked": None}]
    tester.outcome = BesterError("unreachable", "no broker")
    with pytest.raises(BesterError, match="no broker"):
        await tester.tick(reading)


async def test_echo_returns_the_same_bytes() -> None:
    result = await Tester(echo.app).send("echo", raw=b'{"a": 1e400}', user="t")
    assert result.commands == [Sent("sendClients", ["t"], {"a": float("inf")})]
    nobody = await Tester(echo.app).send("echo", 1)
    assert nobody.reason == "refused"
    assert "no user to reply to" in (nobody.note or "")


async def test_chat_delivers_to_the_named_users() -> None:
    tester = Tester(chat.app)
    result = await tester.send("chat", {"to": ["bob", "carol"], "text": "hi"}, user="alice")
    assert result.commands == [Sent("sendClients", ["bob", "carol"], {"from": "alice", "text": "hi"})]
    result = await tester.send("chat", {"to": ["bob"] * 2000, "text": "hi"}, user="alice")
    assert result.commands == [Sent("sendClients", ["bob"], {"from": "alice", "text": "hi"})]
    result = await tester.send("chat", {"to": "bob", "text": "hi"})
    assert result.commands == [Sent("sendClients", ["bob"], {"from": None, "text": "hi"})]


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ("hi", "chat: send {"),
        ({"text": "hi"}, 'chat: "to" is'),
        ({"to": [], "text": "hi"}, 'chat: "to" is'),
        ({"to": ["bob", 1], "text": "hi"}, 'chat: "to" is'),
        ({"to": [f"u{number}" for number in range(1001)], "text": "hi"}, 'chat: "to" names 1000'),
        ({"to": "bob"}, 'chat: "text" is'),
        ({"to": "bob", "text": 7}, 'chat: "text" is'),
    ],
)
async def test_chat_refuses_with_a_note(data: Any, note: str) -> None:
    result = await Tester(chat.app).send("chat", data, user="alice")
    assert (result.reason, result.commands) == ("refused", [])
    assert (result.note or "").startswith(note)


class Letter(msgspec.Struct):
    to: list[str]


def refusing_app() -> App:
    app = App()

    @app.handler("typed")
    async def typed(message: Message, data: Letter) -> Command:
        return message.send_clients(data.to, 1)

    @app.handler("async")
    async def on_loop(message: Message) -> Any:
        return deed(message)

    @app.handler("thread")
    def in_thread(message: Message) -> Any:
        return deed(message)

    @app.handler("emits")
    async def emits(message: Message) -> None:
        await app.emit("emits", send_clients(["bob\ud800"], 1))

    def deed(message: Message) -> Any:
        match message.data:
            case "exit":
                raise SystemExit(3)
            case "stop":
                return next(iter([]))
            case "half":
                return message.send_clients(["bob\ud800"], 1)
            case "large":
                return message.reply("x" * 17_000_000)
            case "no JSON":
                return message.reply(raw=b"{")
            case "nothing":
                return 5
        raise HandlerError("full\x1b[m\nup")

    return app


@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.parametrize(
    ("data", "reason", "note"),
    [
        ("", "refused", "full [m up"),
        ("exit", "handler-failed", "SystemExit: 3"),
        ("stop", "handler-failed", ""),
        ("half", "bad-reply", "a text has half a surrogate pair in it"),
        ("large", "bad-reply", "a body of 17000002 bytes; 16777216 are allowed"),
        ("no JSON", "bad-reply", ""),
        ("nothing", "bad-reply", "the handler returned a int"),
    ],
)
async def test_reason_and_note_of_a_failure(kind: str, data: str, reason: str, note: str) -> None:
    result = await Tester(refusing_app()).send(kind, data, user="t")
    assert (result.reason, result.commands) == (reason, [])
    assert (result.note or "").startswith(note)
    assert result.status == (REFUSED if reason == "refused" else FAILED)


async def test_invalid_data_and_unsendable_emit_raise() -> None:
    tester = Tester(refusing_app())
    result = await tester.send("typed", {"to": ["bob", 5]}, user="t")
    assert (result.status, result.reason, result.note) == (REFUSED, "schema", "data.to[1]: expected a string")
    assert (await tester.send("typed", {"to": []}, user="t")).reason is None
    result = await tester.send("emits", 1)
    assert isinstance(result.error, ValueError)
    assert tester.emitted == []


async def test_cancelled_test_is_no_handler_failure() -> None:
    app = App()
    begun = asyncio.Event()

    @app.handler("waits")
    async def waits(message: Message) -> None:
        begun.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(Tester(app).send("waits"))
    await begun.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
