"""A hostile user: `python -m tests.hostile.user SPEC SEED`. Knows the password of eve and mute, and of nobody else."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from tests.hostile.program import Program, main

BURST = 200
"""Frames that are written at once."""
LARGE = 900_000
BEGUN = 60
"""Connections with a frame that never ends."""
STRANGERS = 200
LIVES_S = 3.0
"""Time of one connection; then a new one does the same."""
READ_BYTES = 1 << 18


def framed(body: bytes) -> bytes:
    """Return a frame."""
    return struct.pack("<I", len(body)) + body


def message(type_: str, data: object, id_: str = "f", **more: Any) -> bytes:
    """Return the frame of a message."""
    return framed(json.dumps({"header": None, "payload": {"type": type_, "data": data, "id": id_, **more}}).encode())


def letter(to: str, size: int = 50, **more: Any) -> bytes:
    """Return the frame of a letter."""
    return message("letter", {"to": to, "text": "x" * size}, **more)


WAVES: dict[str, bytes] = {
    "to oneself": letter("eve") * BURST,
    "large": letter("eve", LARGE) * 3,
    "brackets": message("letter", {"to": "eve", "text": [[]] * 200_000}) * 3,
    "half a pair": message("letter", {"to": "\ud800", "text": [[]] * 200_000}) * 3,
    "to a long name": letter("x" * LARGE) * 3,
    "unknown types": message("nobody-serves-this", 1) * BURST,
    "pings": message("dummy", None) * BURST,
    "to a mailbox": letter("zed", 1000) * BURST,
    "to one who does not read": letter("mute", 100_000) * 10,
    "to another server's nobody": letter("nobody@s2") * BURST,
    "to servers that lie": (letter("x@s3") + letter("x@n3")) * 50,
    "as if from alice": message("letter", {"to": "bob", "from": "alice", "way": "at s1", "n": 1}) * 20,
    "with every option": b"".join(letter("eve", dedup=f"d{n}", ttl_s=1, outcome=True) for n in range(BURST)),
    "questions": message("builtin", {"command": {"type": "outcome", "message": "s1/x/1"}}) * BURST,
    "malformed": framed(b'{"header":{},"payload":{"type":5,"data":1,"id":"f"}}') * BURST,
    "to the hostile handler": message("evil", {"text": "x" * 100}) * BURST,
}
"""Frames that a logged-in connection writes over and over."""
DEEP = framed(b'{"header":null,"payload":{"type":"letter","id":"f","data":' + b"[" * 10_000 + b"]" * 10_000 + b"}}")


class HostileUser(Program):
    """Many connections, each with a manner of its own."""

    deed = "waves"

    def manners(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """Return the manners, with their names."""
        found: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            (name, partial(self.floods, wave)) for name, wave in WAVES.items()
        ]
        found += [("floods", partial(self.floods, WAVES["to oneself"])) for _ in range(4)]
        found += [("unread", self._does_not_read) for _ in range(3)]
        found += [("mute", self._is_mute), ("guesses", self._guesses), ("deep", self._nests), ("begun", self._begins)]
        found += [("strangers", self._says_nothing), ("slow", self._drips)]
        return found

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self.spec["host"], self.spec["port"])
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def _login(self, user: str, password: str) -> bytes:
        header = {"scope": "client", "authentication": {"username": user, "password": password}}
        return framed(json.dumps({"header": header, "payload": {"data": None, "type": "dummy"}}).encode())

    @asynccontextmanager
    async def _logged_in(self, user: str = "eve") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with self._connected() as (reader, writer):
            writer.write(self._login(user, self.spec["password"]))
            (length,) = struct.unpack("<I", await reader.readexactly(4))
            await reader.readexactly(length)
            yield reader, writer

    async def floods(self, wave: bytes) -> None:
        """Write without waiting for reports; read the answers."""
        async with self._logged_in() as (reader, writer), asyncio.TaskGroup() as group:
            reading = group.create_task(self._reads(reader))
            try:
                async with asyncio.timeout(LIVES_S):
                    while not reading.done():
                        writer.write(wave)
                        await writer.drain()
                        self.counts["waves"] += 1
                        await self.rest()
            except (OSError, TimeoutError):
                pass
            finally:
                reading.cancel()

    async def _reads(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(READ_BYTES):
                self.look(data)
        except OSError:
            pass

    async def _does_not_read(self) -> None:
        """Ask for far more than is ever read."""
        async with self._logged_in() as (_, writer), asyncio.timeout(LIVES_S * 3):
            while True:
                writer.write(WAVES["large"])
                await writer.drain()
                await asyncio.sleep(0)  # `drain` lets nobody else run until the kernel's buffer is full

    async def _is_mute(self) -> None:
        async with self._logged_in("mute"):
            await asyncio.sleep(LIVES_S * 5)

    async def _guesses(self) -> None:
        """Guess passwords of the honest, and of users who are not there."""
        for number in range(50):
            async with self._connected() as (reader, writer):
                user = self.random.choice(("alice", "bob", f"nobody{number}"))
                writer.write(self._login(user, f"guess {self.random.random()}"))
                self.look(await reader.read(READ_BYTES))

    async def _nests(self) -> None:
        async with self._logged_in() as (reader, writer):
            writer.write(DEEP * 20)
            await writer.drain()
            self.look(await reader.read(READ_BYTES))

    async def _begins(self) -> None:
        """Hold many frames that have begun, each all but its last byte."""
        frame = letter("eve", LARGE)[:-1]
        async with asyncio.TaskGroup() as group:
            for _ in range(BEGUN):
                group.create_task(self._begins_one(frame))

    async def _begins_one(self, frame: bytes) -> None:
        try:
            async with self._logged_in() as (reader, writer), asyncio.timeout(LIVES_S * 5):
                writer.write(frame)
                await writer.drain()
                while data := await reader.read(READ_BYTES):
                    self.look(data)
        except (OSError, EOFError, TimeoutError):
            pass

    async def _says_nothing(self) -> None:
        """Open many connections and never log in."""
        writers: list[asyncio.StreamWriter] = []
        try:
            while len(writers) < STRANGERS:
                writers += (await asyncio.open_connection(self.spec["host"], self.spec["port"]))[1:]
            await asyncio.sleep(LIVES_S)
        finally:
            for writer in writers:
                writer.transport.abort()

    async def _drips(self) -> None:
        """Write a message byte by byte."""
        async with self._logged_in() as (_, writer):
            for byte in letter("eve"):
                writer.write(bytes((byte,)))
                await asyncio.sleep(0.05)


if __name__ == "__main__":
    main(HostileUser)
