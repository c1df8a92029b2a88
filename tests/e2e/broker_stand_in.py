"""A ROUTER that speaks BFP/1 to handlers under test, and sends only the requests of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

from bester.broker.fabric_socket import FabricSocket
from bester.broker.wire.batches import batches
from bester.broker.wire.codec import decode
from bester.broker.wire.messages import (
    Error,
    Goodbye,
    Heartbeat,
    Hello,
    Malformed,
    Message,
    Meta,
    Reply,
    Request,
    Welcome,
)

M = TypeVar("M")
PATIENCE_S = 10.0


class StandIn:
    """Answers HELLO with WELCOME (`options` beside the heartbeat) and GOODBYE with GOODBYE; `expect` returns the other
    messages. `heartbeats` counts those that came, `signals` are the options of those that had any.
    """

    def __init__(self, endpoint: str, *, heartbeat_ms: int = 200, refuse: Error | None = None, **options: Any) -> None:
        self.endpoint = endpoint
        self.peer: bytes | None = None
        self.hellos: list[Hello] = []
        self._heartbeat_ms = heartbeat_ms
        self._refuse = refuse
        self.options = {"heartbeat_ms": heartbeat_ms} | options
        self.heartbeats = 0
        self.signals: asyncio.Queue[Meta] = asyncio.Queue()
        self._inbox: asyncio.Queue[Message | Malformed] = asyncio.Queue()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._known: set[bytes] = set()
        self._told: dict[bytes, float] = {}  # links told hello-first: when, as seldom as by a broker
        self.frames: list[list[bytes]] = []

    async def __aenter__(self) -> Self:
        self._socket = FabricSocket(self._context, zmq.ROUTER, self._received)
        self._socket.socket.bind(self.endpoint)
        self._socket.register()
        self._beat()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pulse.cancel()
        self._socket.close()
        await asyncio.to_thread(self._context.term)

    def _beat(self) -> None:
        if self.peer is not None:
            self.send(Heartbeat())
        self._pulse = asyncio.get_running_loop().call_later(self._heartbeat_ms / 1000, self._beat)

    def _received(self, frames: list[bytes]) -> None:
        peer, *rest = frames
        self.frames.append(rest)
        for message in decode(rest):
            self._one(peer, message)

    def _one(self, peer: bytes, message: Message | Malformed) -> None:
        self.peer = peer
        if isinstance(message, Hello):
            self._known.add(peer)
            self.hellos.append(message)
            if self._refuse is None:
                self.send(Welcome(1, "s1", dict(self.options)))
            else:
                self.send(self._refuse)
        elif peer not in self._known:
            now = asyncio.get_running_loop().time()
            if now >= self._told.get(peer, 0.0) + self._heartbeat_ms / 1000:
                self._told[peer] = now
                self.send(Error("hello-first", "who are you?"))
            return
        elif isinstance(message, Goodbye):
            self.send(Goodbye("parting"))
        if isinstance(message, Heartbeat):
            self.heartbeats += 1
            if message.options:
                self.signals.put_nowait(message.options)
        else:
            self._inbox.put_nowait(message)

    def send(self, *messages: Message) -> None:
        """Send as one batch, or as the fewest batches with enough room."""
        assert self.peer is not None
        for frames in batches(messages):
            self._socket.send([self.peer, *frames])
        self._socket.look_again()

    async def expect(self, kind: type[M]) -> M:
        """Return the next message, which must be of this kind."""
        message = await self.next()
        assert isinstance(message, kind), message
        return message

    async def next(self) -> Message:
        """Return the next message, of any kind but HEARTBEAT."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self._inbox.get()
        assert not isinstance(message, Malformed), message
        return message

    async def signal(self) -> Meta:
        """Return the options of the next HEARTBEAT that has any."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.signals.get()

    async def ask(self, token: int, body: bytes, type_: str = "echo", user: str | None = "u") -> Reply:
        """Send one REQUEST and return its REPLY."""
        self.send(request(token, body, type_, user))
        reply = await self.expect(Reply)
        assert reply.token == token
        return reply

    async def replies(self, count: int) -> dict[int, Reply]:
        """Return so many replies by their tokens."""
        found = [await self.expect(Reply) for _ in range(count)]
        return {reply.token: reply for reply in found}


def request(token: int, body: bytes = b"null", type_: str = "echo", user: str | None = "u", **meta: Any) -> Request:
    """Make a REQUEST as a broker would."""
    known: dict[str, Any] = {"id": f"s1/b/{token}", "root": f"s1/b/{token}", "origin": "s1", "scope": "client"}
    path: Sequence[str] = []
    return Request(token, type_, body, user, known | {"attempt": 1, "path": path} | meta)
