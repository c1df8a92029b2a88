"""The common parts of all attacks: one server, the attackers, and the honest users who must not notice.

Attackers speak to the sockets with nothing of Bester's own code.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from tests.live import DEADLINE_S, LiveServer, RawClient, RawHandler, shared_server

TOML = '[informer]\nunix = "informer.sock"\n[servers.s2]\nfabric = "ipc://nobody.sock"\naccept_types = ["*"]\n'
HANDLERS = ("bester.handlers.stock.echo:app", "bester.handlers.stock.chat:app")
OPS = {
    1: "HELLO", 2: "WELCOME", 3: "HEARTBEAT", 4: "GOODBYE", 5: "ERROR", 10: "REQUEST", 11: "REPLY", 12: "EMIT",
    13: "OUTCOME", 14: "ASK", 15: "ANSWER", 20: "LOGIN", 21: "LOGGEDIN", 22: "OPEN", 23: "CLOSE", 24: "SUBMIT",
    25: "REPORT", 26: "DELIVER", 27: "CONFIRM", 30: "RELAY", 31: "RELAYED", 32: "FORWARD", 33: "FORWARDED",
}  # fmt: skip
LAST = 999_999
"""The token of an attacker's last question: the answer says that everything before the question was read."""


@contextmanager
def attacked(layout: str) -> Iterator[LiveServer]:
    """Run a server for many attacks. At the end its log must hold no traceback, and its exit status must be good."""
    with shared_server(TOML, layout, HANDLERS) as server:
        yield server
    lines = [line for process in server.processes for line in process.lines]
    wrong = [number for number, line in enumerate(lines) if "Traceback" in line]
    assert not wrong, "\n".join(lines[wrong[0] : wrong[0] + 40])


async def all_is_well(server: LiveServer) -> None:
    """Check that the honest are served: alice's message comes back to her, and her message to bob comes to bob."""
    alice, bob = await RawClient.login(server, "alice"), await RawClient.login(server, "bob")
    alice.submit("echo", {"n": 1}, "m1")
    report, before = await alice.until_report("m1")
    assert report["header"]["status"] == "good", report
    assert [frame["payload"]["data"] for frame in before] == [{"n": 1}]
    alice.submit("chat", {"to": ["bob"], "text": "hi"}, "m2")
    report, _ = await alice.until_report("m2")
    assert report["header"]["status"] == "good", report
    assert (await bob.receive())["payload"]["type"] == "chat"
    await alice.close()
    await bob.close()


# --- by the native protocol ---


def framed(body: bytes | str, length: int | None = None) -> bytes:
    """Return a frame; `length`: a false length for its header."""
    body = body.encode() if isinstance(body, str) else body
    return struct.pack("<I", len(body) if length is None else length) + body


def login(user: str = "eve", password: str = "p", **header: Any) -> bytes:
    """Return the frame of a login."""
    fields = {"scope": "client", "authentication": {"username": user, "password": password}, **header}
    return framed(json.dumps({"header": fields, "payload": None}))


def words_of(body: bytes) -> str:
    """Return a frame of the server in words."""
    frame = json.loads(body.decode(), parse_int=str)  # Python reads no longer ones than 4,300 digits
    header, payload = frame["header"], frame["payload"]
    if header.get("messageType") == "receivedMessage":
        return "message"
    if header.get("messageType") == "statusReport":
        id_ = payload["id"] if payload["id"] is None or len(payload["id"]) < 20 else "LONG"
        return f"{header['status']} {id_} {payload.get('reason', '')}".rstrip()
    return f"{payload['type']} {payload['id']} {header['status']}"


async def heard_of(client: RawClient, count: int | None = None) -> list[str]:
    """Return the server's frames in words: so many, or all up to the end of the connection (`end`)."""
    words: list[str] = []
    while count is None or len(words) < count:
        try:
            words.append(words_of(await client.receive_bytes()))
        except (asyncio.IncompleteReadError, ConnectionError):
            return [*words, "end"]
    return words


def reset(client: RawClient) -> None:
    """End a connection with a reset instead of an end."""
    raw = client.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


@asynccontextmanager
async def unix_client(path: Path) -> AsyncIterator[RawClient]:
    """A connection to a Unix socket."""
    client = RawClient(*await asyncio.open_unix_connection(str(path)))
    try:
        yield client
    finally:
        await client.close()


# --- by the fabric ---


def pack(*rows: Any) -> bytes:
    """Return a batch."""
    return bytes(msgpack.packb(list(rows), unicode_errors="surrogatepass"))


class Attacker(RawHandler):
    """A DEALER that sends arbitrary operations."""

    def __init__(self, server: LiveServer, routing_id: bytes | None = None) -> None:
        super().__init__(server.fabric, [])
        if routing_id is not None:
            self.socket.disconnect(server.fabric)
            self.socket.routing_id = routing_id
            self.socket.connect(server.fabric)

    async def ask_last(self, *hello: Any) -> list[str]:
        """Ask a question; return the operations received before its answer, in words. `hello` is sent before the
        question."""
        await self.say(*hello, [14, LAST, "listClients"])
        words: list[str] = []
        async with asyncio.timeout(DEADLINE_S):
            while True:
                while self.inbox:
                    message = self.inbox.pop(0)
                    if message[0] == 15 and message[1] == LAST:
                        assert message[2] == 0, message
                        return words
                    if message[0] != 3:
                        words.append(said(message))
                frame, *self.attachments = await self.socket.recv_multipart()
                self.inbox.extend(msgpack.unpackb(frame))


def said(message: list[Any]) -> str:
    """Return an operation of the broker in words, without the parts that differ from run to run."""
    op, *fields = message
    name = OPS[op]
    if name == "ERROR":
        code, _, of, token = fields
        return (
            f"ERROR {code}"
            + (f" {OPS.get(of, of)}" if of is not None else "")
            + (f" {token}" if token is not None else "")
        )
    if name == "OUTCOME":
        return f"OUTCOME {fields[0]} {fields[1]} {fields[3] or ''}".rstrip()
    if name == "REPORT":
        return f"REPORT {fields[0]} {fields[1]} {fields[2] or ''}".rstrip()
    if name in ("RELAYED", "ANSWER", "LOGGEDIN"):
        return " ".join([name, *(str(field) for field in fields[:3] if field not in (None, {}))])
    if name == "CLOSE":
        return f"CLOSE {fields[0]}"
    return name


@asynccontextmanager
async def attacker(server: LiveServer, hello: list[Any] | None = None) -> AsyncIterator[Attacker]:
    """Yield an attacker on a link of its own; `hello` is the first operation, which gets its WELCOME."""
    eve = Attacker(server)
    try:
        if hello:
            await eve.say(hello)
            await eve.hear(2)
        yield eve
    finally:
        eve.close()
