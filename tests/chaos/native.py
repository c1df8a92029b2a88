"""A server of the native protocol that is no Bester: `python -m tests.chaos.native SPEC`, SPEC being JSON (see `Spec`).

The server takes messages from the servers of the run, and sends messages to their users. A reporting server writes a
message to its journal, then reports; a mute one writes the message and closes in peace, as besterd does. While
restless, either resets connections, before or after the journal entry, closes them unread, answers `come again`, or
hangs. The process may be killed at any time: an entry in the journal is a receipt. SIGUSR1 makes the server restless.
SIGTERM ends the process.

A receipt has the time at which its connection was accepted. A message that is sent again comes on a later connection,
and its entry may overtake the one of the first copy, over which the server works longer.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from tests.chaos.journal import GivenUp, Got, Journal, Later, Place, Sent, Told, now_s
from tests.chaos.traffic import NUMBERS_A_LIFE, text_of

HEADER = struct.Struct("<I")
READ_LIMIT_BYTES = 1 << 20
NEWS = "bester.outcome"
MANNERS = {"well": 75, "slam": 4, "reset": 6, "reset after": 6, "mum": 4, "refuse": 4, "hang": 1}
"""Manners of a restless server with a message, and their weights. `mum`: enter the message and close without a word."""
REFUSALS = ("no-handler", "overloaded", "unreachable")
IN_HAND_S = 0.2
"""Longest time in seconds that a server works over a message: often the process is killed meanwhile."""
BACKLOG = 128
SAYS_S = 0.7
"""Between two messages of its own, on average."""
REPORT_S = 20.0
"""Seconds that a server waits for the report on a message: as long as a handler may take, and then some."""
ASKS_AGAIN_S = 0.5
"""Seconds before a message is sent again after `come again`: the name was not known, or no handler was there."""
TRIES = 20


class Spec(msgspec.Struct, frozen=True):
    """The command line. `servers`: the native addresses of the run's servers; `users`: the receiving users of each.
    `life` numbers the messages, `journal` is the server's file."""

    name: str
    host: str
    port: int
    reports: bool
    restless: bool
    life: int
    seed: str
    journal: str
    servers: dict[str, str]
    users: dict[str, list[str]]


