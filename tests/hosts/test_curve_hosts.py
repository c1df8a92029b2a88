"""Servers of different owners on hosts of their own, linked by CURVE; and a host that does not belong there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.hosts.stand import Host, hosts, missing, sniffed
from tests.keyed import new_pair
from tests.live import BESTER, DEADLINE_S, Process, short_directory

WHY_NOT = missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

NAMES = ("S1", "S2", "S3")
HANDLERS = {"S1": ("M1", "M2"), "S2": ("M1",), "S3": ("M1",)}
WORDS = "the words of a message between friends"


def write_server(host: Host, name: str, handlers: tuple[str, ...], parts: str) -> None:
    """Write a server's file; `parts` are its parties and servers."""
    story = f"bester.handlers.stories.deployment.{name.lower()}:app"
    declared = "".join(f'[handlers.{each}]\napp = "{story}"\n' for each in handlers)
    (host.directory / "bester.toml").write_text(
        f'[server]\nname = "{name}"\ndata_dir = "d"\n[native]\ntcp4 = "127.0.0.1:2223"\n[accounts]\nauth = "open"\n'
        f'[fabric]\nlisten = ["ipc://DATA_DIR/f.sock", "tcp://{host.address}:2225"]\n{declared}{parts}'
    )


def listed(name: str, address: str, key: str) -> str:
    """Return the lines about another server."""
    return f'[servers.{name}]\nfabric = "tcp://{address}:2225"\nkey = "{key}"\naccept_types = ["M1"]\n'


@asynccontextmanager
async def running(*each: Host) -> AsyncIterator[list[Process]]:
    """Run `bester up` on hosts, until each serves."""
    servers = [await host.start(BESTER, "up") for host in each]
    try:
        for server in servers:
            await server.says(" serves ")
        yield servers
    finally:
        statuses = [await server.end() for server in servers]
    assert statuses == [0] * len(servers), [server.lines for server in servers]


def keys_of(each: list[Host]) -> list[str]:
    """Make the servers' pairs, as `bester keys` does before the first start, and return the public keys."""
    for host in each:
        (host.directory / "bester.toml").write_text('[server]\ndata_dir = "d"\n')
    return [host.bester("keys").splitlines()[0] for host in each]


async def test_the_deployment_over_three_hosts_and_what_the_link_shows() -> None:
    async with short_directory() as directory:
        with hosts(3, directory) as (hub, each):
            keys = keys_of(each)
            for place, (host, name) in enumerate(zip(each, NAMES, strict=True)):
                others = "".join(
                    listed(NAMES[other], each[other].address, keys[other])
                    for other in (place - 1, place + 1)
                    if 0 <= other < len(NAMES)
                )
                write_server(host, name, HANDLERS[name], others)
            seen = directory / "frames"
            async with sniffed(hub, seen), running(*each) as servers:
                for server, name in zip(servers, NAMES, strict=True):
                    for type_ in HANDLERS[name]:
                        await server.says(f"types=['{type_}']")
                await servers[0].says("server-reached server='S2'")
                await servers[1].says("server-reached server='S3'")
                password = {"BESTER_PASSWORD": "x"}
                listener = await each[2].start(BESTER, "listen", "--user", "U2", "--json", env=password)
                await listener.says("listening at")
                data = f'{{"text": "{WORDS}"}}'
                sent = await asyncio.to_thread(each[0].bester, "send", "--user", "U1", "M1", data, env=password)
                assert "good" in sent or "delivered" in sent or "queued" in sent, sent
                await listener.says(WORDS)
                await listener.end(signal.SIGKILL)
            frames = seen.read_bytes()
            assert len(frames) > 2000 and b"CURVE" in frames
            for word in (WORDS.encode(), b"friends", b"heartbeat", b"server"):
                assert word not in frames, word


