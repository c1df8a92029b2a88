"""mail: letters to `user@server`, with receipts (docs/mail.md).

The letter is on disk here, or on its way to the other server, before the sender's report is good. The receipt of each
recipient follows: the outcome of the delivery there, and `read` when the recipient says so.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

from bester.broker.wire.messages import MAX_ID, Command
from bester.handlers import App, HandlerError, Message, Outcome, send_clients, send_servers
from bester.handlers.stock.addresses import Address, address, bare, table, text, writer
from bester.handlers.stock.outbox import Outbox
from bester.handlers.stock.store import Store

MAX_TO = 100
"""Recipients of a letter; each leads to a delivery and a receipt."""
MAX_SUBJECT, MAX_TEXT = 200, 100_000
"""Characters."""
MAX_SENT, MAX_GOT = 1_000, 10_000
"""Recipients of a user's letters whose receipts are taken, and letters to a user that may be called read. The oldest
are forgotten first."""
MAX_A_DAY, DAY_S = 500, 86_400
"""Letters of one writer to one user in a day; another server counts as one writer. Emits count for no sender's share of
a mailbox, so the bound is here: what three days can bring is a sixth of a mailbox."""
MAX_OUTCOME = 64
"""Characters of an outcome: `failed:` and the longest reason."""
EXAMPLE = '{"to": "g@s2", "subject": "hello", "text": "how are you?"}, or {"read": ID} of a letter that you have got'
SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (number INTEGER PRIMARY KEY, id TEXT, user TEXT, recipient TEXT,
    UNIQUE (id, recipient));
CREATE TABLE IF NOT EXISTS got (number INTEGER PRIMARY KEY, id TEXT, user TEXT, server TEXT, writer TEXT, at REAL,
    UNIQUE (id, user, server));
CREATE INDEX IF NOT EXISTS sent_by ON sent (user, number);
CREATE INDEX IF NOT EXISTS got_by ON got (user, number);
CREATE INDEX IF NOT EXISTS got_from ON got (user, server, at, writer);
"""


class Mail:
    """Letters of this server's users and to them. `clock`: seconds since 1970."""

    def __init__(self, store: Store | None = None, clock: Callable[[], float] = time.time) -> None:
        self.store = store or Store("mail", SCHEMA)
        self.outbox = Outbox(self.store, self.on_outcome)
        self._clock = clock

    def handle(self, message: Message) -> list[Command]:
        """Carry out a message of a user, or of another server. Raises HandlerError with the reason for a refusal."""
        commands = self.store.once(message, lambda db: self._handle(db, message))
        self.outbox.wake()
        return commands

    def _handle(self, db: sqlite3.Connection, message: Message) -> list[Command]:
        data = table(message, EXAMPLE)
        if "receipt" in data and message.peer is not None:
            return _take_receipt(db, message.peer, data)
        who = writer(message, data, "from")
        if "read" in data and message.peer is None:
            return _read(db, who.name, data["read"])
        letter = {
            "subject": text(data.get("subject", ""), '"subject"', MAX_SUBJECT, least=0),
            "text": text(data.get("text"), '"text"', MAX_TEXT),
        }
        recipients = _recipients(message, data.get("to"))
        if message.peer is None:
            return self._send(db, message, who, recipients, letter)
        id_ = data.get("id")
        if not isinstance(id_, str) or not 0 < len(id_) <= MAX_ID or not id_.isprintable():
            raise HandlerError(f'"id" is 1 to {MAX_ID} printable characters')
        at = data.get("at")
        if type(at) is not int or not 0 <= at < 1 << 53:
            at = int(self._clock())
        self._receive(db, message, who, recipients, {"mail": id_, "from": str(who), "at": at} | letter)
        return []

    def _send(
        self, db: sqlite3.Connection, message: Message, who: Address, recipients: list[Address], letter: dict[str, str]
    ) -> list[Command]:
        """Take in a letter of a user."""
        at = int(self._clock())
        for recipient in recipients:
            row = (message.id, who.name, str(recipient))
            db.execute("INSERT OR IGNORE INTO sent (id, user, recipient) VALUES (?, ?, ?)", row)
        _forget(db, "sent", who.name, MAX_SENT)
        here = [recipient for recipient in recipients if not recipient.server]
        self._receive(db, message, who, here, {"mail": message.id, "from": who.name, "at": at} | letter)
        there: dict[str, list[str]] = {}
        for recipient in recipients:
            if recipient.server:
                there.setdefault(recipient.server, []).append(recipient.name)
        sent = {"id": message.id, "from": who.name, "at": at} | letter
        return [send_servers([server], sent | {"to": names}) for server, names in there.items()]

    def _receive(
        self, db: sqlite3.Connection, message: Message, who: Address, recipients: list[Address], letter: dict[str, Any]
    ) -> None:
        """Have a letter delivered to users of this server, each on its own; the outcome is the receipt."""
        for recipient in recipients:
            now = self._clock()
            row = (letter["mail"], recipient.name, who.server, who.name, now)
            fresh = db.execute("INSERT OR IGNORE INTO got (id, user, server, writer, at) VALUES (?, ?, ?, ?, ?)", row)
            if fresh.rowcount:
                if _sent_by(db, recipient.name, who, now) > MAX_A_DAY:
                    raise HandlerError(f"{recipient.name} takes {MAX_A_DAY} letters a day from {who.server or who}")
                about = {"id": letter["mail"], "to": recipient.name, "type": message.type, "writer": who}
                command = send_clients([recipient.name], letter | {"to": recipient.name})
                self.store.emit_later(db, message.type, command, about)
                _forget(db, "got", recipient.name, MAX_GOT)

    def on_outcome(self, db: sqlite3.Connection, about: dict[str, Any], outcome: Outcome) -> None:
        """Send the receipt of a letter whose delivery has an outcome."""
        if "writer" in about:
            sender = Address(*about["writer"])
            how = outcome.recipients.get(about["to"], "delivered" if outcome.good else f"failed:{outcome.reason}")
            receipt = _receipt(sender, about["id"], about["to"], how)
            self.store.emit_later(db, about["type"], receipt, {})
            if how == "failed:unknown-user":  # no row for a name that somebody has made up
                row = (about["id"], about["to"], sender.server)
                db.execute("DELETE FROM got WHERE id = ? AND user = ? AND server = ?", row)


