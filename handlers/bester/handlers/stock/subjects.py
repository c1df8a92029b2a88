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
from bester.handlers import App, HandlerError, Message, send_clients, send_servers
from bester.handlers.stock.addresses import Address, bare
from bester.handlers.stock.notices import ACTIVE, ONCE, PENDING, Notices
from bester.handlers.stock.outbox import Outbox
from bester.handlers.stock.store import Store

MAX_OF_USER, MAX_OF_SUBJECT = 100, 1_000
"""Subscriptions of one user, and of one subject: a notice names at most so many users."""
LOOK_S = 2.0
"""Seconds between two looks at who is connected."""
MAX_OF_SERVER = 100_000
"""Subscriptions of another server's users."""
MAX_SUBJECTS = 100_000
"""Subjects at home here: one for each user who has reported a state."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS states (subject TEXT PRIMARY KEY, type TEXT, state TEXT, version INTEGER);
CREATE TABLE IF NOT EXISTS subscribers (subject TEXT, user TEXT, state INTEGER, away INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (subject, user));
CREATE TABLE IF NOT EXISTS readers (subject TEXT, user TEXT, server TEXT, PRIMARY KEY (subject, user, server));
CREATE TABLE IF NOT EXISTS away (server TEXT PRIMARY KEY, until REAL);
CREATE TABLE IF NOT EXISTS behind (server TEXT, subject TEXT, PRIMARY KEY (server, subject));
CREATE INDEX IF NOT EXISTS subscribers_by ON subscribers (user);
DROP INDEX IF EXISTS subscribers_away;  -- of earlier versions: led from a subject to the subscribers of all
CREATE INDEX IF NOT EXISTS subscribers_back ON subscribers (subject) WHERE away = 1;
CREATE INDEX IF NOT EXISTS readers_at ON readers (server);
CREATE TRIGGER IF NOT EXISTS forget AFTER DELETE ON subscribers
WHEN instr(OLD.subject, '@') AND NOT EXISTS (SELECT 1 FROM subscribers WHERE subject = OLD.subject)
BEGIN DELETE FROM states WHERE subject = OLD.subject; END;  -- of another server, and nobody here asks for it
"""


class Subjects:
    """Subjects of a protocol; `notices` pushes their states. `noun`: their key in notices. `keeps_away`: subscribers
    who are away stay subscribed."""

    def __init__(self, store: Store, noun: str, clock: Callable[[], float], *, keeps_away: bool = True) -> None:
        self.store = store
        self._noun = noun
        self._clock = clock
        self.notices = Notices(store, noun, clock, keeps_away=keeps_away)

    def state(self, db: sqlite3.Connection, subject: str) -> Any:
        """Return the newest state, None where there is none."""
        return self.notices.newest(db, subject)[0]

    def set_state(self, db: sqlite3.Connection, type_: str, subject: str, state: Any) -> None:
        """Set the state of a subject of this server, and push it. Raises HandlerError where there are too many."""
        if self.state(db, subject) is None and _count(db, "states") >= MAX_SUBJECTS:
            raise HandlerError(f"{MAX_SUBJECTS:,} states are the most that this server keeps")
        after = self.notices.newest(db, subject)[1] + 1
        version = max(after, int(self._clock() * 1000))  # rises after a lost file, too
        row = (subject, type_, json.dumps(state), version)
        db.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", row)
        self.notices.push_here(db, type_, subject)
        servers = db.execute(
            "SELECT DISTINCT server FROM readers WHERE subject = ? AND server NOT IN (SELECT server FROM away)",
            (subject,),
        ).fetchall()
        for (server,) in servers:
            self.notices.push_to(db, type_, subject, server)

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
            return [send_servers([who.server], self.notices.notice(db, key) | {"to": who.name})]
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
        return [] if subject.server else [send_clients([who.name], self.notices.notice(db, key))]

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
        newer = version > self.notices.newest(db, subject)[1]
        anybody = db.execute("SELECT 1 FROM subscribers WHERE subject = ?", (subject,)).fetchone() is not None
        if anybody and newer:
            row = (subject, message.type, json.dumps(data.get("state")), version)
            db.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", row)
        if user is not None:
            shown = {self._noun: subject, "state": data.get("state"), "version": version}
            return [send_clients([user], shown | ({"over": True} if data.get("over") is True else {}))]
        if anybody and newer:
            self.notices.push_here(db, message.type, subject)
        elif not anybody:
            gone = {"user": "-", "gone": str(data.get(self._noun))}
            return [send_servers([str(message.peer)], gone)]
        return []

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
