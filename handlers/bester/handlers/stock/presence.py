"""presence: who is here, for users of several servers (docs/presence.md).

A user is shown as here who has said so, whose time has not run out, and who has a connection to the server. The server
knows the last; the first two are the user's own, so that nobody is shown who does not want to be.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Any

from bester.broker.wire.messages import Command
from bester.handlers import App, HandlerError, Message, send_servers
from bester.handlers.stock import subjects
from bester.handlers.stock.addresses import Address, address, bare, table, text, writer
from bester.handlers.stock.outbox import Outbox
from bester.handlers.stock.store import Store
from bester.handlers.stock.subjects import Subjects

MAX_STATUS = 200
"""Characters of a status."""
TTL_S, MAX_TTL_S = 3_600, 86_400
"""Seconds for which a user is shown unless told otherwise, and the most."""
EXAMPLE = (
    '{"here": "at my desk", "ttl_s": 3600}, {"gone": true}, {"who": "g@s2"}, {"watch": "g@s2"} or {"unwatch": "g@s2"}'
)
VERBS = ("watch", "unwatch", "who")
GONE = {"here": False}
SAID = """
SELECT said.user, said.type, status, until, state IS NOT NULL AND state != ? FROM said
LEFT JOIN states ON subject = said.user
"""
"""Users who have said that they are here, and whether they are shown as here; the value is the state of the others."""
SCHEMA = "CREATE TABLE IF NOT EXISTS said (user TEXT PRIMARY KEY, type TEXT, status TEXT, until REAL);"


class Presence:
    """Users of this server who have said that they are here, and the watches of its users. `clock`: seconds since 1970.

    A watch ends with its user's last connection: a notice that comes days later says nothing.
    """

    def __init__(self, store: Store | None = None, clock: Callable[[], float] = time.time) -> None:
        self.store = store or Store("presence", subjects.SCHEMA + SCHEMA)
        self.people = Subjects(self.store, "user", clock, keeps_away=False)
        self.outbox = Outbox(self.store, self.people.notices.on_outcome)
        self._clock = clock
        self._absent: set[str] = set()

    def handle(self, message: Message) -> list[Command]:
        """Carry out a message of a user, or of another server. Raises HandlerError with the reason for a refusal."""
        commands = self.store.once(message, lambda db: self._handle(db, message))
        self.outbox.wake()
        return commands

    def _handle(self, db: sqlite3.Connection, message: Message) -> list[Command]:
        data = table(message, EXAMPLE)
        if message.peer is not None and "version" in data:
            return self.people.take_notice(db, message, data)
        if message.peer is not None and "gone" in data:
            self.people.notices.take_gone(db, bare(data["gone"], '"gone"'), message.peer)
            return []
        who, ask = writer(message, data, "by"), data.get("ask") if message.peer is not None else data
        ask = ask if isinstance(ask, dict) else {}
        verb = next((verb for verb in VERBS if verb in ask), None)
        if verb is not None:
            name = ask[verb]
            person = address(message, name, "a user") if message.peer is None else Address(bare(name, "a user"), "")
            return self._ask(db, message, who, person, verb)
        if message.peer is not None or ("here" in data) == ("gone" in data):
            raise HandlerError(f"presence: send {EXAMPLE}")
        self._say(db, message, who.name, data)
        return []

    def _ask(self, db: sqlite3.Connection, message: Message, who: Address, person: Address, verb: str) -> list[Command]:
        commands: list[Command] = []
        if verb == "unwatch":
            self.people.unsubscribe(db, person, who)
        else:
            commands = self.people.subscribe(db, message, person, who, once=verb == "who")
        if person.server:
            commands.append(send_servers([person.server], {"by": who.name, "ask": {verb: person.name}}))
        return commands

    def _say(self, db: sqlite3.Connection, message: Message, user: str, data: dict[str, Any]) -> None:
        """Take in what a user says of itself."""
        if "gone" in data:
            db.execute("DELETE FROM said WHERE user = ?", (user,))
            self._show(db, message.type, user, GONE)
            return
        status, ttl_s = text(data["here"], '"here"', MAX_STATUS, least=0), data.get("ttl_s", TTL_S)
        if type(ttl_s) is not int or not 1 <= ttl_s <= MAX_TTL_S:
            raise HandlerError(f'"ttl_s" is a number from 1 to {MAX_TTL_S:,}')
        row = (user, message.type, status, self._clock() + ttl_s)
        db.execute("INSERT OR REPLACE INTO said VALUES (?, ?, ?, ?)", row)
        self._show(db, message.type, user, {"here": True, "status": status})

    def _show(self, db: sqlite3.Connection, type_: str, user: str, state: dict[str, Any]) -> None:
        if state != (self.people.state(db, user) or GONE):
            self.people.set_state(db, type_, user, state)

    def look(self, connected: Iterable[str]) -> None:
        """Take in who is connected, and whose time has run out; changes for which there is no room now are left to the
        next look.

        A user is away who was absent the time before, too: a user who has just come may be missing in `connected`.
        """
        here, now = set(connected), self._clock()
        with self.store.turn() as db:
            most = now + MAX_TTL_S  # more was written before the clock was set back
            db.execute("UPDATE said SET until = ? WHERE until > ?", (most, most))
            said = db.execute(SAID, (json.dumps(GONE),)).fetchall()
            watching = {user for (user,) in db.execute("SELECT DISTINCT user FROM subscribers")}
            absent = ({row[0] for row in said} | watching) - here
            away, self._absent = absent & self._absent, absent
            least = self.store.least_room(db)
            for user, type_, status, until, is_shown in said:
                is_here, is_over = until > now and user not in away, until <= now
                if is_here == bool(is_shown) and not is_over:
                    continue
                if self.store.room(db) <= least:
                    break
                if is_over:
                    db.execute("DELETE FROM said WHERE user = ?", (user,))
                self._show(db, type_, user, {"here": True, "status": status} if is_here else GONE)
            for user in away & watching:
                db.execute("DELETE FROM subscribers WHERE user = ?", (user,))
            self.people.notices.back(db, here)
        self.outbox.wake()


app = App()
presence = Presence()
app.handler("presence", order="user", inline=True)(presence.handle)
subjects.run_beside(app, presence.outbox, presence.look)
