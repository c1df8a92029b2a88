"""A hostile handler: `python -m tests.hostile.handler SPEC SEED`. Its key is good for the type `evil` alone.

The program's own user, eve, sends messages of that type, so that there are requests to do wrong with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import zmq
import zmq.asyncio

from bester.broker.long_messages import FRAMES_A_SECOND
from tests.hostile.program import Program, main
from tests.hostile.user import BURST, HostileUser, message

HELLO, WELCOME, HEARTBEAT, GOODBYE, REQUEST, REPLY, EMIT, ASK = 1, 2, 3, 4, 10, 11, 12, 14
LIVES_S = 3.0
OVERSIZED = 17 << 20
"""Above the longest body."""
BATCH = 1000
FRAMES = 16_000
"""Frames of one ZeroMQ message: just fewer than are refused as a whole."""
LONG_REST_S = 1.05 * FRAMES / FRAMES_A_SECOND
"""Between two messages of so many frames: whoever sends more of them is cut, and held off."""
FLOCK = 100
"""Links of one party at once."""
Rows = list[list[Any]]


class Fabric:
    """Opens links with a key. `context` is the program's own."""

    def __init__(self, spec: dict[str, Any], pair: dict[str, str]) -> None:
        self.context = zmq.asyncio.Context()
        self.context.max_sockets = 4000
        self._spec = spec
        self._pair = pair

    @contextmanager
    def link(self, routing_id: bytes | None = None) -> Any:
        """Open a DEALER to the server, and close the socket without a GOODBYE at the end."""
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = self._pair["public"].encode(), self._pair["secret"].encode()
        socket.curve_serverkey = self._spec["server_key"].encode()
        if routing_id is not None:
            socket.routing_id = routing_id
        socket.connect(self._spec["fabric"])
        try:
            yield socket
        finally:
            socket.close()


def pack(rows: Rows) -> bytes:
    """Return a batch."""
    return bytes(msgpack.packb(rows))


class Evil:
    """Wrong answers to one request, each a method that returns rows; `None` ends the link."""

    def __init__(self, program: Program) -> None:
        self.random = program.random
        self._held: list[int] = []

    def answer(self, token: int) -> Rows | None:
        """Return an answer of some wrong kind."""
        return self.random.choice(
            (self.none, self.late, self.twice, self.oversized, self.nonsense, self.fan, self.endless, self.loops,
             self.to_servers, self.good, self.good, self.dies)
        )(token)  # fmt: skip

    def none(self, token: int) -> Rows:
        return []

    def late(self, token: int) -> Rows:
        self._held.append(token)
        return [[REPLY, self._held.pop(0), 0, [], None]] if len(self._held) > 50 else []

    def twice(self, token: int) -> Rows:
        return [[REPLY, token, 0, [["sendClients", ["eve"], b"1"]], None]] * 5

    def oversized(self, token: int) -> Rows:
        size = OVERSIZED if self.random.random() < 0.02 else 100_000
        return [[REPLY, token, 0, [["sendClients", ["eve"], b'"' + b"x" * size + b'"']], None]]

    def nonsense(self, token: int) -> Rows:
        commands: Any = self.random.choice(
            (5, None, [5], [["fly", ["bob"], b"1"]], [["sendClients", "bob", b"1"]], [["sendClients", ["bob"], b"{"]])
        )
        return [[REPLY, token, 0, commands, None]]

    def fan(self, token: int) -> Rows:
        """As many recipients as there may be, most of them nobody."""
        return [[REPLY, token, 0, [["sendClients", [f"nobody{n}" for n in range(5000)], b"1"]], None]]

    def endless(self, token: int) -> Rows:
        """Each request becomes two."""
        return [[REPLY, token, 0, [["sendHandler", ["evil"], b'"again"']] * 2, None]]

    def loops(self, token: int) -> Rows:
        return [[REPLY, token, 0, [["sendHandler", ["evil"], b'"again"']], None]]

    def to_servers(self, token: int) -> Rows:
        targets = ["s3", "n3", "127.0.0.1:22", "169.254.169.254:80", "s1", "nowhere.invalid:1"]
        return [[REPLY, token, 0, [["sendServers", targets, b'{"to": "nobody"}', "letter"]], None]]

    def good(self, token: int) -> Rows:
        return [[REPLY, token, 0, [["sendClients", ["eve"], b'"fine"']], None]]

    def dies(self, token: int) -> Rows | None:
        return None if self.random.random() < 0.05 else []


