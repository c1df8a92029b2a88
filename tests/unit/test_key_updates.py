"""A peer that asks for new keys of TLS again and again, which the ssl module cannot, is cut, and holds nobody up."""

from __future__ import annotations

import _ssl
import asyncio
import ctypes
import gc
import ssl
import sys
import time
from pathlib import Path

import pytest

from bester.broker.layer_turns import TURN_S, LayerTurns
from bester.broker.tls_files import Pair, server_context
from bester.broker.tls_records import AT_ONCE, MOST_USELESS
from bester.broker.tls_stream import MOST_ANSWERED, TlsStream
from tests.authorities import Authority
from tests.unit.test_layer_turns import Reading

SSL_OF_SOCKET = 3 * ctypes.sizeof(ctypes.c_void_p)
"""Offset of OpenSSL's own object in CPython's `_ssl._SSLSocket`: behind the object's head and the socket."""
REQUESTED = 1
LOOK_S = TURN_S / 20
TURNS = 1000


@pytest.fixture(scope="module")
def openssl() -> ctypes.CDLL:
    """The library that the ssl module uses."""
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 15):
        pytest.skip("the layout of the ssl module is not known here")
    # Another package may bring an OpenSSL of its own: symbols are looked up in the ssl module and what it is linked to.
    library = ctypes.CDLL(getattr(_ssl, "__file__", None))
    if not hasattr(library, "SSL_key_update"):
        pytest.skip("the ssl module has OpenSSL within itself")
    library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.SSL_do_handshake.argtypes = [ctypes.c_void_p]
    return library


class Peer(asyncio.Protocol):
    """A client of a TlsStream, and the protocol above that; each look at the clock of its turns takes LOOK_S."""

    def __init__(self, directory: Path, library: ctypes.CDLL) -> None:
        authority = Authority(directory)
        authority.issue("127.0.0.1")
        context, _ = server_context(Pair(directory / "server.pem", directory / "server.key"), None, time.time())
        self.now = 0.0
        self.faults: list[str] = []
        self.below = Reading()
        self.data = b""
        turns = LayerTurns(self._clock, asyncio.get_running_loop().call_soon)
        self.stream = TlsStream(self, context, turns=turns, failed=lambda fault: self.faults.append(str(fault)))
        self.stream.connection_made(self.below)  # type: ignore[arg-type]  # a stand-in
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        own.check_hostname, own.verify_mode = False, ssl.CERT_NONE
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = own.wrap_bio(self._in, self._out)
        self._library = library

    def _clock(self) -> float:
        self.now += LOOK_S
        return self.now

    def data_received(self, data: bytes) -> None:
        self.data += data

    async def shake_hands(self) -> None:
        """Shake hands by TLS 1.3."""
        for _ in range(3):
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                pass
            await self.send()
            self._in.write(self.below.written)
            self.below.written = b""
        assert self._ssl.version() == "TLSv1.3"

    def ask_for_keys(self, times: int) -> None:
        """Write so many requests for new keys."""
        (inner,) = (each for each in _within(self._ssl) if type(each).__name__ == "_SSLSocket")
        own = ctypes.c_void_p.from_address(id(inner) + SSL_OF_SOCKET).value
        for _ in range(times):
            assert self._library.SSL_key_update(own, REQUESTED) == 1
            self._library.SSL_do_handshake(own)

    def write(self, data: bytes) -> None:
        """Write data behind them."""
        self._ssl.write(data)

    async def send(self) -> None:
        """Send what was written, and let the stream take its turns."""
        self.stream.data_received(self._out.read())
        for _ in range(TURNS):
            await asyncio.sleep(0)


def _within(stream: ssl.SSLObject) -> list[object]:
    """Return the objects that a stream refers to."""
    found = gc.get_referents(stream)
    return [*found, *(each for held in found if type(held) is dict for each in held.values())]


async def test_new_keys_now_and_then_are_fine(tmp_path: Path, openssl: ctypes.CDLL) -> None:
    peer = Peer(tmp_path, openssl)
    await peer.shake_hands()
    for _ in range(MOST_USELESS):
        peer.ask_for_keys(3)
        peer.write(b"x")
        await peer.send()
    assert peer.data == b"x" * MOST_USELESS
    assert not peer.faults


async def test_new_keys_again_and_again_end_the_connection(tmp_path: Path, openssl: ctypes.CDLL) -> None:
    peer = Peer(tmp_path, openssl)
    await peer.shake_hands()
    peer.ask_for_keys(2000)
    peer.write(b"x")
    await peer.send()
    assert peer.faults == [f"it sends more than {MOST_USELESS} records of TLS in a row without data"]
    assert not peer.data
    assert len(peer.below.written) < 100 * (MOST_USELESS + 2 * AT_ONCE)  # an answer to each that was read
    assert peer.below.ended


async def test_new_keys_between_data_wait_for_their_turn(tmp_path: Path, openssl: ctypes.CDLL) -> None:
    peer = Peer(tmp_path, openssl)
    await peer.shake_hands()
    for _ in range(100):
        peer.ask_for_keys(AT_ONCE - 1)
        peer.write(b"x")
    before = peer.now
    await peer.send()
    assert peer.data == b"x" * 100
    assert peer.now - before > 100 * LOOK_S  # a look at the clock for each few of them at least


async def test_answers_that_a_peer_does_not_read_are_bounded(tmp_path: Path, openssl: ctypes.CDLL) -> None:
    peer = Peer(tmp_path, openssl)
    await peer.shake_hands()
    peer.below.stuck = True
    for _ in range(5000):
        peer.ask_for_keys(1)
        peer.write(b"x")
        if not len(peer.data) % 500:
            await peer.send()
    await peer.send()
    assert peer.faults == ["it asks for answers of TLS, and reads none of them"]
    assert len(peer.below.written) < 2 * MOST_ANSWERED
