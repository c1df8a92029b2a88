"""WebSocket clients of real servers: the same session, limits and reports as on TCP, and who may connect."""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest
from wsproto import WSConnection

from bester.bridge import web_stream
from bester.bridge.standstill import GAP_S
from bester.bridge.web_stream import Unended, WebStream
from bester.broker.config_file import load
from bester.broker.layer_turns import TURN_S, LayerTurns
from bester.broker.wire.codes import ConfigError
from tests.authorities import Authority
from tests.e2e.chromium import browser, needs_chromium
from tests.live import LiveServer, RawClient, live_server

ECHO = "bester.handlers.stock.echo:app"
WEB = 'websocket = "127.0.0.1:0"\nmax_frame = 65536\n'
DEADLINE_S = 60.0
LOGIN = {
    "header": {"scope": "client", "authentication": {"username": "alice", "password": "x"}},
    "payload": {"data": None, "type": "dummy"},
}


class WebClient:
    """A WebSocket that speaks JSON frames."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, frame: Any) -> None:
        await self.socket.send_str(json.dumps(frame))

    async def receive(self) -> Any:
        """Return the next frame; None at the end of the stream."""
        message = await asyncio.wait_for(self.socket.receive(), DEADLINE_S)
        return json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else None

    async def log_in(self, user: str = "alice") -> None:
        header = {"scope": "client", "authentication": {"username": user, "password": "x"}}
        await self.send({"header": header, "payload": {"data": None, "type": "dummy"}})
        assert (await self.receive())["header"]["status"] == "good"

    async def ask(self, type_: str, data: Any, id_: str) -> list[Any]:
        """Send a message; return what comes up to its report."""
        await self.send({"header": None, "payload": {"type": type_, "data": data, "id": id_}})
        came: list[Any] = []
        while not came or came[-1]["payload"].get("id") != id_ or "status" not in came[-1]["header"]:
            came.append(await self.receive())
        return came


@asynccontextmanager
async def web(more: str = "", layout: str = "up") -> AsyncIterator[tuple[LiveServer, str, aiohttp.ClientSession]]:
    """Run a server with a WebSocket listener; yield the listener's URL and a session for clients."""
    async with live_server("", layout, (ECHO,), native=WEB + more) as server, aiohttp.ClientSession() as session:
        line = await server.processes[0].says(" serves ")
        (address,) = [each for each in line.replace(",", " ").split() if each.startswith(("ws://", "wss://"))]
        yield server, address, session


@pytest.mark.parametrize("layout", ["up", "apart"])
async def test_browser_and_tcp_client_have_the_same_session(layout: str) -> None:
    async with web(layout=layout) as (server, address, session), session.ws_connect(address) as socket:
        client = WebClient(socket)
        await client.log_in()
        delivered, report = await client.ask("echo", {"text": "hé"}, "1")
        assert delivered["payload"]["data"] == {"text": "hé"}
        assert (report["header"]["status"], report["payload"]["id"]) == ("good", "1")
        (refused,) = await client.ask("nosuch", 1, "2")
        assert refused["payload"]["reason"] == "unknown-type"
        other = await RawClient.login(server, "alice")
        other.submit("echo", "from afar", "3")
        await other.until_report("3")
        assert (await client.receive())["payload"]["data"] == "from afar"
        other.writer.close()


async def test_large_frames_and_fragments_pass_and_too_large_ones_end_alone() -> None:
    async with web() as (_, address, session):
        async with session.ws_connect(address, max_msg_size=0) as socket:
            client = WebClient(socket)
            await client.log_in()
            text = "x" * 60_000
            delivered, _ = await client.ask("echo", text, "1")
            assert delivered["payload"]["data"] == text
            await socket.ping()
            delivered, _ = await client.ask("echo", 2, "2")
            assert delivered["payload"]["data"] == 2
            await client.send({"payload": {"type": "echo", "data": "y" * 70_000, "id": "3"}})
            report = await client.receive()
            assert report["payload"]["reason"] == "frame-too-large"
            assert await client.receive() is None
        async with session.ws_connect(address) as socket:
            await WebClient(socket).log_in()


