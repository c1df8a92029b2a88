"""A user who floods a server: `python -m tests.chaos.flooder ADDRESS USER SEED`.

Many connections that do not wait for reports send served messages, messages of an unknown type, pings, large bodies and
frames that do not end; they read what comes back, some of them slowly. On SIGTERM the flood ends. Nothing of it is in
the ledger: the flood is there for what it does to others.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from random import Random

from tests.chaos.sender import PASSWORD, RETRY_S

CONNECTIONS = 20
FLOOD_S, PAUSE_S = 1.0, 2.0
"""Two cores carry the flood, the faults and everybody else: the flood comes in waves."""
BURST = 200
"""Frames that are written at once."""
LARGE = 200_000


def frame(type_: str, data: object) -> bytes:
    """Return a message as its frame."""
    body = json.dumps({"header": None, "payload": {"type": type_, "data": data, "id": "f"}}).encode()
    return len(body).to_bytes(4, "little") + body


WAVES = {
    "served": frame("flood", "x" * 100) * BURST,
    "unknown": frame("nobody-serves-this", 1) * BURST,
    "pings": frame("dummy", None) * BURST,
    "large": frame("flood", "x" * LARGE) * 3,
    "begun": frame("flood", "x" * LARGE)[:-1],
}


class Flooder:
    """User with many connections."""

    def __init__(self, address: str, user: str, random: Random) -> None:
        self.address = address
        self.user = user
        self.random = random
        self.enough = asyncio.Event()

    async def run(self) -> None:
        """Flood until the end is asked for, with new connections for those that were cut."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._again_and_again()) for _ in range(CONNECTIONS)]
            await self.enough.wait()
            for task in tasks:
                task.cancel()

    async def _again_and_again(self) -> None:
        while True:
            try:
                await self._flood()
            except (OSError, EOFError):
                pass
            await asyncio.sleep(RETRY_S + self.random.random())

    async def _flood(self) -> None:
        if self.address.startswith("unix:"):
            reader, writer = await asyncio.open_unix_connection(self.address.removeprefix("unix:"))
        else:
            host, _, port = self.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
        header = {"scope": "client", "authentication": {"username": self.user, "password": PASSWORD}}
        login = json.dumps({"header": header, "payload": {"data": None, "type": "dummy"}}).encode()
        try:
            writer.write(len(login).to_bytes(4, "little") + login)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(reader))
                group.create_task(self._write(writer))
        except* (OSError, EOFError) as ended:
            raise EOFError from ended
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        lazy = self.random.random() < 0.2
        while await reader.read(1 << 18):
            if lazy:
                await asyncio.sleep(0.2)
        raise EOFError

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wave = WAVES[self.random.choice(tuple(WAVES))]
            end = loop.time() + FLOOD_S
            while loop.time() < end:
                writer.write(wave)
                await writer.drain()
                if not wave.endswith(b"}"):  # a frame that has begun: its end comes with the pause's
                    break
            await asyncio.sleep(PAUSE_S * (0.5 + self.random.random()))
            if not wave.endswith(b"}"):
                writer.write(b"}")


async def main() -> None:
    address, user, seed = sys.argv[1:]
    flooder = Flooder(address, user, Random(f"{seed}/{user}"))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, flooder.enough.set)
    await flooder.run()


if __name__ == "__main__":
    asyncio.run(main())
