"""The network within a cluster of a chaos run: one cable for each two programs that are linked.

A cable is a Unix socket of the run, from which this process carries the bytes of each connection to the real one. A
frozen cable carries nothing, in one direction or in both: neither end learns anything, and connections that are begun
get no answer. What was written meanwhile arrives once the cable is well again, as it does where TCP sends it again. A
killed cable ends all its connections, and each new one, until it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random

from tests.chaos.processes import Part

CHUNK_BYTES = 64 * 1024
BOTH_WAYS = 0.6
"""Share of the frozen cables that carry nothing in either direction; the others are deaf on one side, as many on each.
"""


class Cable(Part):
    """A cable from the socket `here`, which it makes, to the one `there`. `ends` are the parts whose processes may be
    taken for dead where the cable carries nothing."""

    def __init__(self, name: str, here: Path, there: Path, random: Random, ends: Sequence[Part] = ()) -> None:
        super().__init__(name, here.parent, "")
        self.ends = ends
        self.here = here
        self._there = there
        self._random = random
        self._is_cut = False
        self._clear = (asyncio.Event(), asyncio.Event())  # by direction: from `here`, and from `there`
        self._connections: set[asyncio.Task[None]] = set()
        for direction in self._clear:
            direction.set()

    @asynccontextmanager
    async def carried(self) -> AsyncIterator[None]:
        """Carry what comes to the socket `here`."""
        server = await asyncio.start_unix_server(self._come, self.here)
        try:
            yield
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._carry(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until an end of it has ended."""
        onward: asyncio.StreamWriter | None = None
        try:
            for direction in self._clear:
                await direction.wait()
            if self._is_cut:
                return
            answers, onward = await asyncio.open_unix_connection(self._there)
            ways = (self._pump(reader, onward, self._clear[0]), self._pump(answers, writer, self._clear[1]))
            tasks = [asyncio.create_task(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
        except OSError:
            pass  # nobody is there: the connection ends, as if it had been refused
        except asyncio.CancelledError:
            writer.transport.abort()
            if onward is not None:
                onward.transport.abort()
            raise
        finally:
            writer.close()
            if onward is not None:
                onward.close()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clear: asyncio.Event) -> None:
        """Carry bytes in one direction; return at the end of the stream, or of the connection."""
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await clear.wait()
                writer.write(data)
                await writer.drain()
        await clear.wait()  # the end of a stream is not heard of earlier

    # --- as a part of the run ---

    @property
    def alive(self) -> bool:
        return not self._is_cut

    def worker(self, name: str) -> int | None:
        """Return the process of this name behind the cable."""
        return next((pid for end in self.ends if (pid := end.worker(name)) is not None), None)

    def silenced(self) -> list[int]:
        """Return the processes that the other ends cannot hear now, or have not heard."""
        if self.frozen or self._is_cut:
            return [pid for end in self.ends for pid in (*end.processes(), *end.offspring())]
        return []

    def kill(self) -> None:
        """End all connections, and refuse new ones."""
        self.thaw()
        self._is_cut = True
        for connection in self._connections:
            connection.cancel()

    def back(self) -> None:
        """Take connections again."""
        self._is_cut = False

    def freeze(self) -> None:
        """Carry nothing, in both directions or in one."""
        self.frozen = True
        dead = self._clear if self._random.random() < BOTH_WAYS else self._random.sample(self._clear, 1)
        for direction in dead:
            direction.clear()

    def thaw(self) -> None:
        self.frozen = False
        for direction in self._clear:
            direction.set()


@asynccontextmanager
async def carried(cables: Sequence[Cable]) -> AsyncIterator[None]:
    """Carry what comes to some cables."""
    async with AsyncExitStack() as stack:
        for cable in cables:
            await stack.enter_async_context(cable.carried())
        yield
