"""A client's core, and frames of a server for it."""

from __future__ import annotations

import json
from typing import Any

from bester.bridge.frames import Splitter, frame
from bester.client.core import Core
from bester.client.events import Event

WELCOME = b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"auth_special"}}'


def report(id_: str | None, status: str = "good") -> bytes:
    payload = {"header": {"messageType": "statusReport", "status": status}, "payload": {"id": id_}}
    return frame(json.dumps(payload).encode())


def arrival(id_: str | None, data: Any = None) -> bytes:
    value = {"header": {"messageType": "receivedMessage", "id": id_}, "payload": {"type": "chat", "data": data}}
    return frame(json.dumps(value).encode())


def answer(id_: str, status: str, data: Any) -> bytes:
    value = {"header": {"status": status}, "payload": {"type": "builtin", "id": id_, "data": data}}
    return frame(json.dumps(value).encode())


def a_core(**options: Any) -> Core:
    options.setdefault("random", lambda: 1.0)
    return Core(server="here:1", user="bob", password="secret", dedup_prefix="p" * 99, **options)


def connect(core: Core, now: float = 0.0) -> list[Event]:
    assert core.dial()
    core.on_connected(now)
    assert len(core.take()) == 1
    return core.receive(frame(WELCOME), now)


def payloads(written: list[bytes]) -> list[dict[str, Any]]:
    bodies = Splitter(1 << 20).feed(b"".join(written))
    return [json.loads(body)["payload"] for body in bodies]
