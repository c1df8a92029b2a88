"""A client with a chain of hundreds of certificates is refused before TLS takes the chain apart."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from bester.broker.tls_files import Pair, server_context
from bester.broker.tls_stream import MOST_SHAKEN, TlsStream
from tests.authorities import Authority
from tests.unit.test_layer_turns import Reading

TOO_MUCH = f"its handshake has more than {MOST_SHAKEN >> 10} KiB"
FIRST = b"a client's first bytes, which come with the end of the handshake" * 1000


class Above(asyncio.Protocol):
    """Protocol above the stream."""

    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("certificates", [4, 300])
async def test_chain_of_certificates_is_bounded(tmp_path: Path, certificates: int, version: ssl.TLSVersion) -> None:
    """All certificates but the first are the authority's own."""
    authority = Authority(tmp_path)
    authority.issue("127.0.0.1")
    cert, key = authority.issue("other.example", file="client")
    cert.write_bytes(cert.read_bytes() + authority.ca.read_bytes() * (certificates - 1))
    context, _ = server_context(Pair(tmp_path / "server.pem", tmp_path / "server.key"), authority.ca, time.time())
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    own.check_hostname, own.verify_mode, own.maximum_version = False, ssl.CERT_NONE, version
    own.load_cert_chain(cert, key)
    faults: list[str] = []
    above, below = Above(), Reading()
    stream = TlsStream(above, context, failed=lambda fault: faults.append(str(fault)))
    stream.connection_made(below)  # type: ignore[arg-type]  # a stand-in
    came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = own.wrap_bio(came, out)
    is_shaken = False
    for _ in range(4):
        try:
            client.do_handshake()
            if not is_shaken:
                client.write(FIRST)
            is_shaken = True
        except (ssl.SSLWantReadError, ssl.SSLError):
            pass
        stream.data_received(out.read())
        came.write(below.written)
        below.written = b""
    assert faults == ([] if certificates == 4 else [TOO_MUCH])
    assert above.data == (FIRST if certificates == 4 else b"")
    if certificates == 4:
        assert stream.certificate == ("other.example",)
