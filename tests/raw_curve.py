"""The connecting side of ZMTP 3.1 with CURVE on a plain socket, for what no libzmq sends. Needs libsodium, of which the
wheel of pyzmq has a copy."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import os
import struct
from pathlib import Path

import zmq
from zmq.utils import z85

from tests.keyed import Pair
from tests.live import DEADLINE_S

MORE, COMMAND = 1, 2
"""Flags of a frame that is encrypted."""
PING = b"\x04PING\0\0context"


def _library() -> ctypes.CDLL | None:
    bundled = sorted((Path(zmq.__file__).parents[1] / "pyzmq.libs").glob("libsodium*"))
    name = str(bundled[0]) if bundled else ctypes.util.find_library("sodium")
    return None if name is None else ctypes.CDLL(name)


_sodium = _library()
IS_THERE = _sodium is not None


class RawCurve:
    """A party on a plain connection, which has chosen the routing id `identity`, and names `more` properties in its
    handshake. `next_nonce` is the one of the next message."""

    def __init__(self, pair: Pair, server: str, identity: bytes = b"", more: bytes = b"") -> None:
        self._properties = _property("Socket-Type", b"DEALER") + _property("Identity", identity) + more
        self._public, self._secret = z85.decode(pair.public.encode()), z85.decode(pair.secret.encode())
        self._server = z85.decode(server.encode())
        self._shared = b""
        self.next_nonce = 1

    async def connect(self, port: int) -> None:
        """Connect to a port of this machine, and shake hands."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        self.writer.write(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32))
        await asyncio.wait_for(self.reader.readexactly(64), DEADLINE_S)
        public, secret = _pair()
        nonce = self._nonce()
        signed = _box(bytes(64), b"CurveZMQHELLO---" + nonce, self._server, secret)
        self.writer.write(_frame(b"\x05HELLO\x01\0" + bytes(72) + public + nonce + signed, COMMAND))
        welcome = await self._command(b"\x07WELCOME")
        opened = _open(welcome[16:], b"WELCOME-" + welcome[:16], self._server, secret)
        theirs, cookie = opened[:32], opened[32:]
        nonce, salt = self._nonce(), os.urandom(16)
        vouch = _box(public + self._server, b"VOUCH---" + salt, theirs, self._secret)
        plain = self._public + salt + vouch + self._properties
        initiate = b"\x08INITIATE" + cookie + nonce + _box(plain, b"CurveZMQINITIATE" + nonce, theirs, secret)
        self.writer.write(_frame(initiate, COMMAND))
        await self._command(b"\x05READY")
        self._shared = _before(theirs, secret)

    def send(self, data: bytes, flags: int = 0, *, nonce: int | None = None) -> None:
        """Send one frame; with the nonce that is named, or the next one."""
        used = self._nonce() if nonce is None else struct.pack(">Q", nonce)
        sealed = _box_with(bytes([flags]) + data, b"CurveZMQMESSAGEC" + used, self._shared)
        self.writer.write(_frame(b"\x07MESSAGE" + used + sealed))

    async def ended(self) -> None:
        """Wait until the other side has ended the connection."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass

    def reset(self) -> None:
        """End the connection by a reset."""
        self.writer.transport.abort()

    def _nonce(self) -> bytes:
        self.next_nonce += 1
        return struct.pack(">Q", self.next_nonce - 1)

    async def _command(self, name: bytes) -> bytes:
        """Return what follows the name of the next command."""
        async with asyncio.timeout(DEADLINE_S):
            (flags,) = await self.reader.readexactly(1)
            size = await self.reader.readexactly(8 if flags & 2 else 1)
            body = await self.reader.readexactly(int.from_bytes(size, "big"))
        assert body.startswith(name), body[:16]
        return body[len(name) :]


def _frame(body: bytes, flags: int = 0) -> bytes:
    kind = 4 if flags & COMMAND else 0
    if len(body) < 256:
        return bytes([kind, len(body)]) + body
    return bytes([kind | 2]) + struct.pack(">Q", len(body)) + body


def _property(name: str, value: bytes) -> bytes:
    return bytes([len(name)]) + name.encode() + struct.pack(">I", len(value)) + value


def _call(function: str, size: int, *values: bytes | ctypes.c_ulonglong) -> bytes:
    made = ctypes.create_string_buffer(max(size, 1))
    assert getattr(_sodium, function)(made, *values) == 0
    return made.raw[:size]


def _pair() -> tuple[bytes, bytes]:
    public, secret = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
    assert _sodium is not None
    assert _sodium.crypto_box_keypair(public, secret) == 0
    return public.raw, secret.raw


def _box(plain: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
    return _call("crypto_box_easy", len(plain) + 16, plain, ctypes.c_ulonglong(len(plain)), nonce, public, secret)


def _open(sealed: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
    size = ctypes.c_ulonglong(len(sealed))
    return _call("crypto_box_open_easy", len(sealed) - 16, sealed, size, nonce, public, secret)


def _before(public: bytes, secret: bytes) -> bytes:
    return _call("crypto_box_beforenm", 32, public, secret)


def _box_with(plain: bytes, nonce: bytes, shared: bytes) -> bytes:
    return _call("crypto_box_easy_afternm", len(plain) + 16, plain, ctypes.c_ulonglong(len(plain)), nonce, shared)
