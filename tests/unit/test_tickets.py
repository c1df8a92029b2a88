"""A server of TLS 1.3 that sends tickets for later sessions by the thousand: 900 fit into one record."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
import struct
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bester.broker.layer_turns import TURN_S, LayerTurns
from bester.broker.tls_files import Pair, client_context, server_context
from bester.broker.tls_records import MOST_USELESS_BYTES
from bester.broker.tls_stream import TlsStream
from tests.authorities import Authority
from tests.unit.test_layer_turns import Reading

_TICKET = struct.pack(">IIBHcH", 7200, 1, 0, 1, b"t", 0)
_MESSAGE = b"\x04" + struct.pack(">I", len(_TICKET))[1:] + _TICKET
TICKETS = _MESSAGE * (16 * 1024 // len(_MESSAGE))
HANDSHAKE, DATA = 22, 23


class Hostile(asyncio.Protocol):
    """A server that writes records of its own behind the handshake, and the protocol above the client's TlsStream. Each
    look at the clock of the client's turns takes a twentieth of a turn."""

    def __init__(self, directory: Path) -> None:
        authority, self._secrets = Authority(directory), directory / "secrets"
        context, _ = server_context(Pair(*authority.issue("localhost")), None, time.time())
        context.keylog_filename, context.num_tickets = str(self._secrets), 0
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server = context.wrap_bio(self._in, self._out, server_side=True)
        self._sent = self.looks = 0
        self.faults: list[str] = []
        self.data = b""
        turns = LayerTurns(self._clock, asyncio.get_running_loop().call_soon)
        trust = client_context("ca", authority.ca)
        self._below = Reading()
        self.stream = TlsStream(
            self, trust, host="localhost", turns=turns, failed=lambda fault: self.faults.append(str(fault))
        )
        self.stream.connection_made(self._below)  # type: ignore[arg-type]  # a stand-in

    def _clock(self) -> float:
        self.looks += 1
        return self.looks * TURN_S / 20

    def data_received(self, data: bytes) -> None:
        self.data += data

    async def shake_hands(self) -> None:
        """Let both sides end the handshake, and learn the secret of the server's records."""
        at = 0
        while not (self._secrets.exists() and "SERVER_TRAFFIC_SECRET_0" in self._secrets.read_text()):
            self._in.write(self._below.written[at:])
            at = len(self._below.written)
            try:
                self._server.do_handshake()
            except ssl.SSLWantReadError:
                pass
            await self._give(self._out.read())
        lines = [line.split() for line in self._secrets.read_text().splitlines()]
        secret = next(bytes.fromhex(line[2]) for line in lines if line[0] == "SERVER_TRAFFIC_SECRET_0")
        self._key, self._iv = _expanded(secret, b"key", 32), _expanded(secret, b"iv", 12)

    def record(self, content: bytes, kind: int) -> bytes:
        """Return the next record of the server (RFC 8446, section 5.2)."""
        head = b"\x17\x03\x03" + struct.pack(">H", len(content) + 17)
        nonce = bytes(left ^ right for left, right in zip(self._iv, self._sent.to_bytes(12, "big"), strict=True))
        self._sent += 1
        return head + AESGCM(self._key).encrypt(nonce, content + bytes((kind,)), head)

    async def send(self, *records: bytes) -> None:
        """Send records, and wait until the client has taken them in, or ended the connection."""
        await self._give(b"".join(records))

    async def _give(self, data: bytes) -> None:
        self.stream.data_received(data)
        while self._below.paused and not self.faults:
            await asyncio.sleep(0)


def _expanded(secret: bytes, label: bytes, length: int) -> bytes:
    """Return HKDF-Expand-Label with an empty context, for keys no longer than a hash (RFC 8446, section 7.1)."""
    info: Any = struct.pack(">HB", length, 6 + len(label)) + b"tls13 " + label + b"\0\x01"
    return hmac.new(secret, info, hashlib.sha384).digest()[:length]


async def test_clock_is_looked_at_after_each_record_of_tickets(tmp_path: Path) -> None:
    server = Hostile(tmp_path)
    await server.shake_hands()
    looks = []
    for count in (0, 3):
        before = server.looks
        await server.send(*(server.record(TICKETS, HANDSHAKE) for _ in range(count)), server.record(b"x", DATA))
        looks.append(server.looks - before)
    assert server.data == b"xx"
    assert not server.faults
    assert looks[1] >= looks[0] + 3


async def test_many_tickets_in_a_row_end_the_connection(tmp_path: Path) -> None:
    server = Hostile(tmp_path)
    await server.shake_hands()
    count = MOST_USELESS_BYTES // len(TICKETS) + 2
    await server.send(*(server.record(TICKETS, HANDSHAKE) for _ in range(count)), server.record(b"x", DATA))
    assert server.faults == [f"it sends more than {MOST_USELESS_BYTES >> 10} KiB of TLS in a row without data"]
    assert not server.data
