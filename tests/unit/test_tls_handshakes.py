"""What is costly in a handshake of TLS: a chain of hundreds of certificates is refused before TLS takes the chain
apart, and a key in a large group before one is made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bester.broker.tls_files import Pair, client_context, server_context
from bester.broker.tls_stream import MOST_SHAKEN, MOST_SHOWN, TlsStream
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


@pytest.mark.parametrize("certificates", [4, 300])
async def test_chain_of_certificates_of_a_server_is_bounded(tmp_path: Path, certificates: int) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("127.0.0.1")
    cert.write_bytes(cert.read_bytes() + authority.ca.read_bytes() * (certificates - 1))
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(cert, key)
    faults: list[str] = []
    opened: list[TlsStream] = []
    below = Reading()
    stream = TlsStream(
        Above(), client_context("ca", authority.ca), host="127.0.0.1", opened=opened.append,
        failed=lambda fault: faults.append(str(fault)),
    )  # fmt: skip
    stream.connection_made(below)  # type: ignore[arg-type]  # a stand-in
    came, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = theirs.wrap_bio(came, out, server_side=True)
    for _ in range(4):
        came.write(below.written)
        below.written = b""
        with contextlib.suppress(ssl.SSLError):
            server.do_handshake()
        stream.data_received(out.read())
    assert faults == ([] if certificates == 4 else [f"its handshake has more than {MOST_SHOWN >> 10} KiB"])
    assert bool(opened) == (certificates == 4)


LARGE = "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nGroups = ffdhe8192\n"
"""Configuration of OpenSSL by which programs agree on keys in a group of 8,192 bits alone."""
HELLO = """
import ssl, sys
context, out = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
try:
    context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="h").do_handshake()
except ssl.SSLWantReadError:
    sys.stdout.buffer.write(out.read())
"""
"""Program that writes the first message of a client."""


def said(program: str, **environment: str) -> bytes:
    """Return what a program in Python writes."""
    whole = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", program], env=whole, capture_output=True, check=True).stdout


async def test_no_key_is_made_in_a_large_group_for_a_client(tmp_path: Path) -> None:
    """OpenSSL would take 200 ms for the only message of a stranger."""
    (tmp_path / "openssl.cnf").write_text(LARGE)
    hello = said(HELLO, OPENSSL_CONF=str(tmp_path / "openssl.cnf"))
    if len(hello) < 1024:
        pytest.skip("this OpenSSL has no groups of finite fields")
    context, _ = server_context(Pair(*Authority(tmp_path).issue("127.0.0.1")), None, time.time())
    faults: list[str] = []
    stream = TlsStream(Above(), context, failed=lambda fault: faults.append(str(fault)))
    stream.connection_made(Reading())  # type: ignore[arg-type]  # a stand-in
    stream.data_received(hello)
    assert faults == ["no suitable key share"]


async def test_no_large_group_is_offered_to_a_server(tmp_path: Path) -> None:
    """A server chooses among the groups that are offered, and of TLS 1.2 any numbers with a DHE cipher."""
    context, out = client_context("ca", Authority(tmp_path).ca), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="h").do_handshake()
    assert bytes.fromhex("000a 0004 0002 0017") in out.read()  # supported_groups: P-256
    assert {str(each["name"])[:4] for each in context.get_ciphers()} == {"ECDH", "TLS_"}
