"""TLS between real processes: clients, refusals in the words of both sides, servers by certificate, and reload."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bester.client import Client, ConnectFailed, ServerRefused
from tests.authorities import DAY, Authority
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, live_server

ECHO = ("bester.handlers.stock.echo:app",)
SERVERS = """
[servers.s2]
native = "s2.example:1"
tls = true
accept_types = ["echo"]
[servers.s3]
native = "s3.example:1"
tls = true
accept_types = ["nothing"]
[servers.here]
native = "127.0.0.1:1"
tls = true
accept_types = ["echo"]
"""


def tls_of(server: LiveServer) -> str:
    line = next(line for line in server.processes[0].lines if " serves " in line)
    return next(part.strip() for part in line.split(",") if part.strip().startswith("tls://"))


@asynccontextmanager
async def serving(directory: Path, toml: str = "", native: str = "") -> AsyncIterator[tuple[LiveServer, Authority]]:
    authority = Authority(directory)
    authority.issue("127.0.0.1")
    section = f'[native.tls]\nlisten = "127.0.0.1:0"\ncert = "{directory}/server.pem"\nkey = "{directory}/server.key"\n'
    async with live_server(toml, handlers=ECHO, native=section + native) as server:
        yield server, authority


def client_of(address: str, user: str = "alice", **options: Any) -> Client:
    return Client(address, user=user, password="secret", random=lambda: 0.0, **options)


async def test_clients_and_their_refusals(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, authority):
        tls, log = tls_of(server), server.processes[0]
        async with asyncio.timeout(2 * DEADLINE_S), client_of(tls, ca=authority.ca, ack=True) as client:
            big = {"text": "x" * 1_000_000}
            report = asyncio.create_task(client.send("echo", big))
            message = await client.receive()
            assert message.data == big
            await client.ack(message)
            assert (await report).good

        other = Authority(tmp_path, "other")
        with pytest.raises(ConnectFailed, match="signed by no authority trusted here"):
            await client_of(tls, ca=other.ca).start()
        await log.says("its authority is not trusted there")
        with pytest.raises(ConnectFailed, match="is for another host, and not for localhost"):
            await client_of(tls.replace("127.0.0.1", "localhost"), ca=authority.ca).start()
        await log.says("it is for another name")
        with pytest.raises(ServerRefused, match="speaks TLS there: write tls://127"):
            await client_of(tls.removeprefix("tls://")).start()
        await log.says("it speaks plain text to a listener of TLS")
        with pytest.raises(ConnectFailed, match="plain text is spoken there, and not TLS"):
            await client_of(f"tls://{server.address}", ca=authority.ca).start()
        await log.says("it speaks TLS to a listener of plain text")

        host, _, port = tls.removeprefix("tls://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(DEADLINE_S):
            writer.write(b"\x16\x03")  # and never more: the time of a first frame counts
            while await reader.read(100):
                pass
        writer.close()
        await log.says("ended before the TLS handshake")


async def test_log_names_the_address_of_a_handshake_without_room(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue("127.0.0.1")
    section = f'[native.tls]\nlisten = "127.0.0.1:0"\ncert = "{tmp_path}/server.pem"\nkey = "{tmp_path}/server.key"\n'
    async with (
        live_server(native=f"max_connections = 1\n{section}") as server,
        asyncio.timeout(2 * DEADLINE_S),
        client_of(server.address),
    ):
        with pytest.raises((ConnectFailed, ServerRefused)):
            await client_of(tls_of(server), ca=authority.ca).start()
        line = await server.processes[0].says("the connection was ended before the TLS handshake")
        assert "TLS with 127.0.0.1 failed" in line and "address='?'" not in line, line


async def test_reload_keeps_connections_and_refuses_faults(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, authority), asyncio.timeout(4 * DEADLINE_S):
        tls, log = tls_of(server), server.processes[0]
        async with client_of(tls, ca=authority.ca) as client:
            later = Authority(tmp_path, "later")
            later.issue("127.0.0.1")
            log.send_signal(signal.SIGHUP)
            await log.says("the certificates were read again")
            assert (await client.send("echo", 1)).good
            async with client_of(tls, "bob", ca=later.ca) as bob:
                assert (await bob.send("echo", 2)).good
            with pytest.raises(ConnectFailed, match="signed by no authority"):
                await client_of(tls, ca=authority.ca).start()

            (tmp_path / "server.key").write_text("no key")
            log.send_signal(signal.SIGHUP)
            await log.says("those before stay in use")
            async with client_of(tls, "carol", ca=later.ca) as carol:
                assert (await carol.send("echo", 3)).good
            assert (await client.send("echo", 4)).good


async def submit(address: str, ca: Path, pair: tuple[Path, Path] | None, claims: str) -> dict[str, Any]:
    """Send a server's message of type echo with the ssl module alone; return the report."""
    context = ssl.create_default_context(cafile=ca)
    if pair is not None:
        context.load_cert_chain(*pair)
    host, _, port = address.removeprefix("tls://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        header = {"scope": "server", "server": claims, "id": "m1"}
        body = json.dumps({"header": header, "payload": {"type": "echo", "data": 1, "id": "m1"}}).encode()
        writer.write(struct.pack("<I", len(body)) + body)
        (length,) = struct.unpack("<I", await reader.readexactly(4))
        payload: dict[str, Any] = json.loads(await reader.readexactly(length))["payload"]
        return payload
    finally:
        writer.transport.abort()


async def test_server_is_known_by_its_certificate_alone(tmp_path: Path) -> None:
    ca = f'client_ca = "{tmp_path}/authority.pem"\n'
    async with serving(tmp_path, SERVERS, ca) as (server, authority), asyncio.timeout(4 * DEADLINE_S):
        tls = tls_of(server)
        second = authority.issue("s2.example", file="s2")
        third = authority.issue("s3.example", file="s3")
        wild = authority.issue("*.example", file="wild")
        accepted = await submit(tls, authority.ca, second, "s2")
        assert accepted.get("reason") != "not-allowed"  # echo has no user to answer, which is its own affair
        for pair, claims in ((third, "s2"), (wild, "s2"), (None, "s2"), (None, "here")):
            refused = await submit(tls, authority.ca, pair, claims)
            assert refused["reason"] == "not-allowed", (pair, claims)
        stranger = Authority(tmp_path, "stranger").issue("s2.example", file="forged")
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await submit(tls, authority.ca, stranger, "s2")
        await server.processes[0].says("its certificate is signed by no authority in client_ca")


async def test_certificate_with_a_name_that_is_no_text_ends_the_connection_in_one_line(tmp_path: Path) -> None:
    """Python cannot read such a certificate, also where another name in it is that of a listed server."""
    ca = f'client_ca = "{tmp_path}/authority.pem"\n'
    async with serving(tmp_path, SERVERS, ca) as (server, authority), asyncio.timeout(4 * DEADLINE_S):
        names = b"".join(b"\x82" + bytes([len(name)]) + name for name in (b"s2.example\xff", b"s2.example"))
        odd = authority.issue(file="odd", encoded=b"0" + bytes([len(names)]) + names)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await submit(tls_of(server), authority.ca, odd, "s2")
        await server.processes[0].says("its certificate cannot be read: a name in it is no text")
        assert not any("Traceback" in line for line in server.processes[0].lines)
        again = await submit(tls_of(server), authority.ca, authority.issue("s2.example", file="s2"), "s2")
        assert again.get("reason") != "not-allowed"


async def test_message_goes_to_server_over_tls(tmp_path: Path) -> None:
    """The deployment in small: a handler here sends to a server there, which knows this one by its certificate."""
    handler = tmp_path / "onward.py"
    handler.write_text(
        "from bester.handlers import App\napp = App()\n"
        '@app.handler("onward")\ndef onward(message):\n'
        '    return message.send_servers(["far"], raw=message.raw, as_type="chat")\n'
    )
    there, here = tmp_path / "there", tmp_path / "here"
    for directory in (there, here):
        directory.mkdir()
    authority = Authority(tmp_path)
    cert, key = authority.issue("127.0.0.1", file="far")
    mine, my_key = authority.issue("s1.example", file="near")
    far_tls = f'[native.tls]\nlisten = "127.0.0.1:0"\ncert = "{cert}"\nkey = "{key}"\nclient_ca = "{authority.ca}"\n'
    near = '[servers.near]\nnative = "s1.example:1"\ntls = true\naccept_types = ["chat"]\n'
    async with (
        live_server(near, handlers=("bester.handlers.stock.chat:app",), name="far", native=far_tls) as far,
        asyncio.timeout(4 * DEADLINE_S),
    ):
        address = tls_of(far)
        route = (
            f'[servers.far]\nnative = "{address}"\nca = "{authority.ca}"\n'
            f'[handlers.onward]\ncommand = ["sh", "-c", "cd {tmp_path} && exec {BESTER} handler onward:app"]\n'
        )
        near_tls = f'[native.tls]\ncert = "{mine}"\nkey = "{my_key}"\n'
        async with live_server(route, name="s1", native=near_tls) as s1:
            await s1.has_type("onward")
            async with client_of(address, "bob", ca=authority.ca) as bob, client_of(s1.address) as alice:
                for number in range(20):
                    report = await alice.send("onward", {"to": "bob", "text": str(number)})
                    assert report.good, report
                texts = [(await bob.receive()).data["text"] for _ in range(20)]
                assert texts == [str(number) for number in range(20)]


async def test_expired_certificate_is_refused_at_the_start(tmp_path: Path) -> None:
    Authority(tmp_path).issue("127.0.0.1", end=-DAY / 2)
    (tmp_path / "bester.toml").write_text(
        '[native.tls]\nlisten = "127.0.0.1:0"\ncert = "server.pem"\nkey = "server.key"\n'
    )
    process = await Process.start(BESTER, "up", cwd=tmp_path)
    await asyncio.wait_for(process.process.wait(), DEADLINE_S)
    assert await process.end() == 2
    assert any("the certificate has expired on" in line for line in process.lines), process.lines
