"""The end of a peer's stream of TLS: what comes behind the notice, and what stays behind the connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import sys
import time
from pathlib import Path

import pytest

from bester.broker.tls_files import Pair, server_context
from bester.broker.tls_stream import MOST_BEHIND, TlsStream
from tests.authorities import Authority
from tests.unit.test_layer_turns import Reading

RECORD = b"\x17\x03\x03\x40\x00" + bytes(16 * 1024)
ANSWER = b"an answer of this side"


class Peer(asyncio.Protocol):
    """A client of a TlsStream, and the protocol above that; the client shows a certificate where it has a `pair`."""

    def __init__(self, directory: Path, version: ssl.TLSVersion, *, has_pair: bool = False) -> None:
        authority = Authority(directory)
        authority.issue("127.0.0.1")
        pair = Pair(directory / "server.pem", directory / "server.key")
        self.context, _ = server_context(pair, authority.ca if has_pair else None, time.time())
        self.faults: list[str] = []
        self.below = Reading()
        self.data = b""
        self.ended = False
        self.stream = TlsStream(self, self.context, failed=lambda fault: self.faults.append(str(fault)))
        self.stream.connection_made(self.below)  # type: ignore[arg-type]  # a stand-in
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        own.check_hostname, own.verify_mode, own.maximum_version = False, ssl.CERT_NONE, version
        if has_pair:
            own.load_cert_chain(*authority.issue("s2.example", file="client"))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = own.wrap_bio(self._in, self._out)
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.ssl.do_handshake()
            self.exchange()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def exchange(self) -> None:
        """Carry what either side has written to the other one."""
        if out := self._out.read():
            self.stream.data_received(out)
        self._in.write(self.below.written)
        self.below.written = b""

    def part(self) -> None:
        """Send some data, and the notice that the client's stream ends."""
        self.ssl.write(b"last words")
        with contextlib.suppress(ssl.SSLWantReadError):
            self.ssl.unwrap()
        self.exchange()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_nothing_behind_the_notice_is_held(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """All of it waited, and was copied whenever more came, for as long as the peer had a report to wait for."""
    peer = Peer(tmp_path, version)
    peer.part()
    assert (peer.data, peer.ended, peer.faults) == (b"last words", True, [])
    holders = sys.getrefcount(RECORD)
    for _ in range(MOST_BEHIND // len(RECORD)):
        peer.stream.data_received(RECORD)
        assert sys.getrefcount(RECORD) == holders
    assert peer.faults == []
    peer.stream.write(ANSWER)
    peer.stream.data_received(RECORD * 2)
    assert peer.faults == ["it sends on behind its own notice that its stream ends"]
    assert (peer.data, peer.below.is_closing()) == (b"last words", False)  # the peer has a moment to read


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("is_first", [True, False], ids=["peer ends first", "peer ends last"])
async def test_no_session_with_a_certificate_is_kept(tmp_path: Path, version: ssl.TLSVersion, is_first: bool) -> None:
    """OpenSSL would keep 20,480 of them, each with all certificates that the peer has shown: gigabytes."""
    peer = Peer(tmp_path, version, has_pair=True)
    assert peer.stream.certificate == ("s2.example",)
    if is_first:
        peer.part()
        assert (peer.data, peer.ended) == (b"last words", True)
    peer.stream.write(ANSWER)
    peer.stream.write_eof()
    peer.exchange()
    assert peer.ssl.read() == ANSWER
    if not is_first:
        peer.part()
    peer.stream.connection_lost(None)
    assert peer.faults == []
    del peer.stream
    gc.collect()
    assert peer.context.session_stats()["number"] == 0
