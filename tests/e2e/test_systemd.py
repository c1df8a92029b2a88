"""Servers as services: units that systemd accepts, its notifications and watchdog, passed sockets, the journal."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.live import BESTER, Process, RawClient, short_directory

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
UNITS = sorted(path for path in DEPLOY.iterdir() if path.suffix in (".service", ".socket"))
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is missing: apt-get install systemd")
DEADLINE_S = 60.0
TOML = """
[server]
name = "s1"
data_dir = "data"
[native]
tcp4 = "{address}"
[accounts]
auth = "open"
"""
PASSED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execve(sys.argv[2], sys.argv[2:], {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
"""
"""Gives a program a descriptor as systemd does: number 3, and its own process id."""


def passing(descriptor: int, *argv: str) -> list[str]:
    """Return the call of a program that gets a descriptor."""
    return [sys.executable, "-SEc", PASSED, str(descriptor), *argv]


@needs_systemd
def test_systemd_accepts_the_units() -> None:
    assert ANALYZE is not None
    assert {path.suffix for path in UNITS} == {".service", ".socket"}
    done = subprocess.run([ANALYZE, "verify", *UNITS], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and str(DEPLOY) not in said, said  # it may speak of other units of the machine
    for unit in UNITS:
        if unit.suffix == ".service":
            offline = [ANALYZE, "security", "--offline=true", "--no-pager", "--threshold=30", str(unit)]
            done = subprocess.run(offline, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{unit.name} is exposed more than 3.0:\n{done.stdout}"


@pytest.mark.parametrize("unit", [each for each in UNITS if each.suffix == ".service"], ids=lambda unit: unit.name)
def test_no_number_of_failed_starts_ends_the_restarts(unit: Path) -> None:
    """The default of systemd is five starts in ten seconds, and a clock that is set late takes longer."""
    before, _, service_ = unit.read_text().partition("[Service]")
    assert "\nRestart=always\n" in service_
    assert "\nStartLimitIntervalSec=0\n" in before


@pytest.mark.parametrize("unit", [each for each in UNITS if each.suffix == ".service"], ids=lambda unit: unit.name)
def test_no_service_leaves_a_core_dump(unit: Path) -> None:
    assert "\nLimitCORE=0\n" in unit.read_text()


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, directory: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(directory / "notify"))
        self.sock.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "300000"}

    async def hears(self, state: str) -> str:
        """Wait for a notification that begins with a line, and return it."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                said = (await asyncio.get_running_loop().sock_recv(self.sock, 4096)).decode()
                if said.split("\n")[0] == state:
                    return said


@asynccontextmanager
async def service(
    *command: str, cwd: Path, env: dict[str, str], passed: socket.socket | None = None
) -> AsyncIterator[Process]:
    """Run a program with a socket passed, and a journal on its standard error. Ends it at the exit."""
    ours, journal = socket.socketpair()
    status = os.fstat(journal.fileno())
    argv = [BESTER, *command] if passed is None else passing(passed.fileno(), BESTER, *command)
    with journal:
        started = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}", **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=journal.fileno(),
            pass_fds=() if passed is None else (passed.fileno(),),
        )
    process = Process(started)
    reader, writer = await asyncio.open_connection(sock=ours)
    started.stderr = reader
    try:
        yield process
    finally:
        if started.returncode is None:
            await process.end(signal.SIGKILL)
        writer.close()


async def journal(process: Process, words: str | None = None) -> list[str]:
    """Return the lines of a process, to one with these words or to its end."""
    reader, lines = process.process.stderr, list[str]()
    assert reader is not None
    async with asyncio.timeout(DEADLINE_S):
        while line := (await reader.readline()).decode():
            lines.append(line.rstrip("\n"))
            if words is not None and words in line:
                return lines
    assert words is None, f"{words!r} is not among {lines}"
    return lines


async def test_broker_and_socket_activated_bridge_are_services() -> None:
    async with short_directory() as directory:
        manager = Manager(directory)
        listener = socket.create_server(("127.0.0.1", 0))
        host, port = listener.getsockname()
        (directory / "bester.toml").write_text(TOML.format(address=f"{host}:{port}"))
        with listener, manager.sock:
            async with service("broker", cwd=directory, env=manager.environment) as broker:
                assert "STATUS=broker s1 on ipc://" in await manager.hears("READY=1")
                await manager.hears("WATCHDOG=1")
                early = await connect(host, port)  # before there is a bridge: systemd's socket holds the connection
                for _ in range(2):  # a bridge, and the one after its restart
                    async with service("bridge", cwd=directory, env=manager.environment, passed=listener) as bridge:
                        assert f"STATUS=s1 serves {host}:{port}" in await manager.hears("READY=1")
                        assert (await early.receive())["payload"]["id"] == "auth_special"
                        await early.close()
                        assert await bridge.end() == 0
                        await manager.hears("STOPPING=1")
                        lines = await journal(bridge)
                        assert any(line.startswith("<6>bridge: bridge-") for line in lines), lines
                    early = await connect(host, port)
                await early.close()
                assert await broker.end() == 0
                assert all(line.startswith("<6>") for line in await journal(broker))


async def connect(host: str, port: int) -> RawClient:
    """Open a connection and send a login, which nobody answers yet."""
    client = RawClient(*await asyncio.open_connection(host, port))
    login = {"username": "alice", "password": "secret"}
    client.send({"header": {"scope": "client", "authentication": login}, "payload": {"data": None, "type": "dummy"}})
    return client


async def test_a_server_in_one_process_gives_its_handlers_nothing_of_the_manager() -> None:
    async with short_directory() as directory:
        manager = Manager(directory)
        (directory / "bester.toml").write_text(
            TOML.format(address="127.0.0.1:0") + '[handlers.shown]\ncommand = ["sh", "-c", "env; exec sleep 600"]\n'
        )
        with manager.sock:
            async with service("up", "--log", "json", cwd=directory, env=manager.environment) as server:
                await manager.hears("READY=1")
                lines = await journal(server, "BESTER_TYPES=shown")
                await server.end()
                await manager.hears("STOPPING=1")
                lines += await journal(server)
        assert {line[:3] for line in lines} <= {"<3>", "<4>", "<6>"}
        told = " ".join(str(json.loads(line[3:])) for line in lines)
        assert "NOTIFY_SOCKET" not in told and "WATCHDOG_USEC" not in told


@pytest.mark.parametrize(
    ("address", "kind", "error"),
    [
        ("127.0.0.1:0", "listening", "systemd passes a socket for 127.0.0.1:"),
        ("127.0.0.1:0", "datagrams", "does not listen for connections"),
        ("127.0.0.1:0", "file", "descriptor 3 is no socket"),
    ],
)
async def test_a_socket_that_cannot_be_served_is_a_mistake_in_one_line(
    address: str, kind: str, error: str, tmp_path: Path
) -> None:
    (tmp_path / "bester.toml").write_text(TOML.format(address=address))
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    with socket.create_server(("127.0.0.1", 0)) as listener, datagrams, open("/dev/null", "rb") as file:
        passed = {"listening": listener.fileno(), "datagrams": datagrams.fileno(), "file": file.fileno()}[kind]
        done = await asyncio.create_subprocess_exec(
            *passing(passed, BESTER, "bridge"), cwd=tmp_path, pass_fds=(passed,),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said = (await done.communicate())[0].decode()
    assert done.returncode == 2
    assert error in said.splitlines()[-1] and said.count("\n") == 1, said
