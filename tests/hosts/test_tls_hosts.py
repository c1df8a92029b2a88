"""The deployment over native TLS on hosts of their own; and hosts that do not belong there."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.authorities import DAY, Authority
from tests.hosts.stand import Host, hosts, missing, sniffed
from tests.live import BESTER, DEADLINE_S, Process, short_directory

WHY_NOT = missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

EXAMPLE = Path(__file__).parents[2] / "examples" / "deployment"
STRANGER = (sys.executable, str(Path(__file__).with_name("stranger.py")))
PASSWORD = {"BESTER_PASSWORD": "secret"}
WORDS = "the words of a message between friends"


def tls_address(host: Host) -> str:
    """Return the URL of a host's TLS listener."""
    return f"tls://{host.address}:2224"


def tls_section(host: Host, authority: Authority) -> str:
    """Issue a certificate for a host, and return the lines of its TLS listener, which asks servers for theirs."""
    cert, key = authority.issue(host.address, file=f"host-{host.address}")
    pair = f'cert = "{cert}"\nkey = "{key}"\nclient_ca = "{authority.ca}"\n'
    return f'[native.tls]\nlisten = "{host.address}:2224"\n{pair}'


def write_example(each: list[Host], authority: Authority) -> None:
    """Write the files of examples/deployment, with the addresses alone changed: from local ones to TLS."""
    for number, host in enumerate(each, 1):
        text = (EXAMPLE / f"s{number}.toml").read_text()
        for other, there in enumerate(each, 1):
            local = f'fabric = "ipc://bester-data/s{other}/fabric.sock"'
            text = text.replace(local, f'native = "{tls_address(there)}"\nca = "{authority.ca}"')
        local = f'[native]\ntcp4 = "127.0.0.1:223{number}"\n'
        assert local in text and "ipc:" not in text.replace(local, "")
        (host.directory / "bester.toml").write_text(text.replace(local, tls_section(host, authority)))


@asynccontextmanager
async def running(*each: Host, types: tuple[str, ...]) -> AsyncIterator[list[Process]]:
    """Run `bester up` on hosts, until each has a handler of its type."""
    servers = [await host.start(BESTER, "up") for host in each]
    try:
        for server, type_ in zip(servers, types, strict=True):
            await server.says(" serves ")
            await server.says(f"types=['{type_}']")
        yield servers
    finally:
        statuses = [await server.end() for server in servers]
    assert statuses == [0] * len(servers), [server.lines for server in servers]


async def test_the_deployment_over_tls_and_what_the_link_shows() -> None:
    async with short_directory() as directory:
        with hosts(4, directory) as (hub, (*each, friend)):
            authority = Authority(directory)
            write_example(each, authority)
            for host, user in ((each[0], "U1"), (each[2], "U2")):
                host.bester("user", "add", user, "--password-stdin", given="secret\n")
            ca, seen = ("--ca", str(authority.ca)), directory / "frames"
            async with sniffed(hub, seen), running(*each, types=("M2", "M1", "M1")) as servers:
                await servers[0].says("types=['M1']")
                listen = ("listen", "--to", tls_address(each[2]), *ca, "--user", "U2", "--json")
                listener = await friend.start(BESTER, *listen, env=PASSWORD)
                await listener.says("listening at")
                send = ("send", "--to", tls_address(each[0]), *ca, "--user", "U1", "M1", json.dumps({"text": WORDS}))
                sent = await asyncio.to_thread(friend.bester, *send, env=PASSWORD)
                assert "good" in sent, sent
                path = json.loads(await listener.says(WORDS))["payload"]["data"]["came_by"]
                assert path == ["S1/M1", "S1/M2", "S2/M1"]
                await listener.end(signal.SIGKILL)
            frames = seen.read_bytes()
            # The addresses of the three servers' listeners are in the frames; what they said to each other is not.
            assert len(frames) > 2000 and frames.count(b"\x08\xb0") > 20
            for word in (WORDS, "friends", "came_by", "secret", "header"):
                assert word.encode() not in frames, word


async def answer(host: Host, *arguments: str) -> dict[str, Any] | str:
    """Return the payload that a stranger got as its answer, or why its connection ended."""
    stranger = await host.start(*STRANGER, "send", *arguments)
    assert await asyncio.wait_for(stranger.process.wait(), DEADLINE_S) == 0
    await stranger.end()
    (line,) = stranger.lines
    kind, _, rest = line.partition(" ")
    payload: dict[str, Any] = json.loads(rest)["payload"] if kind == "answer" else {}
    return payload or rest


