"""Scenes in which a handler refuses: the sender learns the reason, wherever the handler is, and no more."""

from __future__ import annotations

from typing import Any

import msgspec

from bester.broker.wire.messages import Command
from bester.handlers import HandlerError, Message, send_clients, send_handler, send_servers
from tests.scenes.stage import Function, Stage

SECRET = "the key is under the mat"


class Letter(msgspec.Struct):
    to: list[str]
    text: str = ""


def full(message: Message) -> Command:
    raise HandlerError("too many")


def careless(message: Message) -> Command:
    raise ValueError(SECRET)


def wrong(message: Message) -> Any:
    return {"secret": SECRET}


def with_data(message: Message, data: Letter) -> Command:
    return message.reply(data.text)


typed: Any = with_data
"""A stage knows functions of a message alone; the kit takes this one all the same."""


async def test_a_refusal_and_broken_data_come_with_their_reason_and_a_note(stage: Stage) -> None:
    s1 = await stage.server("s1", {"full": full, "typed": typed})
    t = await stage.user("t", at=s1)
    report = await t.sends("full", "hello")
    assert (report.good, report.reason, report.note) == (False, "refused", "too many")
    report = await t.sends("typed", {"to": ["g", 7]})
    assert (report.good, report.reason, report.note) == (False, "schema", "data.to[1]: expected a string")
    report = await t.sends("typed", {})
    assert (report.reason, report.note) == ("schema", "data.to: required, but missing")
    assert (await t.sends("typed", {"to": [], "text": "hi"})).good
    assert (await t.receives()).data == "hi"


async def test_text_of_an_exception_stays_at_its_server(stage: Stage) -> None:
    s1 = await stage.server("s1", {"careless": careless, "wrong": wrong})
    t = await stage.user("t", at=s1)
    report = await t.sends("careless", "hello")
    assert (report.reason, report.note) == ("handler-failed", None)
    report = await t.sends("wrong", "hello")
    assert (report.reason, report.note) == ("bad-reply", None)


async def test_note_is_a_short_line_for_any_text(stage: Stage) -> None:
    def talkative(message: Message) -> Command:
        raise HandlerError("no\x1b[2J such\r\nfile: \udcff " + "x" * 100_000)

    s1 = await stage.server("s1", {"talkative": talkative})
    t = await stage.user("t", at=s1)
    report = await t.sends("talkative", "hello")
    assert report.reason == "refused"
    assert report.note is not None and len(report.note) == 500
    assert report.note.startswith("no [2J such file: \ufffd xxx") and report.note.endswith("x…")


async def test_the_second_handler_refuses_and_the_first_sender_learns_why(stage: Stage) -> None:
    s1 = await stage.server("s1", {"first": lambda message: send_handler("full", message.data), "full": full})
    t = await stage.user("t", at=s1)
    report = await t.sends("first", "hello")
    assert (report.reason, report.note) == ("refused", "too many")
    assert report.recipients == {"full": "failed:refused"}


async def test_the_note_is_that_of_the_first_failure(stage: Stage) -> None:
    def client_first(message: Message) -> list[Command]:
        return [send_clients(["nobody"], 1), send_handler("full", 1)]

    def handler_alone(message: Message) -> list[Command]:
        return [send_clients(["t"], 1), send_handler("full", 1), send_handler("careless", 1)]

    kinds: dict[str, Function] = {"client": client_first, "handler": handler_alone, "full": full, "careless": careless}
    s1 = await stage.server("s1", kinds)
    t = await stage.user("t", at=s1)
    report = await t.sends("client", "hello")
    assert (report.reason, report.note) == ("not-connected", None)
    assert report.recipients == {"nobody": "failed:not-connected", "full": "failed:refused"}
    report = await t.sends("handler", "hello")
    assert (await t.receives()).data == 1
    first = ("refused", "too many"), ("handler-failed", None)  # two processes: either may be first
    assert (report.reason, report.note) in first


async def test_the_note_comes_back_over_two_servers(stage: Stage) -> None:
    def on(target: str) -> Any:
        return lambda message: send_servers([target], message.data)

    s1 = await stage.server("s1", {"full": on("s2"), "typed": on("s2"), "careless": on("s2")}, peers=["s2"])
    await stage.server("s2", {"full": on("s3"), "typed": on("s3"), "careless": on("s3")}, peers=["s1", "s3"])
    await stage.server("s3", {"full": full, "typed": typed, "careless": careless}, peers=["s2"])
    t = await stage.user("t", at=s1)
    report = await t.sends("full", "hello")
    assert (report.reason, report.note, report.recipients) == ("refused", "too many", {"s2": "failed:refused"})
    report = await t.sends("typed", {"to": "g"})
    assert (report.reason, report.note) == ("schema", "data.to: expected an array")
    report = await t.sends("careless", "hello")
    assert (report.reason, report.note) == ("handler-failed", None)


async def test_emitted_message_is_refused_with_a_note_too(stage: Stage) -> None:
    s1 = await stage.server("s1", {"full": full})
    clock = await s1.handler({"clock": lambda message: None})
    outcome = await clock.emits("clock", send_handler("full", "tick"))
    assert (outcome.good, outcome.reason, outcome.note) == (False, "refused", "too many")
