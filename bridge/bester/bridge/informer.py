"""The reference daemon's informer: a Unix socket on which handlers ask about clients, framed like the native protocol.

The broker answers; the bridge adds its listeners. Questions of one connection are answered in order.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import Raw

from bester.bridge.broker_link import Answered
from bester.bridge.frames import Splitter, frame
from bester.bridge.limits import Limits
from bester.broker.wire.json_text import DEPTH_LIMIT, is_utf8, too_deep

FAILED = frame(b'{"status":"1"}')
UNKNOWN = frame(b'{"data":null,"status":"1"}')
DONE = frame(b'{"data":null,"status":"0"}')
QUESTIONS_HELD = 256
"""Questions of one connection that wait for the one before them; at the bound the connection is not read from."""

ENVELOPE_DEPTH = 2
"""Nesting of a question around its argument."""
_BAD_JSON = (msgspec.DecodeError, ValueError, RecursionError)
_skip = msgspec.json.Decoder(Raw).decode
_read = msgspec.json.Decoder(float_hook=float).decode
"""Reads JSON. The library's own reader of floats takes 15 µs for each of 1e300, Python's a tenth of one."""

Asker = Callable[[str, Any, Answered], None]


class Question(NamedTuple):
    """Question of a handler; `question` is None where there is no command at all."""

    question: str | None
    argument: Any


def read_question(body: bytes) -> Question | None:
    """Read a question's frame; None where the frame is not JSON. The argument stands in the command, or beside it."""
    try:
        _skip(body)
        if not is_utf8(body) or too_deep(body, DEPTH_LIMIT + ENVELOPE_DEPTH):
            return None
        asked = _read(body)
    except _BAD_JSON:
        return None
    command = asked.get("command") if isinstance(asked, dict) else None
    if not isinstance(command, dict):
        return Question(None, None)
    question = command.get("type")
    argument = command.get("data", asked.get("data"))
    return Question(question if isinstance(question, str) else "", argument)


def answer(question: str, status: int, value: Any, listeners: Mapping[str, str]) -> bytes:
    """Return the frame for the broker's answer; `listeners` are the bridge's, name to URL."""
    if status:
        return UNKNOWN
    if question == "serverInfo" and isinstance(value, dict):
        value = {**value, "listeners": {name: {"address": url} for name, url in listeners.items()}}
    return frame(msgspec.json.encode({"data": value, "status": "0"}))


class Informer:
    """State that the informer's connections share."""

    def __init__(
        self, limits: Limits, ask: Asker, listeners: Callable[[], Mapping[str, str]],
        reached: Counter[str] | None = None,
    ) -> None:  # fmt: skip
        self.reached = Counter() if reached is None else reached
        self.limits = limits
        self.ask = ask
        self.listeners = listeners
        self.connections: set[InformerConnection] = set()

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of a new connection."""
        return InformerConnection(self)

    def close(self) -> None:
        """End all connections."""
        for connection in list(self.connections):
            connection.close()


class InformerConnection(asyncio.Protocol):
    """Connection of one asking handler."""

    def __init__(self, informer: Informer) -> None:
        self._informer = informer
        self._splitter = Splitter(informer.limits.informer_frame, empty=True)  # besterd answers an empty frame too
        self._held: deque[bytes] = deque()
        self._asking = False
        self._ended = False
        self._full = False  # the earlier answers are not read
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        if len(self._informer.connections) >= self._informer.limits.informer_connections:
            self._informer.reached["informer_connections"] += 1
            transport.close()
            return
        self._transport = transport
        self._informer.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._held.extend(self._splitter.feed(data))
        if self._splitter.refused is not None:
            self._ended = True
        self._next()

    def eof_received(self) -> bool:
        self._ended = True
        self._next()
        return self._is_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._held.clear()
        self._informer.connections.discard(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._next()

    @property
    def _is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        """Ask the held questions one after the other, as long as the answers are read."""
        while self._held and not self._asking and not self._full and self._is_open:
            asked = read_question(self._held.popleft())
            if asked is None or asked.question is None:
                self._write(FAILED)
            elif asked.question == "quit":
                self._write(DONE)
                self._held.clear()
                self._ended = True
            elif asked.question in ("listClients", "serverInfo") or (
                asked.question == "isClient" and isinstance(asked.argument, str)
            ):
                self._ask(asked.question, asked.argument)
            else:
                self._write(UNKNOWN)
        if self._ended and not self._held and not self._asking:
            self.close()
        else:
            self._read_on()

    def _ask(self, question: str, argument: Any) -> None:
        self._asking = True
        at_once = True

        def answered(status: int, value: Any) -> None:
            self._asking = False
            self._write(answer(question, status, value, self._informer.listeners()))
            if not at_once:
                self._next()

        self._informer.ask(question, argument, answered)
        at_once = False

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _read_on(self) -> None:
        transport = self._transport
        if transport is None or self._ended or transport.is_closing():
            return
        if self._full or len(self._held) >= QUESTIONS_HELD:
            transport.pause_reading()
        else:
            transport.resume_reading()
