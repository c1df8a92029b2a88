"""Connect by the native protocol, byte by byte: four bytes of length, then JSON."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

from bester.conform.match import shown
from bester.conform.result import Unseen

MOST_BYTES = 64 * 1024 * 1024
"""The longest frame that is read, in bytes; no server sends a longer one."""
CLOSE_S = 2.0


class Connection:
    """A connection to the server under test. Waits raise Unseen when `within_s` is over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        self._reader = reader
        self._writer = writer
        self.name = name
        self.max_frame: int | None = None
        """The longest frame that the server takes, where the answer to the login names a limit."""

    @classmethod
    async def open(cls, host: str, port: int, name: str) -> Connection:
        """Connect over TCP. Raises OSError."""
        reader, writer = await asyncio.open_connection(host, port, limit=MOST_BYTES)
        return cls(reader, writer, name)

    @classmethod
    async def open_unix(cls, path: str, name: str) -> Connection:
        """Connect to a Unix socket. Raises OSError."""
        reader, writer = await asyncio.open_unix_connection(path, limit=MOST_BYTES)
        return cls(reader, writer, name)

    async def write(self, data: bytes, split: int = 0) -> None:
        """Write bytes; with `split`, so many at a time. A server that has closed meanwhile is no failure here."""
        pieces = [data[n : n + split] for n in range(0, len(data), split)] if split else [data]
        try:
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()
                if split:
                    await asyncio.sleep(0)
        except (ConnectionError, OSError):
            return  # frames that the server sent before are still there to be read

    async def read(self, within_s: float) -> bytes:
        """Return the body of the next frame."""
        try:
            async with asyncio.timeout(within_s):
                (length,) = struct.unpack("<I", await self._reader.readexactly(4))
                if length > MOST_BYTES:
                    raise Unseen(f"{self.name}: the server announced a frame of {length} bytes")
                return await self._reader.readexactly(length)
        except TimeoutError:
            raise Unseen(f"{self.name}: nothing came within {within_s:g} s") from None
        except asyncio.IncompleteReadError as error:
            cut = f" after {shown(error.partial)}" if error.partial else ""
            raise Unseen(f"{self.name}: the server ended the connection{cut}") from None
        except (ConnectionError, OSError) as error:
            raise Unseen(f"{self.name}: the connection broke: {error}") from None

    async def read_json(self, within_s: float) -> tuple[Any, bytes]:
        """Return the next frame's JSON value, and its bytes."""
        body = await self.read(within_s)
        try:
            return json.loads(body.decode()), body
        except ValueError as error:
            raise Unseen(f"{self.name}: a frame is no JSON in UTF-8 ({error}): {shown(body)}") from None

    async def ends(self, within_s: float) -> None:
        """Wait for the end of the connection, with nothing before it. A reset is an end, too."""
        try:
            async with asyncio.timeout(within_s):
                more = await self._reader.read(200)
        except TimeoutError:
            raise Unseen(f"{self.name}: the server did not end the connection within {within_s:g} s") from None
        except (ConnectionError, OSError):
            return
        if more:
            raise Unseen(f"{self.name}: something came where the connection should end: {shown(more)}")

    async def quiet(self, for_s: float) -> None:
        """Check that nothing comes for so long, not even the end."""
        try:
            async with asyncio.timeout(for_s):
                more = await self._reader.read(200)
        except TimeoutError:
            return
        except (ConnectionError, OSError) as error:
            raise Unseen(f"{self.name}: the connection broke: {error}") from None
        raise Unseen(
            f"{self.name}: " + (f"something came: {shown(more)}" if more else "the server ended the connection")
        )

    def half_close(self) -> None:
        """Stop sending."""
        if self._writer.can_write_eof():
            self._writer.write_eof()

    async def leave(self) -> None:
        """Stop sending, and wait a while for the server's end, which shows that the server has noticed."""
        try:
            self.half_close()
            async with asyncio.timeout(CLOSE_S):
                while await self._reader.read(65536):
                    pass
        except (OSError, TimeoutError):
            pass
        await self.close()

    async def close(self, reset: bool = False) -> None:
        """Close the connection; `reset` drops unsent bytes."""
        if reset:
            self._writer.transport.abort()
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()


def framed(body: bytes) -> bytes:
    """Return a frame: four bytes of length, and the body."""
    return struct.pack("<I", len(body)) + body
