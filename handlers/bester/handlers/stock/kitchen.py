"""kitchen: the state of devices, pushed to those who have subscribed, over several servers (docs/kitchen.md).

A device is a user: it logs in, and reports its state. Users subscribe to `oven` or `oven@s2`, and get the newest state
at once and at each change. A device says who may subscribe to it, and who may ask it to change.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Any

from bester.broker.wire.messages import Command
from bester.handlers import App, HandlerError, Message, send_clients, send_servers
from bester.handlers.stock import subjects
from bester.handlers.stock.addresses import Address, address, bare, table, writer
from bester.handlers.stock.outbox import Outbox
from bester.handlers.stock.store import Store
from bester.handlers.stock.subjects import Subjects

MAX_STATE = 16_384
"""Bytes of a state, as JSON: each subscriber gets all of it at every change."""
MAX_ALLOWED = 100
"""Addresses that a device may list."""
EXAMPLE = '{"subscribe": "oven@s2"}, "unsubscribe", "get", {"set": "oven", "state": {…}}; a device {"state": {…}}'
VERBS = ("subscribe", "unsubscribe", "get", "set")
SCHEMA = "CREATE TABLE IF NOT EXISTS allowed (device TEXT PRIMARY KEY, names TEXT);"


class Kitchen:
    """Devices of this server, and its users' subscriptions anywhere. `clock`: seconds since 1970."""

    def __init__(self, store: Store | None = None, clock: Callable[[], float] = time.time) -> None:
        self.store = store or Store("kitchen", subjects.SCHEMA + SCHEMA)
        self.devices = Subjects(self.store, "device", clock)
        self.outbox = Outbox(self.store, self.devices.notices.on_outcome)

    def handle(self, message: Message) -> list[Command]:
        """Carry out a message of a user, a device, or another server. Raises HandlerError with the reason."""
        commands = self.store.once(message, lambda db: self._handle(db, message))
        self.outbox.wake()
        return commands

    def _handle(self, db: sqlite3.Connection, message: Message) -> list[Command]:
        data = table(message, EXAMPLE)
        if message.peer is not None and "device" in data:
            return self.devices.take_notice(db, message, data)
        who, ask = writer(message, data, "user"), data
        if message.peer is not None:
            if "gone" in data:
                self.devices.notices.take_gone(db, bare(data["gone"], '"gone"'), message.peer)
                return []
            ask = data["ask"] if isinstance(data.get("ask"), dict) else {}
        verb = next((verb for verb in VERBS if verb in ask), None)
        if verb is None and message.peer is None:
            return self._report(db, message, who, data)
        if verb is None:
            raise HandlerError(f"kitchen: send {EXAMPLE}")
        here = message.peer is not None
        device = Address(bare(ask[verb], "a device"), "") if here else address(message, ask[verb], "a device")
        return self._ask(db, message, who, device, verb, _state(ask.get("state")) if verb == "set" else None)

    def _report(self, db: sqlite3.Connection, message: Message, device: Address, data: dict[str, Any]) -> list[Command]:
        """Take in a device's state, and whom it allows."""
        commands: list[Command] = []
        if "allow" not in data and "state" not in data:
            raise HandlerError(f"kitchen: send {EXAMPLE}")
        if "allow" in data:
            allow = data["allow"]
            if allow is not None and not (isinstance(allow, list) and len(allow) <= MAX_ALLOWED):
                raise HandlerError(f'"allow" is a list of at most {MAX_ALLOWED} addresses, or null for everybody')
            db.execute("DELETE FROM allowed WHERE device = ?", (device.name,))
            if allow is not None:
                names = [str(address(message, name, "an address")) for name in allow]
                if db.execute("SELECT COUNT(*) FROM allowed").fetchone()[0] >= subjects.MAX_SUBJECTS:
                    raise HandlerError(f"{subjects.MAX_SUBJECTS:,} devices are the most that this server keeps")
                db.execute("INSERT INTO allowed VALUES (?, ?)", (device.name, json.dumps(names)))
                commands = self.devices.end(db, device.name, lambda who: who in names)
        if "state" in data:
            state = _state(data["state"])
            if state != self.devices.state(db, device.name):
                self.devices.set_state(db, message.type, device.name, state)
        return commands

    def look(self, connected: Iterable[str]) -> None:
        """Push the newest state to subscribers who are back."""
        with self.store.turn() as db:
            self.devices.notices.back(db, connected)
        self.outbox.wake()

    def _ask(
        self, db: sqlite3.Connection, message: Message, who: Address, device: Address, verb: str, state: Any
    ) -> list[Command]:
        if not device.server and verb != "unsubscribe":
            row = db.execute("SELECT names FROM allowed WHERE device = ?", (device.name,)).fetchone()
            names = None if row is None else json.loads(row[0])
            if str(who) not in (names or ()) and (names is not None or verb == "set"):
                raise HandlerError(f"{device.name} does not allow that to {who}")
        commands: list[Command] = []
        if verb in ("subscribe", "get"):
            commands = self.devices.subscribe(db, message, device, who, once=verb == "get")
        elif verb == "unsubscribe":
            self.devices.unsubscribe(db, device, who)
        elif not device.server:
            commands = [send_clients([device.name], {"set": state, "from": str(who)})]
        if device.server:
            ask = {verb: device.name} | ({"state": state} if verb == "set" else {})
            commands.append(send_servers([device.server], {"user": who.name, "ask": ask}))
        return commands


def _state(value: Any) -> Any:
    """Return a state. Raises HandlerError for anything but a JSON object of the size allowed."""
    if isinstance(value, dict) and len(json.dumps(value, ensure_ascii=False).encode()) <= MAX_STATE:
        return value
    raise HandlerError(f'"state" is a JSON object of at most {MAX_STATE:,} bytes')


app = App()
kitchen = Kitchen()
app.handler("kitchen", order="user", inline=True)(kitchen.handle)
subjects.run_beside(app, kitchen.outbox, kitchen.look)