async def test_message_in_small_parts_with_a_ping_between_is_one_frame() -> None:
    async with web() as (_, address, _session):
        host, _, port = address.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(HANDSHAKE)
        assert b" 101 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)

        text = json.dumps(LOGIN).encode()
        writer.write(part(text[:50], 1, False))
        await writer.drain()
        writer.write(part(b"are you there", 9) + part(text[50:100], 0, False) + part(text[100:], 0))
        assert await asyncio.wait_for(reader.readexactly(2 + 13), DEADLINE_S) == b"\x8a\x0dare you there"
        head = await asyncio.wait_for(reader.readexactly(2), DEADLINE_S)
        assert head[0] == 0x81
        size = head[1] if head[1] < 126 else struct.unpack(">H", await reader.readexactly(2))[0]
        assert json.loads(await asyncio.wait_for(reader.readexactly(size), DEADLINE_S))["header"]["status"] == "good"
        writer.close()


class Below:
    """A transport that is a list; `stuck`: its peer does not read."""

    def __init__(self) -> None:
        self.written = b""
        self.stuck = self.ended = self.closed = self.paused = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return len(self.written) if self.stuck else 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def part(data: bytes, op: int, last: bool = True) -> bytes:
    """Return a masked part of a message, as a browser sends it."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    return bytes([op | (0x80 if last else 0)]) + size + bytes(4) + data


def turns_of_loop() -> LayerTurns:
    """Return turns that take no time, so that nothing waits."""
    return LayerTurns(lambda: 0.0, asyncio.get_running_loop().call_soon)


def opened(unended: Unended, refused: Callable[[str], None] = lambda why: None) -> tuple[WebStream, Below]:
    """Return a stream whose handshake is done, over a list."""
    below = Below()
    stream = WebStream(asyncio.Protocol(), unended=unended, turns=turns_of_loop(), max_frame=1000, refused=refused)
    stream.connection_made(below)  # type: ignore[arg-type]  # as much of a transport as the stream needs
    stream.data_received(HANDSHAKE)
    assert b" 101 " in below.written
    below.written = b""
    return stream, below


async def test_messages_that_have_begun_are_bounded_in_bytes_over_all_connections() -> None:
    unended = Unended(1500, 60.0)
    (first, _), (second, below) = opened(unended), opened(unended)
    first.data_received(part(b"x" * 900, 1, False))
    second.data_received(part(b"x" * 500, 1, False))
    assert (unended.held_bytes, below.closed) == (1400, False)
    for _ in range(10_000):
        first.data_received(part(b"", 0, False))  # an empty part costs nothing
    second.data_received(part(b"x" * 200, 0, False))
    assert b"have begun and not ended" in below.written
    assert unended.held_bytes == 900
    first.connection_lost(None)
    assert unended.held_bytes == 0


async def test_message_that_takes_too_long_ends_the_connection() -> None:
    stream, below = opened(Unended(1500, 0.01))
    stream.data_received(part(b"x", 1, False))
    async with asyncio.timeout(30.0):
        while b"a message took too long" not in below.written:
            await asyncio.sleep(0.01)
    stream, below = opened(Unended(1500, 60.0))
    stream.data_received(part(b"x", 1, False) + part(b"y", 0))
    assert below.written == b""


async def test_rest_of_a_message_that_waited_for_a_stopped_process_is_read_first() -> None:
    stream, below = opened(Unended(1500, 0.01))
    stream.data_received(part(b"x", 1, False))
    time.sleep(GAP_S + 0.1)  # nothing of this process runs
    await asyncio.sleep(0.01)
    assert below.written == b""
    stream.data_received(part(b"y", 0) + part(b"x", 1, False))
    async with asyncio.timeout(30.0):
        while b"a message took too long" not in below.written:
            await asyncio.sleep(0.01)


async def test_message_takes_too_long_also_where_the_process_stands_still_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_stream, "GAP_S", 0.1)
    monkeypatch.setattr(web_stream, "AFTER_S", 0.01)
    stream, below = opened(Unended(1500, 0.01))
    stream.data_received(part(b"x", 1, False))
    for _ in range(3):
        time.sleep(0.2)  # nothing of this process runs
        await asyncio.sleep(0.001)
    assert b"a message took too long" in below.written


async def test_pings_of_a_peer_that_does_not_read_are_not_answered_without_end() -> None:
    stream, below = opened(Unended(1500, 60.0))
    stream.data_received(part(b"a", 9))
    assert below.written == b"\x8a\x01a"
    below.stuck = True
    for _ in range(1000):
        stream.data_received(part(b"b", 9))
    assert below.written == b"\x8a\x01a"


@pytest.mark.parametrize("more", [part(b"x" * 900, 1) * 30, part(b"\nHost: " + b"x" * 300, 1)], ids=["much", "a host"])
async def test_what_comes_behind_the_end_of_a_stream_is_no_request(more: bytes) -> None:
    """The server has ended the stream, over a frame that is too long, and the peer goes on: it is told nothing else."""
    told: list[str] = []
    stream, below = opened(Unended(1500, 60.0), told.append)
    stream.close()
    assert below.written == b"\x88\x02\x03\xe8"
    for _ in range(3):
        stream.data_received(more)
    assert below.written == b"\x88\x02\x03\xe8"
    assert told == []


async def test_refused_request_is_read_to_its_end() -> None:
    """Closing with bytes unread would reset the connection, and could take the answer away."""
    below = Below()
    stream = WebStream(asyncio.Protocol(), unended=Unended(1500, 60.0), turns=turns_of_loop())
    stream.connection_made(below)  # type: ignore[arg-type]  # as much of a transport as the stream needs
    for _ in range(3):
        stream.data_received(b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000)
    assert below.written.startswith(b"HTTP/1.1 426 ") and below.written.count(b"HTTP") == 1
    assert (below.ended, below.closed) == (True, False)
    assert not stream.eof_received(), "at the peer's end the transport closes"
    async with asyncio.timeout(DEADLINE_S):
        while not below.closed:  # a peer that does not end
            await asyncio.sleep(0.01)


def test_origin_that_no_browser_sends_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "bester.toml"
    file.write_text('[native]\nwebsocket_origins = ["null", "https://chat.example/"]\n')
    with pytest.raises(ConfigError, match=r":2: \[native\] websocket_origins: 'https://chat\.example/' is no origin"):
        load(file)


@pytest.mark.parametrize(
    ("origin", "listed", "may"),
    [
        (None, "", True),
        ("http://127.0.0.1:8000", "", True),
        ("http://evil.example", "", False),
        ("null", "", False),
        ("null", 'websocket_origins = ["null"]\n', True),
        ("https://chat.example", 'websocket_origins = ["https://chat.example"]\n', True),
        ("https://chat.example.evil", 'websocket_origins = ["https://chat.example"]\n', False),
        ("http://[", "", False),
    ],
)
async def test_only_pages_of_this_host_and_listed_ones_may_connect(origin: str | None, listed: str, may: bool) -> None:
    async with web(listed) as (server, address, session):
        headers = {} if origin is None else {"Origin": origin}
        if may:
            async with session.ws_connect(address, headers=headers) as socket:
                await WebClient(socket).log_in()
            return
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(address, headers=headers)
        assert refused.value.status == 403
        await server.processes[0].says("websocket_origins")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000,
        b"\x16\x03\x01\x00\x05hello",
        struct.pack("<I", 20) + b'{"header":{},"payl":1}',
        struct.pack("<I", 100) + b"{" + b" " * 98 + b"}",  # begins with the letter d
        HANDSHAKE + part(b"{}", 1),  # wsproto loses what comes before its answer
        HANDSHAKE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"),
        HANDSHAKE * 2,
    ],
)
async def test_what_is_no_websocket_is_told_so_and_closed(data: bytes) -> None:
    async with web() as (_, address, session):
        host, _, port = address.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert answer.startswith(b"HTTP/1.1 4")
        writer.close()
        async with session.ws_connect(address) as socket:
            await WebClient(socket).log_in()


async def test_request_that_cannot_be_decoded_is_told_so_and_logged_in_one_line() -> None:
    hosts = (b"\xe4", b"xn--\xff", b"xn--0", b"xn--a-", b"xn--" + b"a" * 200, b"a." * 150, b"h\r\n h")
    requests = [
        *(HANDSHAKE.replace(b"Host: h", b"Host: " + host) for host in hosts),
        HANDSHAKE.replace(b"Connection: ", b"Connection: \xff,"),
        HANDSHAKE.replace(b"Host: h", b"Host: h\r\nSec-WebSocket-Extensions: \xff"),
        HANDSHAKE.replace(b"Host: h", b"Host: h\r\nSec-WebSocket-Protocol: \xff"),
    ]
    async with web() as (server, address, _):
        host, _, port = address.removeprefix("ws://").rpartition(":")
        for request in requests:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request)
            assert (await asyncio.wait_for(reader.read(), DEADLINE_S)).startswith(b"HTTP/1.1 426 "), request
            writer.close()
        assert not any("Traceback" in line for line in server.processes[0].lines)


async def test_host_that_is_no_name_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a tenth of a second for a request of 16 KiB, from anybody."""
    read: list[bytes] = []
    stream = WebStream(
        asyncio.Protocol(), unended=Unended(1500, 60.0), turns=LayerTurns(lambda: 0.0, lambda call: None)
    )
    stream.connection_made(Below())  # type: ignore[arg-type]  # a stand-in
    monkeypatch.setattr(WSConnection, "receive_data", lambda _, data: read.append(data))
    host = b".".join([b"xn--" + b"a" * 1000] * 10)
    for part_ in (HANDSHAKE[:22], host[:60], host[60:]):
        stream.data_received(part_)
    assert read == [b"GET / HTTP/1.1\r\nHost: ", host[:60]]


