"""A hostile server: `python -m tests.hostile.server SPEC SEED`. It is listed as s3 on the fabric, and as n3 natively.

Both may send letters. s3 lies about ids, origin and path, repeats, and answers as no server should; n3 answers
messages with endless small frames, slowly, hugely, or not at all.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import zmq
import zmq.asyncio

from tests.hostile.handler import BATCH, HELLO, LIVES_S, LONG, LONG_REST_S, Fabric, Rows, pack
from tests.hostile.program import Program, main

RELAY, RELAYED = 30, 31
AHEAD = 200
"""Ids that are guessed beyond the last one that another server's message had."""
LETTER = b'{"to": "zed", "text": "from s3"}'
NOBODY = b'{"to": "nobody", "text": "from s3"}'
HUGE = b'{"to": "nobody", "text": "' + b"x" * (4 << 20) + b'"}'


class HostileServer(Program):
    """Links to the server, a listener that the server links to, and a native listener."""

    def __init__(self, spec: dict[str, Any], seed: int) -> None:
        super().__init__(spec, seed)
        self.fabric = Fabric(spec, spec["s3"])
        self._tokens = count(1)

    def manners(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """Return the manners, with their names."""
        return [
            ("relays", self._relays), ("forges", self._forges), ("repeats", self._repeats), ("large", self._is_large),
            ("claims", self._claims), ("lanes", self._opens_lanes), ("frames", self._sends_frames),
            ("answers", self._answers), ("native", self._is_native), ("submits", self._submits),
        ]  # fmt: skip

    def _meta(self, **more: Any) -> dict[str, Any]:
        number = next(self._tokens)
        id_ = f"s3/evil/{number}"
        return {"id": id_, "root": id_, "origin": "s3", "path": ["s3"], **more}

    def _row(self, body: bytes, type_: str = "letter", **more: Any) -> list[Any]:
        return [RELAY, next(self._tokens), type_, body, self._meta(**more)]

    async def _hello(self, socket: Any) -> None:
        await socket.send(pack([[HELLO, 1, "server", "s3", {}]]))
        async with asyncio.timeout(10):
            self._look_at((await socket.recv_multipart())[0])

    def _look_at(self, batch: bytes) -> None:
        self.look(batch)

    async def _sends(self, make: Callable[[], list[bytes]], seconds: float = LIVES_S) -> None:
        """Send what `make` returns over and over on a link of its own, and read the answers."""
        with self.fabric.link() as socket:
            await self._hello(socket)
            reading = asyncio.create_task(self._reads(socket))
            try:
                async with asyncio.timeout(seconds):
                    while True:
                        await socket.send_multipart(make())
                        await self.rest()
                        self.counts["batches"] += 1
            except TimeoutError:
                pass
            finally:
                reading.cancel()

    async def _reads(self, socket: Any) -> None:
        while True:
            self._look_at((await socket.recv_multipart())[0])

    async def _relays(self) -> None:
        """Send as much as the link takes: to a mailbox, to nobody, of types that it may not send."""
        kinds = ((LETTER, "letter"), (NOBODY, "letter"), (b"1", "evil"), (b"1", "bester.outcome"), (b"{", "letter"))

        def make() -> list[bytes]:
            body, type_ = self.random.choice(kinds)
            return [pack([self._row(body, type_) for _ in range(BATCH)])]

        await self._sends(make)

    async def _forges(self) -> None:
        """Use the ids of another server's messages before that server does, and its name, path and lane."""
        file = Path(self.spec["ids"])

        def make() -> list[bytes]:
            last = (file.read_text().splitlines() or ["s2/x/1"])[-1] if file.exists() else "s2/x/1"
            head, _, number = last.rpartition("/")
            start = int(number) if number.isdecimal() else 0
            rows: Rows = []
            for ahead in range(AHEAD):
                id_ = f"{head}/{start + ahead}"
                for each in (id_, f"{id_}.0.0"):
                    lane = ["s2", start + ahead, start]
                    meta = {"id": each, "root": each, "origin": "s2", "path": ["s2"], "server": "s2", "lane": lane}
                    rows.append([RELAY, next(self._tokens), "letter", NOBODY, meta])
            return [pack(rows)]

        await self._sends(make)

    async def _repeats(self) -> None:
        """Send one message again and again, marked and not, with lies about where it was."""
        lies: tuple[dict[str, Any], ...] = (
            {"path": ["s1"] * 15}, {"path": ["s2"] * 64}, {"origin": "s1"}, {"origin": "s2"}, {"hops": -1},
            {"again": True}, {"id": "s1/x/1"}, {"root": "s1/x/1"}, {"ttl_s": -5}, {"ttl_s": 2**50},
            {"user": "alice"}, {"scope": "client"},
        )  # fmt: skip
        rows = [[RELAY, next(self._tokens), "letter", NOBODY, self._meta(**lie)] for lie in lies for _ in range(50)]
        await self._sends(lambda: [pack(rows)])

    async def _is_large(self) -> None:
        rows = [self._row(NOBODY)]
        rows[0][3] = 1
        await self._sends(lambda: [pack(rows), HUGE])

    async def _claims(self) -> None:
        """Pass for another server, and claim roles that the key does not grant."""
        roles: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("server", "s2", {}), ("server", "s1", {}), ("bridge", "b", {"epoch": "e"}), ("operator", "o", {}),
            ("handler", "letter", {"types": ["letter"], "credit": 100}),
        )  # fmt: skip
        for role, name, options in roles:
            with self.fabric.link() as socket:
                await socket.send(pack([[HELLO, 1, role, name, options], self._row(LETTER)]))
                async with asyncio.timeout(5):
                    self._look_at((await socket.recv_multipart())[0])

    async def _opens_lanes(self) -> None:
        """Begin a lane with each message, and jump in it."""

        def make() -> list[bytes]:
            return [
                pack([self._row(NOBODY, lane=[f"e{self.random.random()}", 2**50, 2**49]) for _ in range(BATCH // 2)]
                     + [self._row(NOBODY, lane=["e", self.random.randrange(2**40), 0]) for _ in range(BATCH // 2)])
            ]  # fmt: skip

        await self._sends(make)

    async def _sends_frames(self) -> None:
        """Send as many messages of many frames as a party may."""
        with self.fabric.link() as socket:
            await self._hello(socket)
            await socket.send_multipart(LONG)
            await asyncio.sleep(LONG_REST_S)

    async def _answers(self) -> None:
        """Listen as s3; answer the server's relays falsely, and unasked, without an end."""
        socket = self.fabric.context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.curve_server = True
        socket.curve_secretkey = self.spec["s3"]["secret"].encode()
        try:
            try:
                socket.bind(f"tcp://127.0.0.1:{self.spec['s3_port']}")
            except zmq.ZMQError as error:  # ZeroMQ closes the listener before on a thread of its own
                raise OSError(error.errno, str(error)) from error
            async with asyncio.timeout(LIVES_S * 3):
                while True:
                    link, *frames = await socket.recv_multipart()
                    self.look(frames[0])
                    rows: Rows = msgpack.unpackb(frames[0])
                    answers: Rows = []
                    for row in rows:
                        if row[0] == HELLO:
                            answers.append([2, 1, "s3", {"heartbeat_ms": 2000}])
                        elif row[0] == RELAY:
                            answers += self._lies_about(row)
                    answers += [[RELAYED, self.random.randrange(2**50), "delivered", {}] for _ in range(300)]
                    await socket.send_multipart([link, pack(answers[:BATCH])])
        finally:
            socket.close()

    def _lies_about(self, row: list[Any]) -> Rows:
        token = row[1]
        return self.random.choice(
            (
                [], [[RELAYED, token, "queued", {"queued": 2**40}]], [[RELAYED, token, "delivered", {}]] * 5,
                [[RELAYED, token, "failed:" + "x" * 100, {"note": "x" * 100_000}]],
                [[RELAYED, token, "failed:no-handler", {}]], [[RELAYED, token, "failed:overloaded", {"carried": True}]],
                [[RELAYED, token, 5, None]], [[4, "going"]], [[5, "hello-first", "again"]],
            )
        )  # fmt: skip

    async def _is_native(self) -> None:
        """Listen as n3; answer slowly, hugely, endlessly, or not at all."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", self.spec["n3_port"])
        async with server:
            await asyncio.sleep(LIVES_S * 3)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["native"] += 1
        empty = json.dumps({"header": {}, "payload": {}}).encode()
        small = (struct.pack("<I", len(empty)) + empty) * 1000
        answers = (small, struct.pack("<I", 2**32 - 1), struct.pack("<I", 15 << 20) + b"x" * (1 << 20), b"\0", b"")
        answer = self.random.choice(answers)
        with suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(LIVES_S):
                self.look(await reader.read(1 << 16))
                while answer:
                    writer.write(answer)
                    await writer.drain()
                    await asyncio.sleep(0)  # `drain` lets nobody else run until the kernel's buffer is full
                await asyncio.sleep(LIVES_S)
        writer.transport.abort()

    async def _submits(self) -> None:
        """Send letters natively, as n3 and as others, as many as there is room for."""
        for name in ("n3", "s2", "s1", None):
            header: dict[str, Any] = {"scope": "server", "id": f"n3/{next(self._tokens)}", "server": name}
            body = json.dumps({"header": header, "payload": {"type": "letter", "data": json.loads(NOBODY)}}).encode()
            frame = struct.pack("<I", len(body)) + body
            for _ in range(100):
                reader, writer = await asyncio.open_connection(self.spec["host"], self.spec["port"])
                writer.write(frame)
                async with asyncio.timeout(5):
                    self.look(await reader.read(1 << 16))
                writer.transport.abort()


if __name__ == "__main__":
    main(HostileServer)
