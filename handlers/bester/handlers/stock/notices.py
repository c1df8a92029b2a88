"""Notices of subjects: the newest state, emitted to the subscribers here and to the servers of others.

Only the newest state counts: a subscriber, or a server, that is away gets one notice at its return. The tables are
those of `subjects`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from bester.broker.wire.messages import Command
from bester.handlers import Outcome, send_clients, send_servers
from bester.handlers.stock.store import Store

AWAY_S = 60.0
"""Seconds between two notices to a server that is away: they queue, and only the newest counts."""
FOR_GOOD = ("failed:unknown-type", "failed:not-allowed", "failed:unreachable")
"""Outcomes of a server that takes no notices any more: the configuration or the handler is not there."""
BEHIND = """
SELECT behind.server, behind.subject, type FROM behind
LEFT JOIN readers ON readers.subject = behind.subject AND readers.server = behind.server
LEFT JOIN states ON states.subject = readers.subject
WHERE behind.server NOT IN (SELECT server FROM away)
GROUP BY behind.server, behind.subject ORDER BY behind.rowid LIMIT ?
"""
"""Subjects whose newest state a server has still to get; without a type where nobody there reads it any more, or where
there is no state."""
ONCE, PENDING, ACTIVE = range(3)
"""States of a subscription: waits for one answer; asked of the subject's home; gets every notice. They only rise."""


class Notices:
    """Notices of a protocol. `noun`: key of the subject in a notice. `keeps_away`: subscribers who are away stay
    subscribed."""

    def __init__(self, store: Store, noun: str, clock: Callable[[], float], *, keeps_away: bool) -> None:
        self._store = store
        self._noun = noun
        self._clock = clock
        self._keeps_away = keeps_away

    def take_gone(self, db: sqlite3.Connection, subject: str, server: str) -> None:
        """Take in that a server has no subscribers of a subject any more."""
        db.execute("DELETE FROM readers WHERE subject = ? AND server = ?", (subject, server))

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
        """Push the newest states to the subscribers who were away and are connected, and to servers once a minute; what
        there is no room for is left to the next look."""
        here = set(connected)
        least = self._store.least_room(db)
        rows = db.execute("SELECT subject, user, type FROM subscribers JOIN states USING (subject) WHERE away = 1")
        for subject, user, type_ in rows.fetchall():
            if user not in here:
                continue
            if self._store.room(db) <= least:
                return
            db.execute("UPDATE subscribers SET away = 0 WHERE subject = ? AND user = ?", (subject, user))
            self._emit(db, type_, send_clients([user], self.notice(db, subject)), subject)
        now = self._clock()  # a time farther off than AWAY_S was written before the clock was set back
        due = db.execute("SELECT server FROM away WHERE until <= ? OR until > ?", (now, now + AWAY_S)).fetchall()
        for (server,) in due:
            db.execute("DELETE FROM away WHERE server = ?", (server,))
            db.execute("INSERT OR IGNORE INTO behind SELECT server, subject FROM readers WHERE server = ?", (server,))
        behind = db.execute(BEHIND, (max(self._store.room(db) - least, 0),)).fetchall()  # below 0: without a limit
        for server, subject, type_ in behind:
            if type_ is None:
                db.execute("DELETE FROM behind WHERE server = ? AND subject = ?", (server, subject))
            else:
                self.push_to(db, type_, subject, server)

    def newest(self, db: sqlite3.Connection, subject: str) -> tuple[Any, int]:
        """Return the newest state of a subject and its version; None and 0 where there is none."""
        row = db.execute("SELECT state, version FROM states WHERE subject = ?", (subject,)).fetchone()
        return (None, 0) if row is None else (json.loads(row[0]), row[1])

    def notice(self, db: sqlite3.Connection, subject: str) -> dict[str, Any]:
        """Return a notice of the newest state."""
        state, version = self.newest(db, subject)
        return {self._noun: subject, "state": state, "version": version}

    def push_here(self, db: sqlite3.Connection, type_: str, subject: str) -> None:
        """Emit a notice to the subscribers here who are not away."""
        rows = db.execute(
            "SELECT user FROM subscribers WHERE subject = ? AND state = ? AND away = 0", (subject, ACTIVE)
        )
        users = [user for (user,) in rows.fetchall()]
        if users:
            self._emit(db, type_, send_clients(users, self.notice(db, subject)), subject)

    def push_to(self, db: sqlite3.Connection, type_: str, subject: str, server: str) -> None:
        """Emit a notice to a server, for all of its subscribers."""
        db.execute("DELETE FROM behind WHERE server = ? AND subject = ?", (server, subject))
        self._emit(db, type_, send_servers([server], self.notice(db, subject)), subject, server)

    def _emit(
        self, db: sqlite3.Connection, type_: str, command: Command, subject: str, server: str | None = None
    ) -> None:
        self._store.emit_later(db, type_, command, {"subject": subject, "server": server})
