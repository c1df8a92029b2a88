"""Subjects with a state, and their subscribers on several servers: what kitchen and presence have in common.

A subject is a user (a device, a person); its server is its home. A change is on disk, then pushed by emits: one to the
subscribers here, one to each other server that has some, which pushes it on to its own. Only the newest state counts:
a subscriber who is away gets one notice, and the newest state at the return.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import Command
from bester.handlers import App, HandlerError, Message, Outcome, send_clients, send_servers
from bester.handlers.stock.addresses import Address, bare
from bester.handlers.stock.outbox import Outbox
from bester.handlers.stock.store import Store

MAX_OF_USER, MAX_OF_SUBJECT = 100, 1_000
"""Subscriptions of one user, and of one subject: a notice names at most so many users."""
LOOK_S = 2.0
"""Seconds between two looks at who is connected."""
AWAY_S = 60.0
"""Seconds between two notices to a server that is away: they queue, and only the newest counts."""
MAX_OF_SERVER = 100_000
"""Subscriptions of another server's users."""
MAX_SUBJECTS = 100_000
"""Subjects at home here: one for each user who has reported a state."""
FOR_GOOD = ("failed:unknown-type", "failed:not-allowed", "failed:unreachable")
"""Outcomes of a server that takes no notices any more: the configuration or the handler is not there."""
ONCE, PENDING, ACTIVE = range(3)
"""States of a subscription: waits for one answer; asked of the subject's home; gets every notice. They only rise."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS states (subject TEXT PRIMARY KEY, type TEXT, state TEXT, version INTEGER);
CREATE TABLE IF NOT EXISTS subscribers (subject TEXT, user TEXT, state INTEGER, away INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (subject, user));
CREATE TABLE IF NOT EXISTS readers (subject TEXT, user TEXT, server TEXT, PRIMARY KEY (subject, user, server));
CREATE TABLE IF NOT EXISTS away (server TEXT PRIMARY KEY, until REAL);
CREATE INDEX IF NOT EXISTS subscribers_by ON subscribers (user);
CREATE INDEX IF NOT EXISTS subscribers_away ON subscribers (away);
CREATE INDEX IF NOT EXISTS readers_at ON readers (server);
CREATE TRIGGER IF NOT EXISTS forget AFTER DELETE ON subscribers
WHEN instr(OLD.subject, '@') AND NOT EXISTS (SELECT 1 FROM subscribers WHERE subject = OLD.subject)
BEGIN DELETE FROM states WHERE subject = OLD.subject; END;  -- of another server, and nobody here asks for it
"""


