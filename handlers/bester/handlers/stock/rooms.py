"""Rooms of the stock chat: each has a home server, with its members and history; others relay for their users.

The page docs/chat.md has the messages between servers. The side of a user's own server is in `joined`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

from bester.broker.wire.messages import Command
from bester.handlers import HandlerError, Message, send_clients, send_servers
from bester.handlers.stock import joined
from bester.handlers.stock.addresses import Address, address, bare, text, writer
from bester.handlers.stock.store import Store

MAX_TEXT = 4_000
"""Characters of a text."""
MAX_ROOMS, MAX_ROOMS_OF_ONE = 1_000, 50
"""Rooms of a server, and those that one user has made."""
MAX_MEMBERS = 500
"""Members of a room: each text costs as many deliveries."""
MAX_HISTORY, MAX_SHOWN = 200, 50
"""Texts that a room keeps, and those in one answer: 800 KB at most, so that the answer fits every queue."""
LAST = (1 << 53) - 1
EXAMPLE = (
    'send {"room": "lobby", "do": "join"}, "leave", "who", "history" or "remove", or {"room": "lobby", "text": "hi"}'
)
SCHEMA = """
CREATE TABLE IF NOT EXISTS rooms (room TEXT PRIMARY KEY, owner TEXT, last INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS members (room TEXT, server TEXT, name TEXT, PRIMARY KEY (room, server, name));
CREATE TABLE IF NOT EXISTS texts (room TEXT, n INTEGER, writer TEXT, text TEXT, at INTEGER, PRIMARY KEY (room, n));
CREATE INDEX IF NOT EXISTS rooms_of ON rooms (owner);
"""


class Rooms:
    """Rooms at home here, and the users of this server in the rooms of others. `clock`: seconds since 1970."""

    def __init__(self, store: Store | None = None, clock: Callable[[], float] = time.time) -> None:
        self._store = store or Store("chat", SCHEMA + joined.SCHEMA)
        self._clock = clock

    def handle(self, message: Message) -> list[Command]:
        """Carry out a message about a room. Raises HandlerError with the reason for a refusal."""
        return self._store.once(message, lambda db: self._handle(db, message))

    def _handle(self, db: sqlite3.Connection, message: Message) -> list[Command]:
        data = message.data
        if message.peer is None:
            who = writer(message, data, "user")
            room, server = address(message, data["room"], "a room's name")
            ask = _checked(message, data)
            return joined.relay(db, Address(room, server), who.name, ask) if server else self._ask(db, room, who, ask)
        room, ask = bare(data["room"], "a room's name"), data.get("ask")
        if isinstance(data.get("tell"), dict):
            return joined.deliver(db, Address(room, message.peer), data.get("user"), data["tell"])
        who = writer(message, data, "user")
        if ask == {"do": "gone"}:  # no user of that server is in the room, whatever the members here
            db.execute("DELETE FROM members WHERE room = ? AND server = ?", (room, who.server))
            return _without_empty(db, room)
        return self._ask(db, room, who, _checked(message, ask if isinstance(ask, dict) else {}))

    def _ask(self, db: sqlite3.Connection, room: str, who: Address, ask: dict[str, Any]) -> list[Command]:
        do, row = ask["do"], db.execute("SELECT owner, last FROM rooms WHERE room = ?", (room,)).fetchone()
        if do == "leave":
            return _leave(db, room, who, {"left": str(who)})
        if do == "join":
            return self._join(db, room, who, is_new=row is None)
        if row is None or not _is_member(db, room, who):
            raise HandlerError(f"you are not in the room {room!r}; join it first")
        owner, last = row
        if do == "who":
            return [_answer(room, who, {"who": [str(each) for each in _members(db, room)]})]
        if do == "history":
            found = db.execute(
                "SELECT n, writer, text, at FROM texts WHERE room = ? AND n < ? ORDER BY n DESC LIMIT ?",
                (room, ask["before"], ask["count"]),
            ).fetchall()
            texts = [{"n": n, "from": by, "text": said, "at": at} for n, by, said, at in reversed(found)]
            return [_answer(room, who, {"history": texts})]
        if do == "remove":
            other = ask["who"]
            if str(who) != owner:
                raise HandlerError(f"only {owner}, who made the room {room!r}, removes others")
            if not _is_member(db, room, other):
                raise HandlerError(f"{other} is not in the room {room!r}")
            removed = {"left": str(other), "by": str(who)}
            return [_answer(room, who, removed), *_leave(db, room, other, removed)]
        n, at = last + 1, int(self._clock())
        db.execute("UPDATE rooms SET last = ? WHERE room = ?", (n, room))
        db.execute("INSERT INTO texts VALUES (?, ?, ?, ?, ?)", (room, n, str(who), ask["text"], at))
        db.execute("DELETE FROM texts WHERE room = ? AND n <= ?", (room, n - MAX_HISTORY))
        said = {"n": n, "from": str(who), "text": ask["text"], "at": at}
        members = _members(db, room)
        here = [each.name for each in members if not each.server]
        there = list(dict.fromkeys(each.server for each in members if each.server))
        commands = [send_clients(here, {"room": room} | said)] if here else []
        return commands + ([send_servers(there, {"room": room, "tell": said})] if there else [])

    def _join(self, db: sqlite3.Connection, room: str, who: Address, *, is_new: bool) -> list[Command]:
        if is_new:
            if who.server:
                raise HandlerError(f"there is no room {room!r}; users of its own server make rooms")
            of_one = db.execute("SELECT COUNT(*) FROM rooms WHERE owner = ?", (str(who),)).fetchone()[0]
            if of_one >= MAX_ROOMS_OF_ONE or db.execute("SELECT COUNT(*) FROM rooms").fetchone()[0] >= MAX_ROOMS:
                raise HandlerError(f"{MAX_ROOMS_OF_ONE} rooms a user, and {MAX_ROOMS:,} a server, are the most")
            db.execute("INSERT INTO rooms (room, owner) VALUES (?, ?)", (room, str(who)))
        members = len(_members(db, room))
        if not _is_member(db, room, who):
            if members >= MAX_MEMBERS:
                raise HandlerError(f"the room {room!r} is full: {MAX_MEMBERS} members")
            db.execute("INSERT INTO members VALUES (?, ?, ?)", (room, who.server, who.name))
            members += 1
        return [_answer(room, who, {"joined": str(who), "members": members})]


def _leave(db: sqlite3.Connection, room: str, who: Address, answer: dict[str, Any]) -> list[Command]:
    """Remove a member, and the room with the last one."""
    db.execute("DELETE FROM members WHERE room = ? AND server = ? AND name = ?", (room, who.server, who.name))
    return [_answer(room, who, answer), *_without_empty(db, room)]


def _without_empty(db: sqlite3.Connection, room: str) -> list[Command]:
    """Remove the room if its last member has left."""
    if not _members(db, room):
        db.execute("DELETE FROM texts WHERE room = ?", (room,))
        db.execute("DELETE FROM rooms WHERE room = ?", (room,))
    return []


def _checked(message: Message, data: dict[str, Any]) -> dict[str, Any]:
    """Return what is asked of a room, checked, without anything else that the message holds."""
    do = data.get("do", "say")
    if do == "say":
        return {"do": do, "text": text(data.get("text"), '"text"', MAX_TEXT)}
    if do == "history":
        count, before = data.get("count", MAX_SHOWN), data.get("before", LAST)
        if type(count) is int and type(before) is int and 1 <= count <= MAX_SHOWN and 1 <= before <= LAST:
            return {"do": do, "count": count, "before": before}
        raise HandlerError(f'"count" is a number from 1 to {MAX_SHOWN}, "before" the number of a text')
    if do == "remove":
        if message.peer is not None:
            raise HandlerError("a user of the room's own server removes others")
        return {"do": do, "who": address(message, data.get("who"), '"who"')}
    if do in ("join", "leave", "who"):
        return {"do": do}
    raise HandlerError(EXAMPLE)


def _answer(room: str, who: Address, tell: dict[str, Any]) -> Command:
    if who.server:
        return send_servers([who.server], {"room": room, "user": who.name, "tell": tell})
    return send_clients([who.name], {"room": room} | tell)


def _members(db: sqlite3.Connection, room: str) -> list[Address]:
    rows = db.execute("SELECT name, server FROM members WHERE room = ? ORDER BY rowid", (room,))
    return [Address(*row) for row in rows]


def _is_member(db: sqlite3.Connection, room: str, who: Address) -> bool:
    found = db.execute("SELECT 1 FROM members WHERE room = ? AND name = ? AND server = ?", (room, *who))
    return found.fetchone() is not None
