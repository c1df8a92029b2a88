"""Native servers that are listed, moved and removed while a server runs: SIGHUP applies each, in every layout."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from bester.client import Client, Message
from tests.authorities import Authority
from tests.live import DEADLINE_S, LAYOUTS, LiveServer, live_server

LETTERS = ("bester.handlers.stories.letters.english:app",)
TEXT = "x" * 200_000
"""More than a stranger's first frame may have."""


def client_of(server: LiveServer, user: str) -> Client:
    return Client(server.address, user=user, password="secret", ack=True, random=lambda: 0.0)


async def reload(server: LiveServer, base: str, servers: str, says: str = "the configuration was read again") -> None:
    """Write a server's list of others, and have every program but the handlers read the list."""
    (server.directory / "bester.toml").write_text(base + servers)
    for process in server.processes[:2]:
        process.lines.clear()
        process.send_signal(signal.SIGHUP)
    for process in server.processes[:2]:
        await process.says(says)


def base_of(server: LiveServer) -> str:
    return (server.directory / "bester.toml").read_text()


async def write(sender: Client, receiver: Client, to: str) -> Message:
    """Send a letter and return the message at the other end."""
    sending = asyncio.create_task(sender.send("english", {"to": to, "text": TEXT}))
    message = await receiver.receive()
    await receiver.ack(message)
    report = await sending
    assert report.good, report
    return message


def data_of(message: Message) -> Any:
    return message.data["text"]


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_servers_listed_after_the_start_exchange_messages_over_tls(tmp_path: Path, layout: str) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("127.0.0.1")
    section = f'[native.tls]\nlisten = "127.0.0.1:0"\ncert = "{cert}"\nkey = "{key}"\n'
    async with (
        asyncio.timeout(6 * DEADLINE_S),
        live_server(handlers=LETTERS, layout=layout, name="far", native=section) as far,
        live_server(handlers=LETTERS, layout=layout, name="near") as near,
        client_of(far, "bob") as bob,
        client_of(near, "alice") as alice,
    ):
        bases = base_of(near), base_of(far)
        serves = next(line for line in far.processes[0].lines if " serves " in line)
        tls = next(part.strip() for part in serves.split(",") if "tls://" in part)
        assert not (await alice.send("english", {"to": "bob@far", "text": "unlisted"})).good

        accept = 'accept_types = ["english"]\n'
        await reload(near, bases[0], f'[servers.far]\nnative = "{tls}"\nca = "{authority.ca}"\n{accept}')
        await reload(far, bases[1], f'[servers.near]\nnative = "{near.address}"\n{accept}')
        assert data_of(await write(alice, bob, "bob@far")) == TEXT
        assert data_of(await write(bob, alice, "alice@near")) == TEXT

        # A mistake keeps what was.
        absent = f'[servers.far]\nnative = "{tls}"\nca = "{tmp_path}/absent.pem"\n{accept}'
        (near.directory / "bester.toml").write_text(bases[0] + absent)
        bridge = near.processes[0]
        bridge.send_signal(signal.SIGHUP)
        await bridge.says("absent.pem")
        assert data_of(await write(alice, bob, "bob@far")) == TEXT

        # Moved to the plain listener, and removed: neither needs a restart, and no client is dropped.
        await reload(near, bases[0], f'[servers.far]\nnative = "{far.address}"\n{accept}')
        assert data_of(await write(alice, bob, "bob@far")) == TEXT
        await reload(near, bases[0], "")
        assert not (await alice.send("english", {"to": "bob@far", "text": "removed"})).good
        assert not (await bob.send("english", {"to": "alice@near", "text": "removed"})).good


async def test_log_says_why_a_link_to_a_server_ends(tmp_path: Path) -> None:
    async with asyncio.timeout(3 * DEADLINE_S), live_server(handlers=LETTERS, layout="up") as here:
        base = base_of(here)
        listed = "\n[servers.there]\nfabric = 'ipc://{}'\n"
        await reload(here, base, listed.format(tmp_path / "one"))
        await reload(here, base, listed.format(tmp_path / "two"))
        await here.processes[0].says("server-lost server='there' why='its address or key has changed here'")
        await reload(here, base, "")
        await here.processes[0].says("server-lost server='there' why='not listed here any more'")
