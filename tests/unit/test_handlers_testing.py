"""Apps without sockets: the Tester, and the stock handlers through it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import Command
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


async def test_a_message_and_its_commands() -> None:
    tester = Tester(make_app(), clients=["g"])
    result = await tester.send("english", {"text": "hi"}, user="t")
    assert result.status == 0
    assert result.commands == [Sent("sendClients", ["g"], {"text": "hi"}), Sent("sendClients", ["t"], "sent")]
    assert tester.asked == [("isClient", "g")]


async def test_failures_have_a_note_and_the_error() -> None:
    tester = Tester(make_app())
    away = await tester.send("english", {"text": "hi"}, user="t")
    assert (away.status, away.commands, away.note, away.reason) == (2, [], "g is away", "refused")
    tester.clients.append("g")
    wrong = await tester.send("english", {}, user="t")
    assert (wrong.status, wrong.note, wrong.reason) == (1, "KeyError: 'text'", "handler-failed")
    assert isinstance(wrong.error, KeyError)
    with pytest.raises(KeyError):
        await tester.send("absent", {})


def test_without_a_loop_and_in_a_thread() -> None:
    tester = Tester(make_app(), clients=["g"])
    result = tester.run("threaded", None, user="t", attempt=2)
    assert result.commands == [Sent("sendClients", ["t"], [["g"], True, 2])]
    assert tester.emitted == [Emitted("english", [Sent("sendClients", ["a"], 1)], "e1")]


async def test_several_messages_at_once() -> None:
    tester = Tester(make_app(), clients=["g"])
    results = await asyncio.gather(*(tester.send("english", {"text": str(n)}, user="t") for n in range(5)))
    assert [result.commands[0].data for result in results] == [{"text": str(n)} for n in range(5)]


async def test_answers_and_outcomes_can_be_set() -> None:
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


async def test_echo_gives_back_the_bytes_it_was_given() -> None:
    result = await Tester(echo.app).send("echo", raw=b'{"a": 1e400}', user="t")
    assert result.commands == [Sent("sendClients", ["t"], {"a": float("inf")})]
    nobody = await Tester(echo.app).send("echo", 1)
    assert nobody.reason == "refused"
    assert "no user to reply to" in (nobody.note or "")


async def test_chat_reaches_those_it_names() -> None:
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
async def test_chat_says_what_is_wrong(data: Any, note: str) -> None:
    result = await Tester(chat.app).send("chat", data, user="alice")
    assert (result.reason, result.commands) == ("refused", [])
    assert (result.note or "").startswith(note)