class Native:
    """The server itself."""

    def __init__(self, spec: Spec, journal: Journal) -> None:
        self.spec = spec
        self.journal = journal
        self.random = Random(spec.seed)
        self.restless = spec.restless
        self.number = spec.life * NUMBERS_A_LIFE
        self.enough = asyncio.Event()
        self._connections = 0
        self._talks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve and send until the end is asked for."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.enough.set)
        loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(self, "restless", True))
        with socket.create_server((self.spec.host, self.spec.port), backlog=BACKLOG) as listener:
            listener.setblocking(False)
            print("serves", flush=True)
            tasks = [asyncio.create_task(self._accept(listener))]
            tasks += [asyncio.create_task(self._says(name)) for name in self.spec.servers]
            await self.enough.wait()
            for task in (*tasks, *self._talks):
                task.cancel()
            await asyncio.gather(*tasks, *self._talks, return_exceptions=True)

    # --- receiving ---

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            manner = self.random.choices(list(MANNERS), list(MANNERS.values()))[0] if self.restless else "well"
            if manner == "slam":  # no byte was read: the system resets the connection
                connection.close()
                continue
            talk = asyncio.create_task(self._serve(connection, manner, now_s()))
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)

    async def _serve(self, connection: socket.socket, manner: str, accepted_s: float) -> None:
        self._connections += 1
        link = f"{self.spec.name}-{self.spec.life}#{self._connections}"
        reader, writer = await asyncio.open_connection(sock=connection, limit=READ_LIMIT_BYTES)
        try:
            await self._converse(reader, writer, manner, link, accepted_s)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: str, link: str, accepted_s: float
    ) -> None:
        frame = await _read(reader)
        if manner == "hang":
            await asyncio.Event().wait()
        if manner == "reset":
            _reset(writer)
            return
        id_ = frame["payload"]["id"]
        if manner == "refuse" and self.spec.reports:
            _write(writer, _report(id_, self.random.choice(REFUSALS)))
            await writer.drain()
            return
        if self.restless:
            await asyncio.sleep(self.random.uniform(0, IN_HAND_S))
        self._put_down(frame, link, accepted_s)
        if manner == "reset after":
            _reset(writer)
        elif self.spec.reports and manner != "mum":
            _write(writer, _report(id_, None))
            await writer.drain()

    def _put_down(self, frame: Any, link: str, accepted_s: float) -> None:
        header, data, type_ = frame["header"], frame["payload"]["data"], frame["payload"]["type"]
        if type_ == NEWS:  # a later outcome of a message from this server, whose id ends with the recipient
            self.journal.write(Later(data["message"], data["message"].rpartition("/")[2], data["outcome"], now_s()))
            return
        epoch, number, _ = header["lane"]
        place: Place = (header["server"], type_, epoch, number)
        sound = data["text"] == text_of(data["number"])
        marked = header.get("again") is True
        self.journal.write(Got(data["number"], self.spec.name, header["id"], marked, sound, link, accepted_s, place))

    # --- sending ---

    async def _says(self, server: str) -> None:
        """Send messages to users of a server, one after the other."""
        while True:
            self.number += 1
            number, user = self.number, self.random.choice(self.spec.users[server])
            self.journal.write(Sent(number, "talk", {user: [user]}, now_s(), asks=self.spec.reports))
            try:
                self.journal.write(await self._say(server, number, user))
            except (OSError, EOFError, TimeoutError) as error:  # the message may have arrived, and is not sent again
                self.journal.write(GivenUp(number, f"no report: {error}", now_s()))
            await asyncio.sleep(self.random.expovariate(1 / SAYS_S))

    async def _say(self, server: str, number: int, user: str) -> Told:
        """Send a message; return the last report on it."""
        id_ = f"{self.spec.name}/{number}/{user}"
        data = {"number": number, "text": text_of(number), "to": [user]}
        header = {"scope": "server", "server": self.spec.name, "id": id_}
        frame = {"header": header, "payload": {"type": "talk", "data": data, "id": id_}}
        tries = 0
        while True:
            report = await self._ask(self.spec.servers[server], frame)
            payload = report["payload"]
            told = Told(
                number, report["header"]["status"] == "good", payload.get("reason"), payload.get("recipients") or {},
                id_, now_s(),
            )  # fmt: skip
            tries += 1
            if tries >= TRIES or told.reason not in ("no-handler", "overloaded") or told.recipients:
                return told
            await asyncio.sleep(ASKS_AGAIN_S)

    async def _ask(self, address: str, frame: Any) -> Any:
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(REPORT_S):
            reader, writer = await asyncio.open_connection(
                host, int(port), limit=READ_LIMIT_BYTES, local_addr=(self.spec.host, 0)
            )
            try:
                _write(writer, frame)
                return await _read(reader)
            finally:
                writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> Any:
    """Return the next frame. Raises OSError or EOFError at the end."""
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    return json.loads(await reader.readexactly(length))


def _write(writer: asyncio.StreamWriter, frame: Any) -> None:
    body = json.dumps(frame).encode()
    writer.write(HEADER.pack(len(body)) + body)


def _report(id_: str, reason: str | None) -> Any:
    status = "good" if reason is None else "bad"
    payload = {"id": id_} if reason is None else {"id": id_, "reason": reason}
    return {"header": {"messageType": "statusReport", "status": status}, "payload": payload}


def _reset(writer: asyncio.StreamWriter) -> None:
    """Have the connection end with a reset, not in peace."""
    connection: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main() -> None:
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    with Journal(Path(spec.journal)) as journal:
        await Native(spec, journal).run()


if __name__ == "__main__":
    asyncio.run(main())
