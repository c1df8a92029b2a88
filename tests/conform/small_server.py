"""A small native server with the types echo and chat, correct but for the fault that a test chooses.

The server shares no code with Bester: the cases find its faults on the wire.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

LIMIT_BYTES = 1024 * 1024
AUTH = "auth_special"


def raw_data(body: str) -> str:
    """Return the text of `data` as it stands in a frame."""
    start = body.index('"data":') + len('"data":')
    while body[start] in " \t\r\n":
        start += 1
    _, end = json.JSONDecoder().raw_decode(body, start)
    return body[start:end]


def report(id_: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    status = "good" if reason is None else "bad"
    payload = {"id": id_, **({} if reason is None else {"reason": reason}), **more}
    return {"header": {"messageType": "statusReport", "status": status}, "payload": payload}


class SmallServer:
    """`breaks` is the server's fault: one of BREAKS, or an empty text; `old` makes the server answer as the first
    daemon.
    """

    def __init__(self, breaks: str = "", old: bool = False) -> None:
        self.breaks = breaks
        self.old = old
        self.users: dict[str, list[asyncio.StreamWriter]] = {}
        self.numbers = itertools.count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = ""
        try:
            user = await self._login(reader, writer)
            while user and await self._one(user, reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if user:
                self.users[user].remove(writer)
            writer.close()

    def _write(self, writer: asyncio.StreamWriter, frame: Any) -> None:
        body = frame.encode() if isinstance(frame, str) else json.dumps(frame).encode()
        writer.write(struct.pack("<I", len(body)) + body)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        (length,) = struct.unpack("<I", await reader.readexactly(4))
        if length > LIMIT_BYTES and self.breaks != "waits for frames of any length":
            self._write(writer, report(None, "frame-too-large"))
            return None
        return (await reader.readexactly(length)).decode()

    async def _login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        body = await self._read(reader, writer)
        header = json.loads(body or "{}").get("header") or {}
        if header.get("scope") == "server":
            self._write(writer, report(json.loads(body or "{}")["payload"].get("id"), "not-allowed"))
            return ""
        known = header.get("authentication") or {}
        user, password = known.get("username"), known.get("password")
        if not user or (not password and self.breaks != "takes an empty password"):
            self._write(writer, report(AUTH, "authentication-failed"))
            return ""
        self._write(writer, report(AUTH) if self.old else report(AUTH, max_frame=LIMIT_BYTES))
        self.users.setdefault(user, []).append(writer)
        return str(user)

    async def _one(self, user: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = await self._read(reader, writer)
        if body is None:
            return False
        payload = json.loads(body).get("payload") or {}
        type_, id_ = payload.get("type"), payload.get("id")
        if type_ is None or "data" not in payload:
            self._write(writer, report(id_, "malformed"))
            return self.breaks != "ends the connection at a malformed message"
        if type_ == "dummy":
            self._write(writer, {"header": {"status": "0"}, "payload": {"data": None, "id": id_, "type": "dummy"}})
        elif type_ == "echo":
            self._deliver(writer, id_, [user], type_, raw_data(body))
        elif type_ == "chat":
            text = json.dumps({"from": user, "text": payload["data"]["text"]})
            self._deliver(writer, id_, payload["data"]["to"], type_, text)
        else:
            self._write(writer, report(id_, "unknown-type"))
        await writer.drain()
        return True

    def _deliver(self, writer: asyncio.StreamWriter, id_: Any, users: list[str], type_: str, data: str) -> None:
        number = 0 if self.breaks == "gives every delivery one id" else next(self.numbers)
        data = json.dumps(json.loads(data)) if self.breaks == "writes data anew" else data
        outcomes = {user: "delivered" if self.users.get(user) else "failed:not-connected" for user in users}
        failed = [user for user in users if outcomes[user] != "delivered"]
        told = report(id_, "not-connected" if failed else None, message=f"small/{number}")
        if failed and self.breaks != "names no recipients":
            told["payload"]["recipients"] = outcomes
        if self.breaks == "reports before it delivers":
            self._write(writer, told)
        for user in users:
            places = self.users.get(user, [])
            for place in places[:1] if self.breaks == "sends to one connection of a user" else places:
                head = json.dumps({"messageType": "receivedMessage", "id": f"small/{number}.0", "origin": "small"})
                self._write(place, f'{{"header":{head},"payload":{{"type":"{type_}","data":{data}}}}}')
        if self.breaks != "reports before it delivers":
            self._write(writer, told)


BREAKS: dict[str, int] = {
    "reports before it delivers": 304,
    "writes data anew": 501,
    "ends the connection at a malformed message": 311,
    "takes an empty password": 204,
    "gives every delivery one id": 407,
    "waits for frames of any length": 104,
    "sends to one connection of a user": 220,
    "names no recipients": 403,
}
"""Faults of the server, each with the number of the case that finds it."""


@asynccontextmanager
async def small_server(breaks: str = "", old: bool = False) -> AsyncIterator[int]:
    """Run a server on a free port of 127.0.0.1; yield the port."""
    small = SmallServer(breaks, old)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(small.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    callback: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None] = accept
    server = await asyncio.start_server(callback, "127.0.0.1", 0, limit=4 * LIMIT_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