@pytest.mark.parametrize("header", [b"a:b\r\n" * 300, b"Connection: " + b"a," * 300 + b"\r\n"], ids=["lines", "values"])
async def test_request_of_many_parts_is_refused_unread(monkeypatch: pytest.MonkeyPatch, header: bytes) -> None:
    """Each part is taken apart by itself: a request of 16 KiB took 20 ms, from anybody."""
    read: list[bytes] = []
    monkeypatch.setattr(WSConnection, "receive_data", lambda _, data: read.append(data))
    below = Below()
    stream = WebStream(asyncio.Protocol(), unended=Unended(1500, 60.0), turns=turns_of_loop())
    stream.connection_made(below)  # type: ignore[arg-type]  # as much of a transport as the stream needs
    stream.data_received(HANDSHAKE[:-2] + header + b"\r\n")
    assert below.written.startswith(b"HTTP/1.1 426 ")
    assert read == []


async def test_requests_of_many_connections_are_taken_apart_in_turns_of_the_loop() -> None:
    calls: list[Callable[[], None]] = []
    ticks = count()
    turns = LayerTurns(lambda: next(ticks) * TURN_S, calls.append)  # each step takes all the time of a turn
    belows = [Below() for _ in range(3)]
    for below in belows:
        stream = WebStream(asyncio.Protocol(), unended=Unended(1500, 60.0), turns=turns)
        stream.connection_made(below)  # type: ignore[arg-type]  # as much of a transport as the stream needs
        stream.data_received(HANDSHAKE)
    assert [b" 101 " in below.written for below in belows] == [True, False, False]
    assert all(below.paused for below in belows[1:])
    while calls:
        calls.pop(0)()
    assert all(b" 101 " in below.written and not below.paused for below in belows)