def _sent_by(db: sqlite3.Connection, user: str, who: Address, now: float) -> int:
    """Return how many letters a writer, or another server, has sent to a user in a day. What is later than now was sent
    before the clock was set back: such letters would count for as long as the clock was wrong."""
    row = (user, who.server, who.server, who.name, now - DAY_S, now)
    same = "SELECT COUNT(*) FROM got WHERE user = ? AND server = ? AND (? != '' OR writer = ?) AND at > ? AND at <= ?"
    return int(db.execute(same, row).fetchone()[0])


def _recipients(message: Message, to: Any) -> list[Address]:
    names = [to] if isinstance(to, str) else to
    if not isinstance(names, list) or not 0 < len(names) <= MAX_TO:
        raise HandlerError(f'"to" is an address, or a list of 1 to {MAX_TO} addresses: "g", "g@s2"')
    if message.peer is None:
        return list(dict.fromkeys(address(message, name, "an address") for name in names))
    return list(dict.fromkeys(Address(bare(name, "a name in a letter of another server"), "") for name in names))


def _read(db: sqlite3.Connection, user: str, id_: Any) -> list[Command]:
    """Send the receipt of a letter that its recipient has read."""
    id_ = text(id_, '"read"', MAX_ID)
    rows = db.execute("SELECT writer, server FROM got WHERE id = ? AND user = ?", (id_, user)).fetchall()
    if not rows:
        raise HandlerError("you have got no letter of this id, or it is long ago")
    return [_receipt(Address(*row), id_, user, "read") for row in rows]


def _receipt(who: Address, id_: str, recipient: str, outcome: str) -> Command:
    receipt = {"receipt": id_, "to": recipient, "outcome": outcome}
    return send_servers([who.server], receipt) if who.server else send_clients([who.name], receipt)


def _take_receipt(db: sqlite3.Connection, peer: str, data: dict[str, Any]) -> list[Command]:
    """Deliver the receipt of a letter that a user of this server has sent to that server."""
    recipient, id_ = Address(bare(data.get("to"), '"to"'), peer), text(data["receipt"], '"receipt"', MAX_ID)
    outcome = text(data.get("outcome"), '"outcome"', MAX_OUTCOME)
    row = db.execute("SELECT user FROM sent WHERE id = ? AND recipient = ?", (id_, str(recipient))).fetchone()
    if row is None:
        raise HandlerError(f"{recipient} has got no letter of this id from here, or it is long ago")
    return [send_clients([row[0]], {"receipt": id_, "to": str(recipient), "outcome": outcome})]


def _forget(db: sqlite3.Connection, name: str, user: str, most: int) -> None:
    """Remove the oldest rows of a user above the bound."""
    db.execute(
        f"DELETE FROM {name} WHERE user = ? AND number <= "  # noqa: S608 (the name is one of two in this file)
        f"(SELECT number FROM {name} WHERE user = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
        (user, user, most),
    )


app = App()
mail = Mail()
app.handler("mail", order="user", inline=True)(mail.handle)


@app.task
async def deliver() -> None:
    """Deliver letters and receipts as long as the app runs."""
    await mail.outbox.run(app)
