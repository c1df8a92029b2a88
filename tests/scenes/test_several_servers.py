"""Scenes with more than one server: the two stories, and servers that are not there or lead in a circle."""

from __future__ import annotations

from bester.broker.wire.messages import HOP_LIMIT, Command
from bester.handlers import Message, send_clients, send_handler, send_servers
from tests.scenes.stage import Function, Stage

ENGLISH = {"bom dia": "good morning"}


def portuguese(message: Message) -> Command:
    return send_handler("english", ENGLISH[message.data])


def to_s2(message: Message) -> Command:
    return send_servers(["s2"], {"from": message.user, "text": message.data})


def to_g(message: Message) -> Command:
    return send_clients(["g"], message.data | {"by way of": message.peer, "path": message.path})


async def test_message_in_portuguese_is_read_in_english_on_another_server(stage: Stage) -> None:
    s1 = await stage.server("s1", {"portuguese": portuguese, "english": to_s2}, peers=["s2"])
    s2 = await stage.server("s2", {"english": to_g}, peers=["s1"])
    t, g = await stage.user("t", at=s1), await stage.user("g", at=s2)
    report = await t.sends("portuguese", "bom dia")
    got = await g.receives()
    assert report.good and not report.recipients
    assert (got.type, got.origin, got.id) == ("english", "s1", f"{report.message}.0.0.0.0.0.0")
    path = ["s1/portuguese", "s1/english"]
    assert got.data == {"from": "t", "text": "good morning", "by way of": "s1", "path": path}


async def test_the_deployment(stage: Stage) -> None:
    def to_m2(message: Message) -> Command:
        return send_handler("M2", message.data)

    def to_s2_as_m1(message: Message) -> Command:
        return send_servers(["s2"], message.data, as_type="M1")

    def to_s3(message: Message) -> Command:
        return send_servers(["s3"], message.data)

    def to_u2(message: Message) -> Command:
        return send_clients(["u2"], {"text": message.data, "path": message.path, "root": message.root})

    s1 = await stage.server("s1", {"M1": to_m2, "M2": to_s2_as_m1}, peers=["s2"])
    await stage.server("s2", {"M1": to_s3}, peers=["s1", "s3"])
    s3 = await stage.server("s3", {"M1": to_u2}, peers=["s2"])
    u1, u2 = await stage.user("u1", at=s1), await stage.user("u2", at=s3)
    report = await u1.sends("M1", "hi")
    assert report.good and not report.recipients
    got = await u2.receives()
    assert got.data == {"text": "hi", "path": ["s1/M1", "s1/M2", "s2/M1"], "root": report.message}
    assert (got.type, got.origin) == ("M1", "s1")


async def test_a_user_who_is_not_there_is_reported_across_servers(stage: Stage) -> None:
    s1 = await stage.server("s1", {"english": to_s2}, peers=["s2"])
    await stage.server("s2", {"english": to_g}, peers=["s1"])
    t = await stage.user("t", at=s1)
    report = await t.sends("english", "hello")
    assert not report.good and report.reason == "not-connected"
    assert report.recipients == {"s2": "failed:not-connected"}


async def test_message_to_two_servers_is_queued_for_the_dead_one_alone(stage: Stage) -> None:
    both = {"english": lambda message: send_servers(["s3", "s2"], {"text": message.data})}
    s1 = await stage.server("s1", both, peers=["s2", "s3"])
    s2 = await stage.server("s2", {"english": to_g}, peers=["s1"])
    s3 = await stage.server("s3", {"english": to_g}, peers=["s1"])
    t, g = await stage.user("t", at=s1), await stage.user("g", at=s2)
    await s3.dies()
    report = await t.sends("english", "hello")
    assert report.good and report.recipients == {"s3": "queued", "s2": "delivered"}
    assert (await g.receives()).data["text"] == "hello"


async def test_unsettled_transfer_waits_for_a_server_that_died(stage: Stage) -> None:
    def to_g_and_the_archive(message: Message) -> list[Command]:
        return [to_g(message), send_handler("archive", message.data)]

    s1 = await stage.server("s1", {"english": to_s2}, peers=["s2"])
    s2 = await stage.server("s2", {"english": to_g_and_the_archive}, peers=["s1"])
    archive = await s2.handler({"archive": lambda message: None})
    t, g = await stage.user("t", at=s1), await stage.user("g", at=s2)
    await archive.freezes()
    sent = t.submits("english", "hello")
    assert (await g.receives()).data["text"] == "hello"  # the message is there, and not yet handled
    await s2.dies()
    report = await sent
    assert report.good and report.recipients == {"s2": "queued"}


async def test_unknown_server_is_unreachable(stage: Stage) -> None:
    s1 = await stage.server("s1", {"english": to_s2})
    t = await stage.user("t", at=s1)
    report = await t.sends("english", "hello")
    assert report.recipients == {"s2": "failed:unreachable"}


async def test_server_that_does_not_know_us_takes_no_message(stage: Stage) -> None:
    s2 = await stage.server("s2", {"english": to_g})
    s1 = await stage.server("s1", {"english": to_s2}, peers=["s2"])
    t, g = await stage.user("t", at=s1), await stage.user("g", at=s2)
    report = await t.sends("english", "hello")
    assert report.recipients == {"s2": "queued"}
    assert await g.unread() == []


async def test_a_ring_of_two_servers_is_cut(stage: Stage) -> None:
    calls: list[list[str]] = []

    def on_to(server: str) -> dict[str, Function]:
        def pass_on(message: Message) -> Command:
            calls.append(message.path)
            return send_servers([server], message.data)

        return {"english": pass_on}

    s1 = await stage.server("s1", on_to("s2"), peers=["s2"])
    await stage.server("s2", on_to("s1"), peers=["s1"])
    t = await stage.user("t", at=s1)
    report = await t.sends("english", "round and round")
    assert not report.good and report.reason == "too-many-hops"
    assert report.recipients == {"s2": "failed:too-many-hops"}
    assert calls == [["s1/english", "s2/english"] * (n // 2) + ["s1/english"] * (n % 2) for n in range(HOP_LIMIT)]