async def test_a_host_that_does_not_belong_there_is_refused_and_both_sides_say_why() -> None:
    async with short_directory() as directory:
        with hosts(2, directory) as (_, (home, stranger)):
            ours, theirs = keys_of([home, stranger])
            write_server(home, "S1", ("M1",), "")
            async with running(home) as (server,):
                write_server(stranger, "S4", (), listed("S1", home.address, ours))  # a key that nobody lists
                async with running(stranger) as (other,):
                    why = await other.says("server-lost")
                    assert f"does not know our key {theirs}" in why, why
                    line = await server.says("fabric-refused")
                    assert theirs in line and stranger.address in line and "not known here" in line, line
                wrong = new_pair().public
                write_server(stranger, "S4", (), listed("S1", home.address, wrong))  # not the key of S1
                async with running(stranger) as (other,):
                    assert "that is not the key of S1" in await other.says("server-lost")
                    # The first tries may have left before their address was looked at.
                    await server.says(f"address='{stranger.address}' why='it has another public key")
            write_server(home, "S1", ("M1",), listed("S4", stranger.address, theirs))
            async with running(home) as (server,):
                write_server(stranger, "S2", (), listed("S1", home.address, ours))  # the name of another
                async with running(stranger) as (other,):
                    assert "this key is that of server 'S4', and not of 'S2'" in await other.says("server-lost")
                    line = await server.says("hello-refused")
                    assert theirs in line and "'S4'" in line, line


async def test_a_handler_on_another_host_serves_until_its_key_is_removed() -> None:
    async with short_directory() as directory:
        with hosts(2, directory) as (_, (home, away)):
            (ours,) = keys_of([home])
            key = away.bester("keys", "new", "h.key").splitlines()[0]
            party = f'[fabric.parties.h]\nkey = "{key}"\nrole = "handler"\ntypes = ["echo", "other"]\n'
            write_server(home, "S1", (), party)
            fabric = ("--fabric", f"tcp://{home.address}:2225", "--key", "h.key", "--server-key", ours)
            async with running(home) as (server,):
                handler = await away.start(BESTER, "handler", "bester.handlers.stock.echo:app", *fabric)
                await handler.says("serves echo at S1")
                password = {"BESTER_PASSWORD": "x"}
                sent = await asyncio.to_thread(home.bester, "send", "--user", "U1", "echo", '{"n": 1}', env=password)
                assert "good" in sent or "delivered" in sent, sent
                refused = await away.start(BESTER, "handler", "bester.handlers.stock.chat:app", *fabric)
                assert "this key is not for the type 'chat'" in await refused.says("refuses this handler")
                assert await asyncio.wait_for(refused.process.wait(), DEADLINE_S) == 1
                (away.directory / "b.toml").write_text('[native]\ntcp4 = "127.0.0.1:2223"\n')
                bridge = await away.start(BESTER, "bridge", "-c", "b.toml", *fabric)
                assert "for a handler, and not for a bridge" in await bridge.says("refuses this bridge")
                assert await asyncio.wait_for(bridge.process.wait(), DEADLINE_S) == 1
                write_server(home, "S1", (), "")
                server.send_signal(signal.SIGHUP)
                await handler.says("is not known here")
                await handler.says("does not know our key")
                assert key in await server.says("fabric-refused")
                await handler.end()
                assert Path(away.directory / "h.key").stat().st_mode & 0o777 == 0o600


async def test_the_example_works_as_its_page_says() -> None:
    example = Path(__file__).parents[2] / "examples" / "federation"
    async with short_directory() as directory:
        with hosts(2, directory) as (_, (t, g)):
            blocks = {}
            for host, name in ((t, "t"), (g, "g")):
                (host.directory / "bester.toml").write_text((example / f"{name}.toml").read_text())
                _, _, block = host.bester("keys").partition("\n\n")
                assert "accept_types = []" in block
                blocks[name] = block.replace("THIS-HOST", host.address).replace(
                    "accept_types = []", 'accept_types = ["english"]'
                )
            for host, other, user in ((t, "g", "T"), (g, "t", "G")):
                with (host.directory / "bester.toml").open("a") as file:
                    file.write(blocks[other])
                host.bester("user", "add", user, "--password-stdin", given="secret\n")
            password = {"BESTER_PASSWORD": "secret"}
            async with running(t, g) as servers:
                await servers[0].says("server-reached")
                await servers[1].says("joined role='server' name='t.example'")
                await servers[1].says("'english'")
                listener = await g.start(BESTER, "listen", "--user", "G", env=password)
                await listener.says("listening at")
                letter = '{"to": "G@g.example", "text": "Hello, my friend!"}'
                await asyncio.to_thread(t.bester, "send", "--user", "T", "english", letter, env=password)
                await listener.says("Hello, my friend!")
                await listener.end(signal.SIGKILL)
