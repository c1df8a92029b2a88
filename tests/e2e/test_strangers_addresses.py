"""Messages to a bare host:port: none goes to this machine or its link, whatever the name is looked up as."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_network
from typing import Any

import pytest

from bester.bridge.forward import Forwarder, is_own
from bester.bridge.limits import Limits
from bester.broker.names import Names
from bester.broker.wire.messages import Forward
from tests.e2e.name_server import name_server
from tests.live import LiveServer, RawClient, head, short_directory

DEADLINE_S = 30.0
ANYWHERE = """
from bester.handlers import App
app = App("anywhere")

@app.handler("anywhere", inline=True)
def anywhere(message):
    return message.send_servers([message.data], 1)
"""
TOML = head(auth="open") + '[federation]\naccept = "open"\n'


async def outcome(forwarder: Forwarder, done: asyncio.Queue[tuple[str, dict[str, Any]]], target: str) -> str:
    forwarder.forward(Forward(1, target, "chat", b"1", {"stranger": True}))
    return (await asyncio.wait_for(done.get(), DEADLINE_S))[0]


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("inside.example", ("127.0.0.1",)),
        ("mixed.example", ("127.0.0.1", "169.254.169.254")),
        ("mapped.example", ("::ffff:127.0.0.1",)),
        ("127.1", ()),
        ("2130706433", ()),
        ("0x7f000001", ()),
        ("localhost", ()),
    ],
)
async def test_name_of_a_neighbour_is_not_connected_to(host: str, addresses: tuple[str, ...]) -> None:
    came: list[bool] = []

    async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(True)
        await reader.readexactly(4)
        writer.close()

    listening = await asyncio.start_server(treat, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    done: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
    with name_server() as server:
        server.knows[host] = addresses
        names = Names(server.lookers)
        forwarder = Forwarder(Limits(), lambda token, result, meta: done.put_nowait((result, meta)), names)
        assert await outcome(forwarder, done, f"{host}:{port}") == "failed:not-allowed"
        assert came == []
        reachable = Forwarder(
            Limits(),
            lambda token, result, meta: done.put_nowait((result, meta)),
            names,
            reachable=(ip_network("127.0.0.0/8"),),
        )
        if addresses != ("::ffff:127.0.0.1",):
            assert await outcome(reachable, done, f"{host}:{port}") != "failed:not-allowed"
        await forwarder.close()
        await reachable.close()
        names.close()
    listening.close()


def test_addresses_of_this_machine() -> None:
    """A route to an address of this machine begins at the same address; no packet is sent."""
    assert is_own("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no route to anywhere, and so no address beyond loopback")
        own = probe.getsockname()[0]
    assert is_own(own)
    assert not is_own("192.0.2.1")


async def test_sender_is_told_and_the_log_has_a_line() -> None:
    async with short_directory() as directory:
        (directory / "anywhere.py").write_text(ANYWHERE)
        server = await LiveServer.start(directory, TOML, handlers=("anywhere:app",))
        try:
            client = await RawClient.login(server, "ann")
            for target in ("127.0.0.1:9", "[::1]:9", "localhost:9", "127.1:9"):
                client.submit("anywhere", target, "m")
                report, _ = await client.until_report("m")
                assert report["payload"]["recipients"] == {target: "failed:not-allowed"}
            assert "127.0.0.1:9" in await server.processes[0].says("send-refused")
            await client.close()
        finally:
            await server.stop()
