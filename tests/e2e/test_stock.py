"""The stock sub-protocols between two real servers: mail, rooms, kitchen and presence, one server killed meanwhile."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from tests.e2e.stock_stand import Seat, pair


async def _says(seat: Seat, room: str, text: str) -> None:
    await seat.good("chat", {"room": room, "text": text})


async def _text(seat: Seat, text: str) -> Any:
    return await seat.gets(lambda data: data.get("text") == text)


async def test_mail_to_a_server_that_is_down_arrives_at_its_return_and_so_does_the_receipt() -> None:
    async with pair("mail", "s1", "s2") as servers:
        await servers.kill("s2")
        t = await servers.seat("s1", "t")
        report = await t.good("mail", {"to": "g@s2", "subject": "hello", "text": "are you there?"})
        assert report["recipients"] == {"s2": "queued"}
        await servers.start("s2")
        g = await servers.seat("s2", "g")
        letter = await g.gets(lambda data: "mail" in data)
        assert (letter["from"], letter["to"], letter["subject"], letter["text"]) == (
            "t@s1", "g", "hello", "are you there?",
        )  # fmt: skip
        receipt = await t.gets(lambda data: "receipt" in data)
        assert receipt["receipt"] == letter["mail"] == report["message"]
        assert receipt["to"] == "g@s2" and receipt["outcome"] in ("delivered", "queued")  # g came before it, or after
        await g.good("mail", {"read": letter["mail"]})
        assert await t.gets(lambda data: data.get("outcome") == "read") == receipt | {"outcome": "read"}
        await t.good("mail", {"to": ["nobody@s2", "u"], "text": "?"})
        lost = await t.gets(lambda data: data.get("to") == "nobody@s2")
        assert lost["outcome"] == "failed:unknown-user"
        assert (await t.gets(lambda data: data.get("to") == "u"))["outcome"] == "queued"
        assert "no letter of this id" in await g.refused("mail", {"read": "s1/never/1"})


async def test_room_of_two_servers_survives_the_death_of_its_home_and_of_the_other() -> None:
    async with pair("chat", "s1", "s2") as servers:
        t, u = await servers.seat("s1", "t"), await servers.seat("s1", "u")
        g, h = await servers.seat("s2", "g"), await servers.seat("s2", "h")
        assert "no room 'lobby'" in await t.refused("chat", {"room": "lobby@s2", "do": "join"})
        for seat, room in ((g, "lobby"), (t, "lobby@s2"), (u, "lobby@s2"), (h, "lobby@s2")):
            await seat.good("chat", {"room": room, "do": "join"})
            assert (await seat.gets(lambda data: "joined" in data))["room"] == ("lobby" if seat in (g, h) else room)
        await _says(t, "lobby@s2", "one")
        for seat in (t, u, g, h):
            assert (await _text(seat, "one"))["from"] == "t@s1"
        await servers.kill("s2")  # the home
        report = await t.good("chat", {"room": "lobby@s2", "text": "two"})
        assert report["recipients"] == {"s2": "queued"}
        await servers.start("s2")
        g = await servers.seat("s2", "g")
        for seat in (t, u, g):
            assert (await _text(seat, "two"))["n"] == 2
        await servers.kill("s1")
        assert (await g.good("chat", {"room": "lobby", "text": "three"}))["recipients"] == {
            "g": "delivered", "h": "queued", "s1": "queued",
        }  # fmt: skip
        await servers.start("s1")
        t = await servers.seat("s1", "t")
        said = await _text(t, "three")
        assert (said["room"], said["n"], said["from"]) == ("lobby@s2", 3, "g@s2")
        await t.good("chat", {"room": "lobby@s2", "do": "history"})
        history = (await t.gets(lambda data: "history" in data))["history"]
        assert [(each["n"], each["from"], each["text"]) for each in history] == [
            (1, "t@s1", "one"), (2, "t@s1", "two"), (3, "g@s2", "three"),
        ]  # fmt: skip
        await t.good("chat", {"room": "lobby@s2", "do": "who"})
        assert (await t.gets(lambda data: "who" in data))["who"] == ["g@s2", "t@s1", "u@s1", "h@s2"]
        await t.good("chat", {"room": "lobby@s2", "do": "leave"})
        await t.gets(lambda data: "left" in data)
        assert "join it first" in await t.refused("chat", {"room": "lobby@s2", "text": "four"})


async def test_kitchen_pushes_each_change_to_three_subscribers_on_two_servers() -> None:
    async with pair("kitchen", "s1", "s2") as servers:
        oven = await servers.seat("s1", "oven")
        seats = [await servers.seat("s1", "t"), await servers.seat("s1", "u"), await servers.seat("s2", "g")]
        await oven.good("kitchen", {"state": {"on": False, "celsius": 20}})
        for seat, device in zip(seats, ("oven", "oven@s1", "oven@s1"), strict=True):
            await seat.good("kitchen", {"subscribe": device})
            notice = await seat.gets(lambda data: "device" in data)
            assert notice["state"] == {"on": False, "celsius": 20}
            assert notice["device"] == ("oven@s1" if seat is seats[2] else "oven")
        for celsius in (21, 22):
            await oven.good("kitchen", {"state": {"on": True, "celsius": celsius}})
            for seat in seats:
                assert (await seat.gets(lambda data: "device" in data))["state"]["celsius"] == celsius
        assert "does not allow" in await seats[2].refused("kitchen", {"set": "oven@s1", "state": {"on": False}})
        await oven.good("kitchen", {"allow": ["g@s2"]})  # the others' subscriptions end
        for seat in seats[:2]:
            assert (await seat.gets(lambda data: data.get("over")))["device"] == "oven"
        await seats[2].good("kitchen", {"set": "oven@s1", "state": {"on": False}})
        assert await oven.gets(lambda data: "set" in data) == {"set": {"on": False}, "from": "g@s2"}

        await servers.kill("s1")
        await servers.start("s1")
        oven = await servers.seat("s1", "oven")
        await oven.good("kitchen", {"state": {"on": False, "celsius": 90}})
        await seats[2].gets(lambda data: data["state"] == {"on": False, "celsius": 90})


async def test_presence_is_told_on_the_other_server_at_coming_and_going() -> None:
    async with pair("presence", "s1", "s2") as servers:
        t, g = await servers.seat("s1", "t"), await servers.seat("s2", "g")
        await t.good("presence", {"watch": "g@s2"})
        assert (await t.gets(lambda data: data.get("user") == "g@s2"))["state"] is None
        await g.good("presence", {"here": "lunch"})
        assert (await t.gets(lambda data: data["state"]))["state"] == {"here": True, "status": "lunch"}
        await g.close()
        assert (await t.gets(lambda data: data["state"]))["state"] == {"here": False}


DEADLY = """
import os
from bester.handlers import App
from bester.handlers.stock import chat

