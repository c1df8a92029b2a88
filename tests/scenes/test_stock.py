"""Scenes with the stock sub-protocols: rooms, mail, kitchen and presence of two servers that know each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bester.handlers.stock import joined, kitchen, mail, presence, rooms, subjects
from bester.handlers.stock.kitchen import Kitchen
from bester.handlers.stock.mail import Mail
from bester.handlers.stock.outbox import Outbox
from bester.handlers.stock.presence import Presence
from bester.handlers.stock.rooms import Rooms
from bester.handlers.stock.store import Store
from tests.scenes.stage import Handler, Server, Stage, User

RESIDENTS = ["t", "g"]
NewStore = Callable[[str, str, str], Store]


@pytest.fixture
def new_store(tmp_path: Path) -> Iterator[NewStore]:
    """Make a store of a server: (name of the protocol, its tables, the server)."""
    with ExitStack() as stack:

        def make(name: str, schema: str, server: str) -> Store:
            store = Store(name, schema, tmp_path / server)
            stack.callback(store.close)
            return store

        yield make


async def drain(handler: Handler, store: Store, outbox: Outbox) -> None:
    """Emit all that waits, as the app's task does."""
    while waiting := store.waiting(64):
        for emit in waiting:
            outbox.settle((emit, await handler.emits(emit.type, *emit.commands)))


async def two(stage: Stage, type_: str, *handles: Any) -> tuple[list[Server], list[Handler]]:
    """Start s1 and s2, each with its handler."""
    s1 = await stage.server("s1", peers=["s2"], residents=RESIDENTS)
    s2 = await stage.server("s2", peers=["s1"], residents=RESIDENTS)
    servers = [s1, s2]
    return servers, [
        await server.handler({type_: handle}, ordered=True) for server, handle in zip(servers, handles, strict=True)
    ]


async def got(user: User, /, **expected: Any) -> Any:
    """Receive a message and compare these of its keys."""
    data = (await user.receives()).data
    assert {key: data.get(key) for key in expected} == expected
    return data


async def test_room_of_two_servers(stage: Stage, new_store: NewStore) -> None:
    stores = [new_store("chat", rooms.SCHEMA + joined.SCHEMA, name) for name in ("s1", "s2")]
    servers, _ = await two(stage, "chat", *(Rooms(store, clock=lambda: 9.0).handle for store in stores))
    t, g = await stage.user("t", at=servers[0]), await stage.user("g", at=servers[1])
    report = await t.sends("chat", {"room": "lobby@s2", "do": "join"})
    assert (report.good, report.reason) == (False, "refused") and "no room" in (report.note or "")
    assert (await g.sends("chat", {"room": "lobby", "do": "join"})).good
    await got(g, room="lobby", joined="g", members=1)
    assert (await t.sends("chat", {"room": "lobby@s2", "do": "join"})).good
    await got(t, room="lobby@s2", joined="t@s1", members=2)
    assert (await t.sends("chat", {"room": "lobby@s2", "text": "hi"})).good
    await got(g, room="lobby", n=1, **{"from": "t@s1"}, text="hi", at=9)
    await got(t, room="lobby@s2", n=1, **{"from": "t@s1"}, text="hi", at=9)
    assert (await g.sends("chat", {"room": "lobby", "do": "remove", "who": "t@s1"})).good
    await got(g, left="t@s1", by="g")
    await got(t, room="lobby@s2", left="t@s1", by="g@s2")
    assert (await t.sends("chat", {"room": "lobby@s2", "text": "still here?"})).reason == "refused"


async def test_letter_and_its_receipts(stage: Stage, new_store: NewStore) -> None:
    mails = [Mail(new_store("mail", mail.SCHEMA, name), clock=lambda: 9.0) for name in ("s1", "s2")]
    servers, handlers = await two(stage, "mail", *(each.handle for each in mails))
    t = await stage.user("t", at=servers[0])
    report = await t.sends("mail", {"to": "g@s2", "subject": "hello", "text": "hi"})
    assert report.good and not report.recipients
    await drain(handlers[1], mails[1].store, mails[1].outbox)
    await got(t, receipt=report.message, to="g@s2", outcome="queued")
    g = await stage.user("g", at=servers[1])
    await got(g, mail=report.message, **{"from": "t@s1"}, to="g", subject="hello", text="hi", at=9)
    assert (await g.sends("mail", {"read": report.message})).good
    await got(t, receipt=report.message, to="g@s2", outcome="read")


async def test_kitchen_pushes_to_the_other_server(stage: Stage, new_store: NewStore) -> None:
    schema = subjects.SCHEMA + kitchen.SCHEMA
    kitchens = [Kitchen(new_store("kitchen", schema, name), clock=lambda: 9.0) for name in ("s1", "s2")]
    servers, handlers = await two(stage, "kitchen", *(each.handle for each in kitchens))
    oven, g = await stage.user("t", at=servers[0]), await stage.user("g", at=servers[1])
    assert (await g.sends("kitchen", {"subscribe": "t@s1"})).good
    await got(g, device="t@s1", state=None, version=0)
    assert (await oven.sends("kitchen", {"state": {"on": True}})).good
    for each, handler in zip(kitchens, handlers, strict=True):
        await drain(handler, each.store, each.outbox)
    await got(g, device="t@s1", state={"on": True}, version=9000)


async def test_presence_ends_with_the_connection(stage: Stage, new_store: NewStore) -> None:
    schema = subjects.SCHEMA + presence.SCHEMA
    people = [Presence(new_store("presence", schema, name), clock=lambda: 9.0) for name in ("s1", "s2")]
    servers, handlers = await two(stage, "presence", *(each.handle for each in people))
    t, g = await stage.user("t", at=servers[0]), await stage.user("g", at=servers[1])
    assert (await g.sends("presence", {"here": "lunch"})).good
    assert (await t.sends("presence", {"watch": "g@s2"})).good
    await got(t, user="g@s2", state={"here": True, "status": "lunch"})
    for _ in range(2):
        people[1].look([])
    for each, handler in zip(reversed(people), reversed(handlers), strict=True):
        await drain(handler, each.store, each.outbox)
    await got(t, user="g@s2", state={"here": False})