class Subjects:
    """Subjects of a protocol. `noun`: their key in notices. `keeps_away`: subscribers who are away stay subscribed."""

    def __init__(self, store: Store, noun: str, clock: Callable[[], float], *, keeps_away: bool = True) -> None:
        self.store = store
        self._noun = noun
        self._clock = clock
        self._keeps_away = keeps_away

    def state(self, db: sqlite3.Connection, subject: str) -> Any:
        """Return the newest state, None where there is none."""
        return self._newest(db, subject)[0]

    def set_state(self, db: sqlite3.Connection, type_: str, subject: str, state: Any) -> None:
        """Set the state of a subject of this server, and push it. Raises HandlerError where there are too many."""
        if self.state(db, subject) is None and _count(db, "states") >= MAX_SUBJECTS:
            raise HandlerError(f"{MAX_SUBJECTS:,} states are the most that this server keeps")
        version = max(self._newest(db, subject)[1] + 1, int(self._clock() * 1000))  # rises after a lost file, too
        row = (subject, type_, json.dumps(state), version)
        db.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", row)
        self._push_here(db, type_, subject)
        servers = db.execute(
            "SELECT DISTINCT server FROM readers WHERE subject = ? AND server NOT IN (SELECT server FROM away)",
            (subject,),
        ).fetchall()
        for (server,) in servers:
            self._push_to(db, type_, subject, server)

    def subscribe(
        self, db: sqlite3.Connection, message: Message, subject: Address, who: Address, *, once: bool
    ) -> list[Command]:
        """Subscribe a user, or ask for one answer; the answer is the newest state."""
        key = str(subject)
        if who.server:  # a user of another server, which keeps its own users' part
            if not once:
                if _count(db, "readers WHERE subject = ?", key) >= MAX_OF_SUBJECT:
                    raise HandlerError(f"{key} has {MAX_OF_SUBJECT:,} subscribers at other servers already")
                if _count(db, "readers WHERE server = ?", who.server) >= MAX_OF_SERVER:
                    raise HandlerError(f"users of {who.server} have {MAX_OF_SERVER:,} subscriptions already")
                db.execute("INSERT OR IGNORE INTO readers VALUES (?, ?, ?)", (key, who.name, who.server))
            return [send_servers([who.server], self._notice(db, key) | {"to": who.name})]
        of_user = _count(db, "subscribers WHERE user = ?", who.name)
        of_one = _count(db, "subscribers WHERE subject = ?", key)
        if self._subscription(db, key, who.name) is None and (of_user >= MAX_OF_USER or of_one >= MAX_OF_SUBJECT):
            raise HandlerError(f"{MAX_OF_USER} subscriptions a user, and {MAX_OF_SUBJECT:,} a subject, are the most")
        if subject.server or not once:
            state = ONCE if once else PENDING if subject.server else ACTIVE
            db.execute(
                "INSERT INTO subscribers (subject, user, state) VALUES (?1, ?2, ?3) ON CONFLICT (subject, user) "
                "DO UPDATE SET state = MAX(state, ?3), away = 0",
                (key, who.name, state),
            )
        return [] if subject.server else [send_clients([who.name], self._notice(db, key))]

    def unsubscribe(self, db: sqlite3.Connection, subject: Address, who: Address) -> None:
        """End a subscription, if there is one."""
        if who.server:
            row = (str(subject), who.name, who.server)
            db.execute("DELETE FROM readers WHERE subject = ? AND user = ? AND server = ?", row)
            return
        db.execute("DELETE FROM subscribers WHERE subject = ? AND user = ?", (str(subject), who.name))

    def take_notice(self, db: sqlite3.Connection, message: Message, data: dict[str, Any]) -> list[Command]:
        """Take in a notice of another server about a subject of its own: for all who have subscribed here, or for the
        one user who has asked."""
        subject = str(Address(bare(data.get(self._noun), f'"{self._noun}"'), str(message.peer)))
        version, user = data.get("version"), data.get("to")
        if type(version) is not int or not 0 <= version < 1 << 53:
            raise HandlerError('"version" is a number')
        if user is not None:
            subscription = self._subscription(db, subject, bare(user, '"to"'))
            if subscription is None:  # no user here has asked
                return []
            if data.get("over") is True or subscription == ONCE:
                db.execute("DELETE FROM subscribers WHERE subject = ? AND user = ?", (subject, user))
            else:
                active = "UPDATE subscribers SET state = ?, away = 0 WHERE subject = ? AND user = ?"
                db.execute(active, (ACTIVE, subject, user))
        newer = version > self._newest(db, subject)[1]
        anybody = db.execute("SELECT 1 FROM subscribers WHERE subject = ?", (subject,)).fetchone() is not None
        if anybody and newer:
            row = (subject, message.type, json.dumps(data.get("state")), version)
            db.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", row)
        if user is not None:
            shown = {self._noun: subject, "state": data.get("state"), "version": version}
            return [send_clients([user], shown | ({"over": True} if data.get("over") is True else {}))]
        if anybody and newer:
            self._push_here(db, message.type, subject)
        elif not anybody:
            gone = {"user": "-", "gone": str(data.get(self._noun))}
            return [send_servers([str(message.peer)], gone)]
        return []

    def take_gone(self, db: sqlite3.Connection, subject: str, server: str) -> None:
        """Take in that a server has no subscribers of a subject any more."""
        db.execute("DELETE FROM readers WHERE subject = ? AND server = ?", (subject, server))

    def end(self, db: sqlite3.Connection, subject: str, allowed: Callable[[str], bool]) -> list[Command]:
        """End the subscriptions of those who are not allowed; each is told with `over`."""
        commands = []
        notice = {self._noun: subject, "state": None, "version": 0, "over": True}
        rows = db.execute(
            "SELECT user, '' FROM subscribers WHERE subject = ?1 UNION ALL "
            "SELECT user, server FROM readers WHERE subject = ?1",
            (subject,),
        ).fetchall()
        for who in (Address(*row) for row in rows):
            if not allowed(str(who)):
                self.unsubscribe(db, Address(subject, ""), who)
                told = send_servers([who.server], notice | {"to": who.name}) if who.server else None
                commands.append(told or send_clients([who.name], notice))
        return commands

    def on_outcome(self, db: sqlite3.Connection, about: dict[str, Any], outcome: Outcome) -> None:
        """Learn from an emit's outcome who is away."""
        server, subject = about.get("server"), about["subject"]
        if server is not None:
            how = outcome.recipients.get(server, "delivered" if outcome.good else f"failed:{outcome.reason}")
            if how in FOR_GOOD:
                self.take_gone(db, subject, server)
            elif how not in ("delivered", "sent"):
                db.execute("INSERT OR REPLACE INTO away VALUES (?, ?)", (server, self._clock() + AWAY_S))
            return
        for user, how in outcome.recipients.items():
            if how == "failed:unknown-user" or not self._keeps_away:
                db.execute("DELETE FROM subscribers WHERE subject = ? AND user = ?", (subject, user))
            else:
                db.execute("UPDATE subscribers SET away = 1 WHERE subject = ? AND user = ?", (subject, user))

    def back(self, db: sqlite3.Connection, connected: Iterable[str]) -> None:
        """Push the newest states to the subscribers who were away and are connected, and to servers once a minute."""
        here = set(connected)
        rows = db.execute("SELECT subject, user, type FROM subscribers JOIN states USING (subject) WHERE away = 1")
        for subject, user, type_ in rows.fetchall():
            if user in here:
                db.execute("UPDATE subscribers SET away = 0 WHERE subject = ? AND user = ?", (subject, user))
                self._emit(db, type_, send_clients([user], self._notice(db, subject)), subject)
        due = db.execute("SELECT server FROM away WHERE until <= ?", (self._clock(),)).fetchall()
        for (server,) in due:
            db.execute("DELETE FROM away WHERE server = ?", (server,))
            asked = db.execute(
                "SELECT DISTINCT subject, type FROM readers JOIN states USING (subject) WHERE server = ?", (server,)
            ).fetchall()
            for subject, type_ in asked:
                self._push_to(db, type_, subject, server)

    def _newest(self, db: sqlite3.Connection, subject: str) -> tuple[Any, int]:
        row = db.execute("SELECT state, version FROM states WHERE subject = ?", (subject,)).fetchone()
        return (None, 0) if row is None else (json.loads(row[0]), row[1])

    def _notice(self, db: sqlite3.Connection, subject: str) -> dict[str, Any]:
        state, version = self._newest(db, subject)
        return {self._noun: subject, "state": state, "version": version}

    def _push_here(self, db: sqlite3.Connection, type_: str, subject: str) -> None:
        rows = db.execute(
            "SELECT user FROM subscribers WHERE subject = ? AND state = ? AND away = 0", (subject, ACTIVE)
        )
        users = [user for (user,) in rows.fetchall()]
        if users:
            self._emit(db, type_, send_clients(users, self._notice(db, subject)), subject)

    def _push_to(self, db: sqlite3.Connection, type_: str, subject: str, server: str) -> None:
        self._emit(db, type_, send_servers([server], self._notice(db, subject)), subject, server)

    def _emit(
        self, db: sqlite3.Connection, type_: str, command: Command, subject: str, server: str | None = None
    ) -> None:
        self.store.emit_later(db, type_, command, {"subject": subject, "server": server})

    def _subscription(self, db: sqlite3.Connection, subject: str, user: str) -> int | None:
        row = db.execute("SELECT state FROM subscribers WHERE subject = ? AND user = ?", (subject, user)).fetchone()
        return None if row is None else int(row[0])


def run_beside(app: App, outbox: Outbox, look: Callable[[Iterable[str]], None]) -> None:
    """Push the emits of an outbox as long as the app runs, and call `look` with the connected users every LOOK_S."""

    @app.task
    async def push() -> None:
        """Push notices."""
        await outbox.run(app)

    @app.every(LOOK_S)
    async def look_again() -> None:
        """Learn who is connected."""
        try:
            connected = await app.ask.list_clients()
        except BesterError:  # the broker is away: the next look will tell
            return
        look(connected)


def _count(db: sqlite3.Connection, rows: str, *values: str) -> int:
    """Return the number of rows; `rows` is a table, and perhaps a condition."""
    return int(db.execute(f"SELECT COUNT(*) FROM {rows}", values).fetchone()[0])  # noqa: S608 (text of this file)
