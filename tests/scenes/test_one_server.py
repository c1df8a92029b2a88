"""Scenes at one server: the messages' recipients, and the reports to the sender."""

from __future__ import annotations

from bester.broker.wire.messages import Command
from bester.handlers import Message, send_clients, send_handler
from tests.scenes.stage import Report, Stage


def echo(message: Message) -> Command:
    return message.reply(message.data)


def chat(message: Message) -> Command:
    return send_clients(message.data["to"], {"from": message.user, "text": message.data["text"]})


async def test_an_echo(stage: Stage) -> None:
    s1 = await stage.server("s1", {"echo": echo})
    t = await stage.user("t", at=s1)
    report = await t.sends("echo", {"text": "olá"})
    got = await t.receives()
    assert report == Report(True, None, report.message, {})
    assert (got.data, got.type, got.origin) == ({"text": "olá"}, "echo", "s1")
    assert got.id == f"{report.message}.0.0"


async def test_chat_to_two(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": chat})
    t, g, h = [await stage.user(name, at=s1) for name in "tgh"]
    report = await t.sends("chat", {"to": ["g", "h"], "text": "hi"})
    assert report.good and not report.recipients
    for user in g, h:
        assert (await user.receives()).data == {"from": "t", "text": "hi"}


async def test_recipient_named_twice_gets_two_copies(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": chat})
    t, g = [await stage.user(name, at=s1) for name in "tg"]
    assert (await t.sends("chat", {"to": ["g", "g"], "text": "hi"})).good
    first, second = await g.receives(), await g.receives()
    assert first.data == second.data == {"from": "t", "text": "hi"}
    assert first.id != second.id


async def test_every_connection_of_a_user_gets_the_message(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": chat})
    t, g, g_too = [await stage.user(name, at=s1) for name in "tgg"]
    assert (await t.sends("chat", {"to": ["g"], "text": "hi"})).good
    assert await g.receives() == await g_too.receives()


async def test_user_who_closes_one_of_two_connections_stays_present(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": chat})
    t, g, g_too = [await stage.user(name, at=s1) for name in "tgg"]
    await g.leaves()
    assert (await t.sends("chat", {"to": ["g"], "text": "hi"})).good
    assert (await g_too.receives()).data["text"] == "hi"


async def test_an_absent_user_is_named_and_the_other_served(stage: Stage) -> None:
    s1 = await stage.server("s1", {"chat": chat})
    t, g = [await stage.user(name, at=s1) for name in "tg"]
    report = await t.sends("chat", {"to": ["nobody", "g"], "text": "hi"})
    assert not report.good and report.reason == "not-connected"
    assert report.recipients == {"nobody": "failed:not-connected", "g": "delivered"}
    assert (await g.receives()).data["text"] == "hi"


async def test_a_pipeline_keeps_its_sender(stage: Stage) -> None:
    first = {"shout": lambda message: send_handler("sign", message.data.upper())}
    last = {"sign": lambda message: message.reply([message.data, message.user, message.path])}
    s1 = await stage.server("s1", first | last)
    t = await stage.user("t", at=s1)
    assert (await t.sends("shout", "hi")).good
    got = await t.receives()
    assert (got.data, got.type) == (["HI", "t", ["s1/shout"]], "sign")


async def test_message_handled_without_commands_is_good(stage: Stage) -> None:
    s1 = await stage.server("s1", {"log": lambda message: None})
    t = await stage.user("t", at=s1)
    assert (await t.sends("log", "hi")).good


async def test_unknown_type_is_reported(stage: Stage) -> None:
    s1 = await stage.server("s1", {"echo": echo})
    t = await stage.user("t", at=s1)
    report = await t.sends("ehco", "hi")
    assert not report.good and report.reason == "unknown-type"
    assert (await t.sends("echo", "hi")).good
    assert (await t.receives()).data == "hi"


async def test_a_user_s_messages_keep_their_order_though_two_handlers_share_them(stage: Stage) -> None:
    s1 = await stage.server("s1")
    for _ in range(2):
        await s1.handler({"echo": echo}, credit=4, ordered=True)
    users = [await stage.user(name, at=s1) for name in "tg"]
    sent = [user.submits("echo", number) for number in range(100) for user in users]
    for user in users:
        assert [(await user.receives()).data for _ in range(100)] == list(range(100))
    assert all([(await report).good for report in sent])


async def test_handler_emits_without_a_request(stage: Stage) -> None:
    s1 = await stage.server("s1")
    kitchen = await s1.handler({"kitchen": lambda message: None})
    g = await stage.user("g", at=s1)
    assert (await kitchen.emits("kitchen", send_clients(["g"], {"celsius": 20}))).good
    got = await g.receives()
    assert (got.data, got.type) == ({"celsius": 20}, "kitchen")
    outcome = await kitchen.emits("kitchen", send_clients(["nobody"], {"celsius": 20}))
    assert not outcome.good and outcome.recipients == {"nobody": "failed:not-connected"}
