"""Those who come and go in a soak run: users, browsers, handlers, accounts. Hardly any name or id comes twice.

A visitor stays for a moment. What a server remembers of it must be gone some time after it.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from itertools import count
from random import Random
from typing import Any

import aiohttp

from bester.broker.accounts import Accounts
from tests.live import LiveServer, RawHandler

PASSWORD = "secret"
USERS = tuple(f"user{number}" for number in range(40))
"""Users with accounts, at both servers."""
TYPES = ("echo", "chat", "onward")
MOST_FRAMES = 12
PAUSE_S = 0.2
ANSWER_S = 0.05
HELLO_S = 5.0
ACCOUNT_S = 0.5
"""Between two accounts that are made and removed: a password costs some tens of ms."""


class Visits:
    """Visits to a server. `counts` counts what was done; no number is in two names."""

    def __init__(self, server: LiveServer, peer: str, websocket: str, random: Random, counts: Counter[str]) -> None:
        self._server = server
        self._peer = peer
        self._websocket = websocket
        self._random = random
        self._counts = counts
        self._names = count(1)

    def manners(self) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
        """Return what visitors do, and how many of them do it at the same time."""
        return [(8, self._user), (2, self._browser), (2, self._handler), (1, self._account)]

    async def _user(self) -> None:
        """Log in, nearly always well, as the check of a wrong password takes long; say something, and go without a
        word, half of the times."""
        random = self._random
        reader, writer = await asyncio.open_connection(self._server.host, self._server.port)
        try:
            right = random.random() < 0.99
            user = random.choice(USERS) if random.random() < 0.98 else f"nobody{next(self._names)}"
            writer.write(_framed(_login(user, PASSWORD if right else f"wrong{next(self._names)}")))
            for _ in range(random.randrange(MOST_FRAMES)):
                writer.write(self._frame())
                if random.random() < 0.5:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1 << 16), ANSWER_S)
            if random.random() < 0.5:
                await asyncio.wait_for(writer.drain(), ANSWER_S)
        finally:
            if random.random() < 0.5:
                writer.transport.abort()
            writer.close()

    def _frame(self) -> bytes:
        """Return a frame: a message, good or bad, or no frame at all."""
        random, number = self._random, next(self._names)
        self._counts["frames"] += 1
        if random.random() < 0.03:
            return random.randbytes(random.randrange(1, 40))
        type_ = random.choice(TYPES) if random.random() < 0.8 else f"type{number}"
        to = random.choice(USERS) if random.random() < 0.8 else f"nobody{number}"
        if random.random() < 0.1:
            to += f"@{self._peer}" if random.random() < 0.5 else f"@s{number}.example"
        data = {"to": to, "text": "x" * random.randrange(1, 400)}
        return _framed({"payload": {"type": type_, "data": data, "id": str(number)}})

    async def _browser(self) -> None:
        """Come by WebSocket, and go without a word, half of the times."""
        async with aiohttp.ClientSession() as session, session.ws_connect(self._websocket) as socket:
            await socket.send_str(json.dumps(_login(self._random.choice(USERS), PASSWORD)))
            for _ in range(self._random.randrange(MOST_FRAMES)):
                await socket.send_str(self._frame()[4:].decode(errors="replace"))
            self._counts["browsers"] += 1
            if self._random.random() < 0.5:
                with suppress(TimeoutError):
                    await asyncio.wait_for(socket.receive(), ANSWER_S)

    async def _handler(self) -> None:
        """Serve types of one's own for a moment, and go with requests unanswered."""
        number = next(self._names)
        handler = RawHandler(self._server.fabric, [f"type{number + ahead}" for ahead in range(100)])
        try:
            async with asyncio.timeout(HELLO_S):
                await handler.hello(name=f"handler{number}")
            self._counts["handlers"] += 1
            await asyncio.sleep(self._random.random() * PAUSE_S)
        finally:
            handler.close()

    async def _account(self) -> None:
        """Make an account, and remove it."""
        name = f"new{next(self._names)}"
        await asyncio.to_thread(self._make_and_remove, name)
        self._counts["accounts"] += 1
        await asyncio.sleep(ACCOUNT_S)

    def _make_and_remove(self, name: str) -> None:
        with closing(Accounts(self._server.directory / "data")) as accounts:
            accounts.add(name, PASSWORD)
            accounts.remove(name)


def _login(user: str, password: str) -> dict[str, Any]:
    header = {"scope": "client", "authentication": {"username": user, "password": password}}
    return {"header": header, "payload": {"data": None, "type": "dummy"}}


def _framed(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return struct.pack("<I", len(body)) + body
