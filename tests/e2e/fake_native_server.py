"""A small server of the native protocol with behaviour set by each test, on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any, cast

from bester.bridge.frames import Splitter, frame

DEADLINE_S = 10.0
"""Deadline of events that must happen."""

Json = dict[str, Any]


async def within(awaitable: Any) -> Any:
    """Wait for an event that must happen, and fail at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        return await awaitable


def report_frame(id_: str | None, status: str = "good", **payload: Any) -> Json:
    return {"header": {"messageType": "statusReport", "status": status}, "payload": {"id": id_, **payload}}


def message_frame(data: Any, id_: str | None = None, type_: str = "chat", **header: Any) -> Json:
    known = {"id": id_} if id_ is not None else {}
    return {"header": {"messageType": "receivedMessage", **known, **header}, "payload": {"data": data, "type": type_}}


def outcome_frame(message: str, recipient: str, outcome: str, id_: str | None = None) -> Json:
    """Return an outcome as a server pushes it."""
    return message_frame({"message": message, "recipient": recipient, "outcome": outcome}, id_, "bester.outcome")


class Peer(asyncio.Protocol):
    """A client's connection, as the server sees it."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.bodies: asyncio.Queue[bytes] = asyncio.Queue()
        self.acks: asyncio.Queue[list[str]] = asyncio.Queue()
        self.login: Json | None = None
        self.reads = 0
        self.gone = asyncio.Event()
        self.congested = asyncio.Event()
        self.unreported = self.most_unreported = 0
        self.splitter = Splitter(1 << 24)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.peers.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()

    def pause_writing(self) -> None:
        self.congested.set()

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        for body in self.splitter.feed(data):
            if self.login is None:
                self.login = json.loads(body)
                self.server.on_login(self, self.login["header"]["authentication"])
            else:
                self._later(body)

    def _later(self, body: bytes) -> None:
        payload = json.loads(body)["payload"]
        if payload["type"] == "dummy":
            self.server.on_ping()
            if self.server.answers_pings:
                self.send({"header": {"status": "0"}, "payload": {"data": None, "id": payload["id"], "type": "dummy"}})
            return
        command = payload["data"]["command"] if payload["type"] == "builtin" else {}
        if command.get("type") == "ack":
            self.acks.put_nowait(command["data"])
            return
        if command.get("type") == "outcome":
            self.server.on_outcome(self, payload["id"], command["data"])
            return
        self.bodies.put_nowait(body)
        if command:
            self.transport.close()
            return
        self.unreported += 1
        self.most_unreported = max(self.most_unreported, self.unreported)
        self.server.on_message(self, payload)

    def send(self, *values: Json) -> None:
        self.transport.write(b"".join(frame(json.dumps(value).encode()) for value in values))

    def send_body(self, body: bytes) -> None:
        self.transport.write(frame(body))

    def report(self, id_: str, status: str = "good", **payload: Any) -> None:
        self.unreported -= 1
        self.send(report_frame(id_, status, **payload))

    def answer(self, id_: str, data: Any, status: str = "0") -> None:
        """Answer a command."""
        self.send({"header": {"status": status}, "payload": {"data": data, "id": id_, "type": "builtin"}})

    async def acknowledged(self) -> list[str]:
        """Return the ids in the next acknowledgement."""
        return cast("list[str]", await within(self.acks.get()))

    async def payload(self) -> Json:
        """Return the payload of the next frame behind the login."""
        return cast(Json, json.loads(await within(self.bodies.get()))["payload"])


class FakeServer:
    """Listens on a free port (or `unix`, or IPv6) and obeys its `on_…`; by default every report is good, and no later
    question finds a message.
    """

    def __init__(self, *, unix: str | None = None, host: str = "127.0.0.1") -> None:
        self.unix = unix
        self.host = host
        self.address = ""
        self.port = 0
        self.peers: list[Peer] = []
        self.accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self.answers_pings = True
        self.on_ping: Callable[[], None] = lambda: None
        self.on_login: Callable[[Peer, Json], None] = self.accept
        self.on_outcome: Callable[[Peer, str, str], None] = lambda peer, id_, message: peer.answer(id_, None, "1")
        self.on_message: Callable[[Peer, Json], None] = lambda peer, payload: peer.report(payload["id"])

    async def __aenter__(self) -> FakeServer:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        if self.unix is not None:
            self.listener = await loop.create_unix_server(lambda: Peer(self), self.unix)
            self.address = f"unix:{self.unix}"
            return
        self.listener = await loop.create_server(lambda: Peer(self), self.host, self.port)
        self.port = self.listener.sockets[0].getsockname()[1]
        self.address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def stop(self) -> None:
        """Abort all connections and stop listening; `listen` takes the same address again."""
        self.listener.close()
        for peer in self.peers:
            if not peer.transport.is_closing():
                peer.transport.abort()
            await within(peer.gone.wait())
        self.peers.clear()

    async def peer(self) -> Peer:
        """Return the next connection that logged in."""
        return cast(Peer, await within(self.accepted.get()))

    def accept(self, peer: Peer, authentication: Json) -> None:
        if authentication == {"username": "bob", "password": "secret"}:
            peer.send(report_frame("auth_special"))
            self.accepted.put_nowait(peer)
        else:
            peer.send(report_frame("auth_special", "bad", reason="authentication-failed"))
            peer.transport.close()


def free_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast(int, probe.getsockname()[1])