async def test_a_stranger_that_sends_is_refused_and_both_sides_say_why() -> None:
    async with short_directory() as directory:
        with hosts(3, directory) as (_, (home, second, stranger)):
            authority, other = Authority(directory), Authority(directory, "other")
            listed = f'[servers.S2]\nnative = "{tls_address(second)}"\nca = "{authority.ca}"\naccept_types = ["M1"]\n'
            (home.directory / "bester.toml").write_text(
                f'[server]\nname = "S1"\ndata_dir = "d"\n{tls_section(home, authority)}{listed}'
                '[handlers.M1]\napp = "bester.handlers.stories.deployment.s3:app"\n'
            )
            good = authority.issue(second.address, file="good")
            elsewhere = authority.issue(stranger.address, file="elsewhere")
            expired = authority.issue(second.address, file="expired", end=-DAY / 2)
            forged = other.issue(second.address, file="forged")
            to = (f"{home.address}:2224", str(authority.ca), "S2")

            def pair(paths: tuple[Path, Path]) -> tuple[str, str]:
                return str(paths[0]), str(paths[1])

            async with running(home, types=("M1",)) as (server,):
                # No key; the certificate of another host with the name of S2; that with a name that nobody lists.
                for count, shown in enumerate(((), pair(elsewhere), pair(elsewhere)), 1):
                    refused = await answer(stranger, *to[:2], "S4" if count == 3 else "S2", *shown)
                    assert isinstance(refused, dict) and refused["reason"] == "not-allowed", refused
                    await says_times(server, f"message-refused server='{stranger.address}'", count)
                for paths, theirs, ours in (
                    (expired, "certificate expired", "its certificate has expired"),
                    (forged, "unknown ca", "its certificate is signed by no authority in client_ca"),
                ):
                    ended = await answer(stranger, *to, *pair(paths))
                    assert theirs in ended, ended
                    assert f"TLS with {stranger.address} failed" in await server.says(ours)
                taken = await answer(second, *to, *pair(good))
                assert isinstance(taken, dict) and taken["reason"] == "unknown-user", taken  # S1 has no U2


async def says_times(process: Process, text: str, count: int) -> None:
    """Wait until that many lines of a process hold `text`."""
    async with asyncio.timeout(DEADLINE_S):
        while sum(text in line for line in process.lines) < count:
            await asyncio.sleep(0.02)


async def test_a_server_that_shows_the_wrong_certificate_gets_no_message() -> None:
    async with short_directory() as directory:
        with hosts(2, directory) as (hub, (home, impostor)):
            authority, other = Authority(directory), Authority(directory, "other")
            shown = {
                "expired": authority.issue(impostor.address, file="expired", end=-DAY / 2),
                "elsewhere": authority.issue(home.address, file="elsewhere"),
                "forged": other.issue(impostor.address, file="forged"),
            }
            text = f'[server]\nname = "S1"\ndata_dir = "d"\n{tls_section(home, authority)}'
            text += '[handlers.english]\napp = "bester.handlers.stories.letters.english:app"\n'
            for port, name in enumerate(shown, 3001):
                text += f'[servers.{name}]\nnative = "tls://{impostor.address}:{port}"\nca = "{authority.ca}"\n'
            (home.directory / "bester.toml").write_text(text)
            home.bester("user", "add", "U1", "--password-stdin", given="secret\n")
            words = {
                "expired": ("has expired", "certificate expired"),
                "elsewhere": (f"is for another host, and not for {impostor.address}", "bad certificate"),
                "forged": ("is signed by no authority trusted here", "unknown ca"),
            }
            listeners: list[Process] = []
            seen = directory / "frames"
            try:
                for port, (cert, key) in enumerate(shown.values(), 3001):
                    listen = (*STRANGER, "listen", f"{impostor.address}:{port}", str(cert), str(key))
                    listeners.append(await impostor.start(*listen))
                    await listeners[-1].says("listening")
                async with sniffed(hub, seen), running(home, types=("english",)) as (server,):
                    for name, listener in zip(shown, listeners, strict=True):
                        letter = json.dumps({"to": f"G@{name}", "text": WORDS})
                        send = ("send", "--to", tls_address(home), "--ca", str(authority.ca), "--user", "U1", "english")
                        sent = await asyncio.to_thread(home.bester, *send, letter, env=PASSWORD)
                        assert "queued" in sent, sent
                        ours, theirs = words[name]
                        assert f"{impostor.address}:{3001 + list(shown).index(name)}" in await server.says(ours)
                        await listener.says(theirs)
                assert not any("good" in line for listener in listeners for line in listener.lines)
                assert WORDS.encode() not in seen.read_bytes()
            finally:
                for listener in listeners:
                    await listener.end(signal.SIGKILL)
