"""Real servers with a name server that never answers, and hosts files that change.

Each server runs in a mount namespace with an /etc/hosts and an /etc/resolv.conf of the test's.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live import BESTER, DEADLINE_S, LAYOUTS, LiveServer, Process, RawClient, head, short_directory

SHOWN = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"'


def _may_mount() -> bool:
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        return False
    mount = [unshare, "-m", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _may_mount(), reason="only root may mount")

HANDLER = """
from bester.handlers import App
app = App()
@app.handler("note")
async def note(message):
    return [message.send_servers([message.data], "hello", as_type="take")]
@app.handler("take")
async def take(message):
    return []
"""


class Names:
    """The two files of a namespace, and the name server in the second."""

    def __init__(self, directory: Path, address: str) -> None:
        self.hosts = directory / "hosts"
        self.resolv = directory / "resolv.conf"
        self.resolv.write_text(f"nameserver {address}\n")
        self.says()

    def says(self, **names: str) -> None:
        """Write the hosts file: name (with _ for .) = address."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name.replace('_', '.')}" for name, address in names.items())]
        self.hosts.write_text("\n".join(lines) + "\n")  # the same file as was mounted

    def program(self, *argv: str) -> list[str]:
        """Return the command that runs a program with these files."""
        return ["unshare", "-m", "sh", "-c", SHOWN, "sh", str(self.hosts), str(self.resolv), *argv]


@contextmanager
def names(directory: Path, *, hangs: bool) -> Iterator[Names]:
    """Start a name server that hangs, or return an address without one."""
    address = f"127.53.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250 + 1}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        if hangs:
            asked.bind((address, 53))
        yield Names(directory, address)


HUNG = {"RES_OPTIONS": "timeout:30 attempts:1"}
"""Longer than any wait of these tests."""


@asynccontextmanager
async def server_with(
    directory: Path, shown: Names, servers: str, layout: str = "up", *, name: str = "s1"
) -> AsyncIterator[LiveServer]:
    """Run a server with the files of `shown`, which must end well."""
    (directory / "h.py").write_text(HANDLER)
    declared = '[handlers.h]\napp = "h:app"\ntypes = ["note", "take"]\n' if layout == "up" else ""
    (directory / "bester.toml").write_text(head(name, auth="open") + declared + servers)
    processes: list[Process] = []
    try:
        if layout == "up":
            processes.append(await Process.start(*shown.program(BESTER, "up"), cwd=directory, env=HUNG))
        else:
            processes.append(await Process.start(*shown.program(BESTER, "broker"), cwd=directory, env=HUNG))
            await processes[0].says("broker ")
            fabric = f"ipc://{directory}/data/fabric.sock"
            processes.append(await Process.start(BESTER, "handler", "h:app", "--fabric", fabric, cwd=directory))
            processes.insert(0, await Process.start(*shown.program(BESTER, "bridge"), cwd=directory, env=HUNG))
        line = await processes[0].says(" serves ")
        server = LiveServer(directory, processes, line.partition(" serves ")[2].split(",")[0].strip())
        await server.has_type("note")
        yield server
    finally:
        statuses = [await process.end() for process in processes]
    assert statuses == [0] * len(statuses), [process.lines for process in processes]


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_hanging_name_server_delays_neither_start_nor_others_nor_the_end(layout: str) -> None:
    bad = "".join(f'[servers.bad{number}]\nnative = "bad{number}.test:2223"\n' for number in range(6))
    async with short_directory() as here, short_directory() as there:
        with names(here, hangs=True) as shown:
            shown.says(healthy_test="127.0.0.1")
            async with server_with(
                there, shown, '[servers.s1]\nnative = "127.0.0.1:1"\naccept_types = ["*"]\n', name="s2"
            ) as s2:
                listed = f'{bad}[servers.s2]\nnative = "healthy.test:{s2.port}"\n'
                async with server_with(here, shown, listed, layout) as s1:
                    alice = await RawClient.login(s1, "alice")
                    for number in range(60):
                        alice.submit("note", f"bad{number % 6}", f"bad{number}")
                    alice.submit("note", "s2", "good")
                    report, before = await alice.until_report("good")
                    assert report["header"]["status"] == "good" and "recipients" not in report["payload"], report
                    # A message is queued once its lookup takes too long; the lookup goes on beyond the end.
                    seen = {frame["payload"]["id"] for frame in before}
                    while len(seen) < 60:
                        report = await alice.receive()
                        assert report["payload"]["recipients"] == {
                            f"bad{int(report['payload']['id'][3:]) % 6}": "queued"
                        }
                        seen.add(report["payload"]["id"])
                    await s1.processes[-1 if layout == "up" else 1].says("bad5.test cannot be looked up")
                    await alice.close()
            logged = [line for process in s1.processes for line in process.lines if "bad0.test cannot be" in line]
            assert len(logged) == (1 if layout == "up" else 2)