app = App()


@app.handler("chat", order="user", inline=True)
def handle(message):
    reply = chat.chat(message)
    if message.data.get("text") == "deadly" and message.attempt == 1:
        os.kill(os.getpid(), 9)
    return reply
"""


async def test_text_whose_handler_dies_before_its_reply_counts_once() -> None:
    async with pair("chat", "s1", code=DEADLY) as servers:
        t = await servers.seat("s1", "t")
        await t.good("chat", {"room": "lobby", "do": "join"})
        await t.good("chat", {"room": "lobby", "text": "deadly"})
        await t.good("chat", {"room": "lobby", "text": "next"})
        assert [(await _text(t, text))["n"] for text in ("deadly", "next")] == [1, 2]
        await t.good("chat", {"room": "lobby", "do": "history"})
        assert len((await t.gets(lambda data: "history" in data))["history"]) == 2


async def test_letter_that_waits_in_the_handlers_file_is_delivered_by_the_next_life() -> None:
    async with pair("mail", "s1") as servers:
        t = await servers.seat("s1", "t")
        await t.good("mail", {"to": "u", "text": "before"})
        await t.gets(lambda data: "receipt" in data)
        await servers.kill("s1")
        file = servers.directory / "s1/data/handlers/mail/mail.db"
        with closing(sqlite3.connect(file)) as db, db:  # as if the handler had died before its emit
            db.execute(
                "INSERT INTO emits (type, commands, about) VALUES ('mail', ?, ?)",
                ('[["sendClients", ["t"], "{\\"mail\\":\\"x\\"}", null]]',
                 '{"id": "x", "to": "t", "type": "mail", "writer": ["u", ""]}'),
            )  # fmt: skip
        await servers.start("s1")
        t, u = await servers.seat("s1", "t"), await servers.seat("s1", "u")
        await t.gets(lambda data: data.get("mail") == "x")
        receipt = await u.gets(lambda data: data.get("receipt") == "x")
        assert receipt["to"] == "t" and receipt["outcome"] in ("delivered", "queued")
