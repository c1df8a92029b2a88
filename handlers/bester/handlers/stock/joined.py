"""Users of this server in the rooms of others: their questions go to the home of the room, its answers come back.

A home delivers to a user here only after that user has asked to join; the row of a user says how far that has gone.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from bester.broker.wire.messages import Command
from bester.handlers import HandlerError, send_clients, send_servers
from bester.handlers.stock.addresses import Address, bare, seen_from

MAX_JOINED = 100
"""Rooms of other servers that a user is in."""
ASKED, IN, LEAVING = range(3)
"""States of a user in a room: the home has not answered yet; gets every text; has asked to leave."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS joined (server TEXT, room TEXT, name TEXT, state INTEGER, PRIMARY KEY (server, room, name));
CREATE INDEX IF NOT EXISTS joined_by ON joined (name);
"""
SET_STATE = "UPDATE joined SET state = ? WHERE server = ? AND room = ? AND name = ?"

Key = tuple[str, str, str]


def relay(db: sqlite3.Connection, room: Address, user: str, ask: dict[str, Any]) -> list[Command]:
    """Pass a user's question to the home of a room."""
    key = (room.server, room.name, user)
    state = _state(db, key)
    if ask["do"] == "remove":
        raise HandlerError("a user of the room's own server removes others")
    if ask["do"] == "join" and state != IN:
        joined = db.execute("SELECT COUNT(*) FROM joined WHERE name = ?", (user,)).fetchone()[0]
        if state is None and joined >= MAX_JOINED:
            raise HandlerError(f"{MAX_JOINED} rooms of other servers are the most; leave one first")
        db.execute("INSERT OR REPLACE INTO joined VALUES (?, ?, ?, ?)", (*key, ASKED))
    if ask["do"] == "leave":
        db.execute(SET_STATE, (LEAVING, *key))
    return [send_servers([room.server], {"room": room.name, "user": user, "ask": ask})]


def deliver(db: sqlite3.Connection, room: Address, user: Any, tell: dict[str, Any]) -> list[Command]:
    """Deliver what a home says: to one user who has asked, or, without a user, to all users here who are in."""
    shown = {"room": str(room)} | _named(tell, room.server)
    if user is None:
        rows = db.execute("SELECT name, state FROM joined WHERE server = ? AND room = ?", (room.server, room.name))
        states = dict(rows.fetchall())
        if not states:
            return [send_servers([room.server], {"room": room.name, "user": "-", "ask": {"do": "gone"}})]
        names = [name for name, state in states.items() if state == IN]
        return [send_clients(names, shown)] if names else []
    key = (room.server, room.name, bare(user, '"user"'))
    state = _state(db, key)
    if state is None:  # no user here has asked
        return []
    if "joined" in tell and state == ASKED:
        db.execute(SET_STATE, (IN, *key))
    if "left" in tell and state != ASKED:  # a user who has asked to join again since then stays
        db.execute("DELETE FROM joined WHERE server = ? AND room = ? AND name = ?", key)
    return [send_clients([key[2]], shown)]


def _state(db: sqlite3.Connection, key: Key) -> int | None:
    found = db.execute("SELECT state FROM joined WHERE server = ? AND room = ? AND name = ?", key).fetchone()
    return None if found is None else int(found[0])


def _named(tell: dict[str, Any], peer: str) -> dict[str, Any]:
    """Return a home's words with the names of its own users as they are called here."""
    shown = {
        key: seen_from(peer, value) if key in ("from", "joined", "left", "by") else value
        for key, value in tell.items()
        if key != "room"
    }
    if isinstance(shown.get("who"), list):
        shown["who"] = [seen_from(peer, name) for name in shown["who"]]
    if isinstance(shown.get("history"), list):
        shown["history"] = [_named(each, peer) for each in shown["history"] if isinstance(each, dict)]
    return shown