async def test_command_ends_while_the_name_server_hangs() -> None:
    async with short_directory() as here:
        with names(here, hangs=True) as shown:
            for command, expected in (
                (
                    ["send", "--user", "alice", "--timeout", "0.3", "chat", "1"],
                    "no connection with s2.test:2223 within 0.3 s",
                ),
                (["outcome", "--user", "alice", "--timeout", "0.3", "m"], "no answer from s2.test:2223 within 0.3 s"),
            ):
                argv = shown.program(BESTER, command[0], "--to", "s2.test:2223", *command[1:])
                process = await Process.start(*argv, cwd=here, env={**HUNG, "BESTER_PASSWORD": "x"})
                status = await asyncio.wait_for(process.process.wait(), DEADLINE_S)
                assert status == 1
                await process.end()  # all of its lines are read
                assert expected in "\n".join(process.lines)


def server_says(address: str, to: LiveServer, claimed: str | None, data: Any = 1) -> dict[str, Any]:
    """Send one message as a native server at this address; return the report's payload."""
    header = {"scope": "server"} | ({} if claimed is None else {"server": claimed})
    body = json.dumps({"header": header, "payload": {"type": "take", "data": data, "id": "i"}}).encode()
    with socket.create_connection((to.host, to.port), DEADLINE_S, source_address=(address, 0)) as connection:
        connection.sendall(struct.pack("<I", len(body)) + body)
        with connection.makefile("rb") as stream:
            (length,) = struct.unpack("<I", stream.read(4))
            payload: dict[str, Any] = json.loads(stream.read(length))["payload"]
            return payload


async def come_again(address: str, to: LiveServer, claimed: str | None, data: Any = 1) -> str | None:
    """Send with retries until the answer is final, as a server does; return the answer (None: good)."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            payload = await asyncio.to_thread(server_says, address, to, claimed, data)
            reason = payload.get("reason")
            if reason not in ("no-handler", "overloaded"):
                return reason if reason is None else str(reason)
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_listed_server_must_retry_until_its_name_is_known(layout: str) -> None:
    large = "x" * 100_000
    async with short_directory() as here:
        with names(here, hangs=False) as shown:
            listed = "".join(
                f'[servers.{server}]\nnative = "{host}:2223"\naccept_types = ["*"]\n'
                for server, host in (("s2", "s2.test"), ("s3", "127.0.0.3"))
            )
            async with server_with(here, shown, listed, layout) as s1:
                for claimed, data, reason in (
                    ("s2", 1, "no-handler"),
                    (None, 1, "no-handler"),
                    ("s2", large, "overloaded"),
                    ("s3", 1, "not-allowed"),
                ):
                    assert (await asyncio.to_thread(server_says, "127.0.0.77", s1, claimed, data))["reason"] == reason
                assert await come_again("127.0.0.3", s1, "s3") is None
                shown.says(s2_test="127.0.0.77")
                for claimed, data in (("s2", 1), (None, 1), ("s2", large)):
                    assert await come_again("127.0.0.77", s1, claimed, data) is None
                assert await come_again("127.0.0.78", s1, "s2") == "not-allowed"
                assert await come_again("127.0.0.78", s1, None) == "not-allowed"
                assert await come_again("127.0.0.78", s1, None, large) == "frame-too-large"


async def test_moved_server_sends_and_receives_at_its_new_address() -> None:
    async with short_directory() as here, short_directory() as there:
        with names(here, hangs=False) as shown:
            async with server_with(
                there, shown, '[servers.s1]\nnative = "127.0.0.1:1"\naccept_types = ["*"]\n', name="s2"
            ) as s2:
                shown.says(s2_test="127.0.0.9")  # no listener
                listed = f'[servers.s2]\nnative = "s2.test:{s2.port}"\naccept_types = ["*"]\n'
                async with server_with(here, shown, listed) as s1:
                    assert await come_again("127.0.0.9", s1, "s2") is None
                    alice = await RawClient.login(s1, "alice")
                    alice.submit("note", "s2", "m")
                    report, _ = await alice.until_report("m")
                    assert report["payload"]["recipients"] == {"s2": "queued"}
                    shown.says(s2_test="127.0.0.8")
                    async with asyncio.timeout(
                        DEADLINE_S
                    ):  # an unreachable host is looked up again before the minute is over
                        while await come_again("127.0.0.8", s1, "s2") is not None:
                            await asyncio.sleep(0.1)
                    assert await come_again("127.0.0.9", s1, "s2") == "not-allowed"
                    shown.says(s2_test="127.0.0.1")
                    argv = (BESTER, "outcome", "--to", s1.address, "--user", "alice", report["payload"]["message"])
                    async with asyncio.timeout(DEADLINE_S):
                        while True:
                            asking = await Process.start(*argv, cwd=here, env={"BESTER_PASSWORD": "x"})
                            await asking.end(0)
                            if "s2 delivered" in asking.lines:
                                break
                    await alice.close()
