"""A TLS stream on real sockets, on both kinds of event loop: data, ends, and what a peer does wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bester.broker.tls_faults import TlsError
from bester.broker.tls_files import Pair, client_context, server_context
from bester.broker.tls_stream import TlsStream, connect_tls
from tests.authorities import DAY, Authority
from tests.kernel_buffers import most_bytes_held

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
DEADLINE_S = 30.0
HOST = "127.0.0.1"


class End(asyncio.Protocol):
    """End of a stream, which notes everything."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.transport: Any = None
        self.data = bytearray()
        self.opened = self.peer_ended = self.lost = False
        self.error: Exception | None = None
        self.faults: list[str] = []
        self.news = asyncio.Condition()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.echo:
            self.transport.write(data)

    def eof_received(self) -> bool:
        self.peer_ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.error = True, exc

    async def until(self, what: Callable[[End], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not what(self):
                await asyncio.sleep(0.005)  # a poll; the deadline is far beyond


class Scene:
    """A server of streams; `ends` are its ends of all connections."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self.cert, self.key = self.authority.issue(HOST, "localhost")
        self.ends: list[End] = []
        self.clients: list[End] = []
        self.port = 0

    async def serve(self, context: ssl.SSLContext, *, echo: bool = False) -> asyncio.Server:
        def make() -> TlsStream:
            end = End(echo)
            self.ends.append(end)
            return TlsStream(
                end,
                context,
                plain_answer=b"plain!",
                opened=lambda _: setattr(end, "opened", True),
                failed=lambda fault: end.faults.append(str(fault)),
            )

        server = await asyncio.get_running_loop().create_server(make, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def context(self) -> ssl.SSLContext:
        return server_context(Pair(self.cert, self.key), None, time.time())[0]

    async def dial(self, ca: Path | None = None, host: str = HOST, handshake_s: float = DEADLINE_S) -> End:
        trusted = client_context("ca", ca or self.authority.ca)
        client = await connect_tls(End, (HOST,), self.port, DEADLINE_S, trusted, host, handshake_s)
        self.clients.append(client)
        if self.ends:
            await self.ends[-1].until(lambda end: end.opened)
        return client

    async def clean(self) -> None:
        """Cut every connection, and wait until it is gone."""
        for end in [*self.ends, *self.clients]:
            end.transport.abort()
            await end.until(lambda each: each.lost)


def play(kind: str, scene: Scene, story: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(2 * DEADLINE_S):
            await story()
            await scene.clean()

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(within())


@pytest.fixture(params=sorted(LOOPS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_large_data_both_ways_in_order(kind: str, scene: Scene) -> None:
    async def story() -> None:
        server = await scene.serve(scene.context(), echo=True)
        client = await scene.dial()
        sent = b"".join(b"%08d" % number for number in range(500_000))  # 4 MB
        client.transport.write(sent)
        await client.until(lambda end: len(end.data) >= len(sent))
        assert bytes(client.data) == sent == bytes(scene.ends[0].data)
        assert client.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "bester/1"
        client.transport.close()
        await scene.ends[0].until(lambda end: end.peer_ended)
        assert not scene.ends[0].transport.get_extra_info("truncated")
        server.close()

    play(kind, scene, story)


def test_stream_ends_in_one_direction_alone(kind: str, scene: Scene) -> None:
    """A client that has sent everything still gets answers, and knows from the notice that nothing was cut off."""

    async def story() -> None:
        server = await scene.serve(scene.context())
        client = await scene.dial()
        client.transport.write(b"the last words")
        here = scene.ends[0]
        await here.until(lambda end: end.data == b"the last words")
        here.transport.write(b"answer")
        here.transport.write_eof()
        await client.until(lambda end: end.peer_ended)
        assert client.data == b"answer"
        assert not client.transport.get_extra_info("truncated")
        client.transport.write(b"late")  # is dropped by the other end, and harms nothing
        client.transport.close()
        await here.until(lambda end: end.lost)
        assert here.data == b"the last words"
        assert here.faults == []
        server.close()

    play(kind, scene, story)


def test_nothing_counts_as_left_while_peer_does_not_read(kind: str, scene: Scene) -> None:
    async def story() -> None:
        server = await scene.serve(scene.context())
        client = await scene.dial()
        client.transport.pause_reading()
        here = scene.ends[0]
        here.transport.set_write_buffer_limits(high=0)
        total = 0
        while not here.transport.get_write_buffer_size():
            here.transport.write(bytes(256 * 1024))
            total += 256 * 1024
            assert total < most_bytes_held() + 1024 * 1024
        client.transport.resume_reading()
        await here.until(lambda end: not end.transport.get_write_buffer_size())
        await client.until(lambda end: len(end.data) == total)
        client.transport.abort()
        server.close()

    play(kind, scene, story)


def test_end_without_notice_is_cut_off(kind: str, scene: Scene) -> None:
    async def story() -> None:
        server = await scene.serve(scene.context())
        client = await scene.dial()
        client.transport.write(b"half")
        descriptor = os.dup(client.transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as same:
            same.shutdown(socket.SHUT_WR)  # the system's end of the stream, and none of TLS
        await scene.ends[0].until(lambda end: end.peer_ended)
        assert scene.ends[0].transport.get_extra_info("truncated") is True
        assert scene.ends[0].data == b"half"
        client.transport.abort()
        server.close()

    play(kind, scene, story)


@pytest.mark.parametrize(
    ("case", "words", "log"),
    [
        ("wrong authority", "signed by no authority trusted here", "its authority is not trusted there"),
        ("other host", "is for another host, and not for localhost", "it is for another name"),
        ("expired", "has expired", "it has expired"),
        ("not yet valid", "is not valid yet", "not valid there"),
        ("not for servers", "is not made for a server", "not made for this use"),
    ],
)
def test_certificate_is_refused_with_words_on_both_sides(
    kind: str, scene: Scene, tmp_path: Path, case: str, words: str, log: str
) -> None:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    dates = {"expired": (-9 * DAY, -DAY), "not yet valid": (DAY, 9 * DAY)}.get(case, (-DAY, DAY))
    uses = (ExtendedKeyUsageOID.CLIENT_AUTH if case == "not for servers" else ExtendedKeyUsageOID.SERVER_AUTH,)
    cert, key = scene.authority.issue(HOST, file="odd", begin=dates[0], end=dates[1], uses=uses)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    ca = Authority(tmp_path, "stranger").ca if case == "wrong authority" else None

    async def story() -> None:
        server = await scene.serve(context)
        with pytest.raises(TlsError, match=words) as refused:
            await scene.dial(ca, "localhost" if case == "other host" else HOST)
        assert refused.value.unread
        await scene.ends[0].until(lambda end: end.faults)
        assert log in scene.ends[0].faults[0]
        await scene.ends[0].until(lambda end: end.lost)
        server.close()

    play(kind, scene, story)


@pytest.mark.parametrize("first", [b"\x40\x00\x00\x00{", b"G", b"\x16\x03\x09rest", b"\x16\x02\x00"])
def test_plain_text_gets_plain_answer(kind: str, scene: Scene, first: bytes) -> None:
    async def story() -> None:
        server = await scene.serve(scene.context())
        reader, writer = await asyncio.open_connection(HOST, scene.port)
        for byte in first:  # one at a time
            writer.write(bytes([byte]))
            await writer.drain()
        if len(first) < 3:
            writer.write(b"ET /")
        assert await reader.read() == b"plain!"
        assert "speaks plain text" in scene.ends[0].faults[0]
        writer.close()
        await scene.ends[0].until(lambda end: end.lost)
        server.close()

    play(kind, scene, story)


async def test_client_knows_server_of_plain_text(scene: Scene) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"\x10\x00\x00\x00{}")
        writer.close()

    server = await asyncio.start_server(plain, HOST, 0)
    scene.port = server.sockets[0].getsockname()[1]
    with pytest.raises(TlsError, match="plain text is spoken there"):
        await scene.dial()
    await scene.clean()
    server.close()


@pytest.mark.parametrize("answer", [False, True])
async def test_handshake_without_end_ends(scene: Scene, answer: bool) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if not answer:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, HOST, 0)
    scene.port = server.sockets[0].getsockname()[1]
    with pytest.raises(TlsError, match="during the TLS handshake" if answer else "not answered in time"):
        await scene.dial(handshake_s=DEADLINE_S if answer else 0.3)
    await scene.clean()
    server.close()


async def test_garbage_in_stream_ends_connection(scene: Scene) -> None:
    server = await scene.serve(scene.context())
    client = await scene.dial()
    os.write(client.transport.get_extra_info("socket").fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
    await scene.ends[0].until(lambda end: end.lost)
    assert isinstance(scene.ends[0].error, TlsError)
    assert len(scene.ends[0].faults) == 1
    client.transport.abort()
    await scene.clean()
    server.close()


async def test_old_versions_are_refused(scene: Scene) -> None:
    server = await scene.serve(scene.context())
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(HOST, scene.port, ssl=old)
    await scene.ends[0].until(lambda end: end.faults)
    assert "no version of TLS in common" in scene.ends[0].faults[0]
    await scene.clean()
    server.close()