async def test_binary_message_ends_the_connection_with_a_reason() -> None:
    async with web() as (_, address, session), session.ws_connect(address) as socket:
        await WebClient(socket).log_in()
        await socket.send_bytes(b"{}")
        message = await asyncio.wait_for(socket.receive(), DEADLINE_S)
        assert (message.type, message.data, message.extra) == (
            aiohttp.WSMsgType.CLOSE,
            1003,
            "a frame is a text message",
        )


async def test_over_tls_with_the_native_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("127.0.0.1")
    tls = f'[native.tls]\ncert = "{cert}"\nkey = "{key}"\n'
    async with web(tls) as (server, address, session):
        trust = ssl.create_default_context(cafile=str(authority.ca))
        async with session.ws_connect(address, ssl=trust) as socket:
            client = WebClient(socket)
            await client.log_in()
            delivered, _ = await client.ask("echo", "x" * 30_000, "1")
            assert delivered["payload"]["data"] == "x" * 30_000
        host, _, port = address.removeprefix("wss://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"use wss://" in await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()
        line = await server.processes[0].says("it speaks plain text to a listener of TLS")
        assert "TLS with 127.0.0.1 failed" in line


PAGE = Path(__file__).parents[2] / "examples" / "web"


@needs_chromium
async def test_two_browsers_write_to_each_other(tmp_path: Path) -> None:
    """The chat page of examples/web, served from another port of this host."""
    files = web_app()
    runner = aiohttp.web.AppRunner(files)
    await runner.setup()
    try:
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}/chat.html"
        async with (
            live_server("", "up", ("bester.handlers.stock.chat:app",), native='websocket = "127.0.0.1:0"\n') as server,
            browser(tmp_path / "a") as alice, browser(tmp_path / "b") as bob,
        ):  # fmt: skip
            line = await server.processes[0].says(" serves ")
            (address,) = [each for each in line.replace(",", " ").split() if each.startswith("ws://")]
            for page, user in ((alice, "alice"), (bob, "bob")):
                await page.go_to(base)
                await page.evaluate(
                    f"$('server').value = {address!r}; $('user').value = {user!r}; $('password').value = 'x'"
                )
                await page.click("#login", "Log in")
                await page.says("#state", f"logged in as {user}")
            for page, to, text in ((alice, "bob", "<b>hi</b>"), (bob, "alice", "ho ✓")):
                await page.evaluate(f"$('to').value = {to!r}; $('text').value = {text!r}")
                await page.click("#say", "Send")
            await bob.says("#talk", "alice: <b>hi</b>")
            await alice.says("#talk", "bob: ho ✓")
            await alice.says("#talk", "to bob: <b>hi</b> ✓")
            await alice.evaluate("$('to').value = 'nobody at all'; $('text').value = 'x'")
            await alice.click("#say", "Send")
            await alice.says("#talk", "✗")
            assert await bob.evaluate("document.querySelectorAll('#talk b').length") == 0
            await alice.evaluate("$('user').value = 'anna'")  # on the same page: the end of alice's connection is old
            await alice.click("#login", "Log in")
            await alice.says("#state", "logged in as anna")
            await bob.evaluate("$('to').value = 'anna'; $('text').value = 'still there?'")
            await bob.click("#say", "Send")
            await alice.says("#talk", "bob: still there?")
            assert await alice.evaluate("$('state').textContent") == "logged in as anna"
            assert await alice.evaluate("$('say').hidden") is False
            await alice.evaluate("$('server').value = 'ftp://here'")
            await alice.click("#login", "Log in")
            await alice.says("#state", "is no address")
            assert alice.console == bob.console == []
    finally:
        await runner.cleanup()


def web_app() -> aiohttp.web.Application:
    files = aiohttp.web.Application()
    files.router.add_static("/", PAGE)
    return files
