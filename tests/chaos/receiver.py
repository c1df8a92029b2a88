"""Receiving users, on the bare protocol: their journal is the frames' content. One user has the client library.

`python -m tests.chaos.receiver ADDRESS JOURNAL SEED restless|steady USER…` runs users who ask for acknowledgements:
each message is written down before its ack, so that the process may be killed at any time. The restless come and go,
sometimes without a word, and hermits are away for long; the steady stay. On SIGTERM the users leave, and the process
ends.
"""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from bester.client import Client, ClientError
from tests.chaos.journal import Got, Journal, Later, now_s
from tests.chaos.sender import PASSWORD
from tests.chaos.traffic import HERMITS, text_of

LOGIN_S = 10.0
"""A server that has not answered a login after so long is frozen or dead; another connection is tried."""
RETRY_S = 0.2
STAYS_S = (1.0, 8.0)
AWAY_S = (0.0, 4.0)
HERMITS_AWAY_S = (10.0, 60.0)
"""Seconds for which the restless are here and away."""
LEAVE_S = 5.0
"""Seconds that a server may take over a goodbye."""
HEADER = struct.Struct("<I")
READ_LIMIT_BYTES = 1 << 20


class Connection:
    """A native connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, frame: Any) -> None:
        body = json.dumps(frame).encode()
        self.writer.write(HEADER.pack(len(body)) + body)

    async def receive(self) -> Any:
        """Return the next frame. Raises OSError or EOFError at the end."""
        (length,) = HEADER.unpack(await self.reader.readexactly(HEADER.size))
        return json.loads(await self.reader.readexactly(length))


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Connection]:
    """A connection to `HOST:PORT` or `unix:PATH`, dropped without a word in the end."""
    if address.startswith("unix:"):
        streams = await asyncio.open_unix_connection(address.removeprefix("unix:"), limit=READ_LIMIT_BYTES)
    else:
        host, _, port = address.rpartition(":")
        streams = await asyncio.open_connection(host, int(port), limit=READ_LIMIT_BYTES)
    try:
        yield Connection(*streams)
    finally:
        streams[1].transport.abort()


class Receiver:
    """A user at one server. Without `acks`, goodbyes are always said: then no message may be lost on the way either."""

    def __init__(self, user: str, address: str, journal: Journal, random: Random, *, acks: bool = True) -> None:
        self.user = user
        self.address = address
        self.journal = journal
        self.random = random
        self.acks = acks
        self.steady = asyncio.Event()
        self.enough = asyncio.Event()
        self._sessions = 0
        self._away_s = HERMITS_AWAY_S if user in HERMITS else AWAY_S

    async def run(self) -> None:
        """Come and go until the end is asked for."""
        if self.user in HERMITS and not self.steady.is_set():  # each life of this process would have them come
            await self._wait(self.random.uniform(*self._away_s))
        while not self.enough.is_set():
            try:
                async with connected(self.address) as connection:
                    await self._session(connection)
            except (OSError, EOFError, TimeoutError):
                await self._wait(RETRY_S)
                continue
            if not self.steady.is_set():
                await self._wait(self.random.uniform(*self._away_s))

    async def run_with_library(self) -> None:
        """Come and go with the client library, at times without a goodbye: no message is lost by that."""
        while not self.enough.is_set():
            client = Client(self.address, user=self.user, password=PASSWORD, ack=True)
            try:
                await client.start()
            except ClientError:
                await self._wait(RETRY_S)
                continue
            self._sessions += 1
            reading = asyncio.create_task(self._take(client, f"{self.user}#{self._sessions}"))
            await self._stay(reading)
            await client.close(LEAVE_S if self.random.random() < 0.5 else 0)
            await reading
            if not self.steady.is_set():
                await self._wait(self.random.uniform(*self._away_s))

    async def _take(self, client: Client, link: str) -> None:
        try:
            async for message in client:
                self._put_down(message.type, message.data, message.id, message.redelivered, link)
        except ClientError:
            pass

    async def _session(self, connection: Connection) -> None:
        await self._log_in(connection)
        self._sessions += 1
        reading = asyncio.create_task(self._read(connection, f"{self.user}#{self._sessions}"))
        try:
            await self._stay(reading)
            if not reading.done() and (not self.acks or self.enough.is_set() or self.random.random() < 0.5):
                connection.send({"header": None, "payload": _command("bye", "close", None)})
                await asyncio.wait((reading,), timeout=LEAVE_S if self.acks else None)
        finally:
            reading.cancel()
            await asyncio.wait((reading,))
        if not reading.cancelled():
            reading.result()

    async def _log_in(self, connection: Connection) -> None:
        header: dict[str, Any] = {"scope": "client", "authentication": {"username": self.user, "password": PASSWORD}}
        if self.acks:
            header["ack"] = True
        connection.send({"header": header, "payload": {"data": None, "type": "dummy"}})
        answer = await asyncio.wait_for(connection.receive(), LOGIN_S)
        if answer["header"].get("status") != "good":
            raise EOFError(f"refused: {answer}")

    async def _stay(self, reading: asyncio.Task[None]) -> None:
        """Stay for a while, or to the end; no longer than the connection lasts."""
        enough = asyncio.create_task(self.enough.wait())
        steady = asyncio.create_task(self.steady.wait())
        stay_s = self.random.uniform(*STAYS_S)
        await asyncio.wait((reading, enough, steady), timeout=stay_s, return_when=asyncio.FIRST_COMPLETED)
        if self.steady.is_set():
            await asyncio.wait((reading, enough), return_when=asyncio.FIRST_COMPLETED)
        enough.cancel()
        steady.cancel()

    async def _read(self, connection: Connection, link: str) -> None:
        while True:
            frame = await connection.receive()
            header, payload = frame["header"], frame["payload"]
            if header.get("messageType") != "receivedMessage":
                continue
            id_ = header.get("id")
            self._put_down(payload["type"], payload["data"], id_, header.get("redelivered") is True, link)
            if self.acks:
                connection.send({"header": None, "payload": _command("ack", "ack", [id_])})

    def _put_down(self, type_: str, data: Any, id_: str | None, marked: bool, link: str) -> None:
        if type_ == "bester.outcome":  # for a sender who has left
            self.journal.write(Later(data["message"], data["recipient"], data["outcome"], now_s()))
            return
        sound = data["text"] == text_of(data["number"])
        self.journal.write(Got(data["number"], self.user, id_, marked, sound, link, now_s()))

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.enough.wait(), seconds)
        except TimeoutError:
            pass


def _command(id_: str, type_: str, data: Any) -> dict[str, Any]:
    return {"type": "builtin", "id": id_, "data": {"command": {"type": type_, "data": data}}}


async def main() -> None:
    address, journal, seed, manner, *users = sys.argv[1:]
    with Journal(Path(journal)) as open_journal:
        receivers = [Receiver(user, address, open_journal, Random(f"{seed}/{user}")) for user in users]

        def leave() -> None:
            for receiver in receivers:
                receiver.enough.set()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave)
        if manner == "steady":
            for receiver in receivers:
                receiver.steady.set()
        async with asyncio.TaskGroup() as group:
            *bare, last = receivers
            group.create_task(last.run_with_library())
            for receiver in bare:
                group.create_task(receiver.run())


if __name__ == "__main__":
    asyncio.run(main())