class HostileHandler(Program):
    """Links that serve badly, flood, or never keep still."""

    def __init__(self, spec: dict[str, Any], seed: int) -> None:
        super().__init__(spec, seed)
        self.fabric = Fabric(spec, spec["mallory"])
        self.user = HostileUser(spec, seed)
        self.counts = self.user.counts

    def manners(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """Return the manners, with their names."""
        asks = message("evil", {"text": "x" * 100}) * BURST
        found: list[tuple[str, Callable[[], Awaitable[None]]]] = [("serves", self._serves) for _ in range(4)]
        found += [("asked", partial(self.user.floods, asks)) for _ in range(2)]
        found += [(name, partial(self._floods, batch)) for name, batch in FLOODS.items()]
        found += [("hellos", self._says_hello), ("flock", self._comes_in_a_flock), ("greedy", self._claims)]
        found += [("deaf", self._is_deaf), ("many frames", self._sends_many_frames)]
        return found

    def look_at(self, rows: Rows) -> None:
        """Count the requests of the honest."""
        for row in rows:
            if row[0] == REQUEST and (row[2] != "evil" or self.mark in row[3]):
                self.counts["seen"] += 1

    @asynccontextmanager
    async def _welcomed(self, **options: Any) -> AsyncIterator[Any]:
        with self.fabric.link() as socket:
            await socket.send(pack([[HELLO, 1, "handler", "mallory", {"types": ["evil"], "credit": 65536, **options}]]))
            async with asyncio.timeout(10):
                await socket.recv_multipart()
            yield socket

    async def _serves(self) -> None:
        """Answer every request wrongly, and some rightly."""
        evil = Evil(self)
        async with self._welcomed() as socket, asyncio.timeout(LIVES_S * 3):
            while True:
                frames = await socket.recv_multipart()
                rows: Rows = msgpack.unpackb(frames[0])
                self.look_at(rows)
                answers: Rows = [[HEARTBEAT]]
                for row in rows:
                    if row[0] == REQUEST:
                        self.counts["requests"] += 1
                        answer = evil.answer(row[1])
                        if answer is None:
                            return
                        answers += answer
                for first in range(0, len(answers), BATCH):
                    await socket.send(pack(answers[first : first + BATCH]))

    async def _floods(self, frames: list[bytes]) -> None:
        """Send the same ZeroMQ message over and over, and read the answers."""
        async with self._welcomed() as socket, asyncio.TaskGroup() as group:
            reading = group.create_task(self._reads(socket))
            try:
                async with asyncio.timeout(LIVES_S):
                    while True:
                        await socket.send_multipart(frames)
                        await self.rest()
                        self.counts["batches"] += 1
            except TimeoutError:
                pass
            finally:
                reading.cancel()

    async def _reads(self, socket: Any) -> None:
        while True:
            self.look_at(msgpack.unpackb((await socket.recv_multipart())[0]))

    async def _is_deaf(self) -> None:
        """Ask much, and read nothing."""
        async with self._welcomed() as socket, asyncio.timeout(LIVES_S * 2):
            while True:
                await socket.send_multipart(FLOODS["asks"])
                await self.rest()

    async def _sends_many_frames(self) -> None:
        """Send as many messages of many frames as a party may."""
        async with self._welcomed() as socket:
            await socket.send_multipart(LONG)
            await asyncio.sleep(LONG_REST_S)

    async def _says_hello(self) -> None:
        """Be somebody else at every moment."""
        with self.fabric.link() as socket:
            for number in range(2000):
                types = ["evil"] if number % 2 else ["evil"] * 1000
                await socket.send(pack([[HELLO, 1, "handler", f"m{number}", {"types": types, "credit": 1 + number}]]))
                await self.rest()

    async def _comes_in_a_flock(self) -> None:
        """Come on many links at once, and leave without a word."""
        hello = pack([[HELLO, 1, "handler", "flock", {"types": ["evil"], "credit": 1}]])
        links = [self.fabric.link() for _ in range(FLOCK)]
        sockets = [link.__enter__() for link in links]
        try:
            for socket in sockets:
                await socket.send(hello)
            await asyncio.sleep(1.0)
        finally:
            for link in links:
                link.__exit__(None, None, None)

    async def _claims(self) -> None:
        """Ask for roles and types that the key does not grant."""
        hellos: Rows = [
            [HELLO, 1, "handler", "letter", {"types": ["letter"], "credit": 100}],
            [HELLO, 1, "handler", "letter", {"types": ["evil"], "shadow": True, "credit": 100}],
            [HELLO, 1, "handler", "letter", {"types": ["letter"], "shadow": True}],
            [HELLO, 1, "handler", "auth", {"types": ["bester.auth"], "credit": 100}],
            [HELLO, 1, "bridge", "b", {"epoch": "evil"}], [HELLO, 1, "server", "s2", {}],
            [HELLO, 1, "operator", "o", {}],
        ]  # fmt: skip
        for hello in hellos:
            with self.fabric.link() as socket:
                await socket.send(pack([hello, [EMIT, 1, "letter", [["sendClients", ["bob"], b"1"]], {}]]))
                async with asyncio.timeout(5):
                    self.look_at(msgpack.unpackb((await socket.recv_multipart())[0]))


def _emits(*targets: str, body: bytes = b'"x"', command: str = "sendClients") -> list[bytes]:
    return [pack([[EMIT, next(_tokens), "evil", [[command, list(targets), body]], {}] for _ in range(BATCH)])]


_tokens = count(1)
LONG = [pack([[HEARTBEAT]]), *[b"x"] * FRAMES]
"""A message of ZeroMQ of many frames."""
FLOODS: dict[str, list[bytes]] = {
    "emits to nobody": _emits("nobody"),
    "emits to a mailbox": _emits("zed", body=b'"' + b"x" * 500 + b'"'),
    "emits to one who does not read": _emits("mute", body=b'"' + b"x" * 10_000 + b'"'),
    "emits to its type": _emits("evil", command="sendHandler"),
    "emits to servers": _emits("s3", "n3", command="sendServers"),
    "asks": [pack([[ASK, n, "listClients"] for n in range(BATCH)])],
    "answers to nothing": [pack([[REPLY, 2**40 + n, 0, [], None] for n in range(BATCH)])],
    "heartbeats": [pack([[HEARTBEAT]] * BATCH)],
    "garbage": [b"\xc1" * 1000],
    "deep": [b"\x91" * 100_000],
    "dense": [pack([[EMIT, 1, "evil", [], {"m": [[]] * 29_000}]] * 10)],
    "brackets": [pack([[EMIT, 1, "evil", [["sendClients", ["nobody"], 1]], {}]]), b"[" + b"[]," * 300_000 + b"1]"],
    "large": [pack([[EMIT, 1, "evil", [["sendClients", ["nobody"], 1]], {}]]), b'"' + b"x" * (8 << 20) + b'"'],
    "goodbyes": [pack([[GOODBYE, "x" * 1000]])],
}
"""ZeroMQ messages that a welcomed link sends over and over."""

if __name__ == "__main__":
    main(HostileHandler)
