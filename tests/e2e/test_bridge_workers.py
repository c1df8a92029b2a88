"""`bester bridge --workers`: several processes at one port, started again when they die, and ended together."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bester.bridge.workers import addresses_of, for_worker
from bester.broker.config import Config, FabricConfig, NativeConfig, ServerConfig, TlsConfig
from bester.broker.wire.address import HostPort
from bester.broker.wire.codes import ConfigError
from tests.live import BESTER, LiveServer, Process, RawClient, head, short_directory

DEADLINE_S = 60.0
TOML = head(native='unix = "data/native.sock"\n', auth="open")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def bridges_in(broker: Process) -> set[str]:
    """Return the names of the bridges that a broker has logged."""
    return {line.split("bridge-")[1].split()[0] for line in broker.lines if "bridge-" in line}


async def until_gone(pids: list[int]) -> None:
    """Wait until none of these processes runs."""
    async with asyncio.timeout(DEADLINE_S):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.05)  # another's process: there is no event for its end


@asynccontextmanager
async def bridge_of(workers: int) -> AsyncIterator[tuple[LiveServer, Process]]:
    """Run a broker and a bridge with workers; yield the server, and the broker."""
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(TOML)
        broker = await Process.start(BESTER, "broker", cwd=directory)
        await broker.says("broker ")
        bridge = await Process.start(BESTER, "bridge", "--workers", str(workers), cwd=directory)
        try:
            line = await bridge.says(" serves ")
            yield LiveServer(directory, [bridge], line.partition(" serves ")[2].split(",")[0].strip()), broker
        finally:
            for process in (bridge, broker):
                await process.end(signal.SIGKILL if process is bridge and bridge.process.returncode else signal.SIGTERM)


async def greeted(server: LiveServer) -> None:
    """Log in, send a message that nobody serves, and read its report."""
    client = await RawClient.login(server, "ann")
    client.submit("nothing", 1, "i")
    report, _ = await client.until_report("i")
    assert report["payload"]["reason"] == "unknown-type"
    await client.close()


async def test_workers_share_a_port_and_are_started_again_and_ended_together() -> None:
    async with bridge_of(2) as (server, broker):
        (bridge,) = server.processes
        pids = children(bridge.process.pid)
        assert len(pids) == 2
        async with asyncio.timeout(DEADLINE_S):  # each is a bridge of its own; the broker's log may come later
            while len(bridges_in(broker)) < 2:
                await asyncio.sleep(0.05)
        for _ in range(12):
            await greeted(server)
        assert (server.directory / "data/native.sock").is_socket()
        toml = TOML.replace(":0", f":{server.port}").replace("native.sock", "other.sock")
        (server.directory / "other.toml").write_text(toml)
        other = await Process.start(BESTER, "bridge", "-c", "other.toml", "--workers", "2", cwd=server.directory)
        await other.says(f"port {server.port} is in use")  # though it is shared among the workers
        assert await asyncio.wait_for(other.process.wait(), DEADLINE_S) == 2
        await other.end()
        os.kill(pids[1], signal.SIGKILL)
        await bridge.says("worker 1 was ended by signal 9; starting it again")
        await greeted(server)
        async with asyncio.timeout(DEADLINE_S):
            while len(pids := children(bridge.process.pid)) < 2:
                await asyncio.sleep(0.05)
        assert await bridge.end() == 0
        await until_gone(pids)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((server.host, server.port), timeout=DEADLINE_S)
        assert "Traceback" not in "\n".join(bridge.lines)


async def test_reload_ends_no_worker_that_is_about_to_start() -> None:
    """A process that has no handler for SIGHUP yet dies of it. It may have read the configuration before the change."""
    async with bridge_of(2) as (server, broker):
        (bridge,) = server.processes
        pids = children(bridge.process.pid)
        async with asyncio.timeout(DEADLINE_S):
            while len(bridges_in(broker)) < 2:
                await asyncio.sleep(0.05)
            os.kill(pids[1], signal.SIGKILL)
            while not set(children(bridge.process.pid)) - set(pids):
                await asyncio.sleep(0)  # the next one has just begun
            bridge.send_signal(signal.SIGHUP)
            while len(bridges_in(broker)) < 3:
                await asyncio.sleep(0.05)
            while sum("the configuration was read again" in line for line in bridge.lines) < 2:
                await asyncio.sleep(0.05)
        ends = [line for line in bridge.lines if "was ended by signal" in line]
        assert len(ends) == 1, "\n".join(ends)


async def test_workers_end_with_their_parent() -> None:
    async with bridge_of(2) as (server, _):
        (bridge,) = server.processes
        pids = children(bridge.process.pid)
        bridge.process.kill()
        await until_gone(pids)


@pytest.mark.parametrize(
    ("arguments", "toml", "why"),
    [
        (["--workers", "0"], TOML, "--workers is a number from 1 to 64, not 0"),
        (["--workers", "65"], TOML, "--workers is a number from 1 to 64, not 65"),
        (["--workers", "2"], TOML.replace('tcp4 = "127.0.0.1:0"', ""), "--workers shares TCP ports"),
        ([], TOML + '[fabric]\nconnect = ["ipc:///a", "ipc:///a"]\n', "'ipc:///a' is named twice"),
        ([f"--fabric=ipc:///{number}" for number in range(65)], TOML, "linked to at most 64"),
    ],
)
async def test_what_cannot_be_shared_is_refused(arguments: list[str], toml: str, why: str) -> None:
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(toml)
        bridge = await Process.start(BESTER, "bridge", *arguments, cwd=directory)
        await bridge.says(why)
        assert await asyncio.wait_for(bridge.process.wait(), DEADLINE_S) == 2
        await bridge.end()
        assert "Traceback" not in "\n".join(bridge.lines)


async def test_sockets_of_systemd_are_refused() -> None:
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(TOML)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            passed = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
            passed += "os.environ['LISTEN_FDS'] = '1'; os.execv(sys.argv[2], sys.argv[2:])"
            os.set_inheritable(sock.fileno(), True)
            python = str(Path(BESTER).with_name("python"))
            process = await asyncio.create_subprocess_exec(
                python, "-c", passed, str(sock.fileno()), BESTER, "bridge", "--workers", "2",
                cwd=directory, stderr=asyncio.subprocess.PIPE, pass_fds=(sock.fileno(),),
            )  # fmt: skip
            _, said = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        assert process.returncode == 2
        assert b"systemd passes sockets, and each worker opens one of its own" in said


def test_ports_of_a_worker_are_those_of_its_parent() -> None:
    tls = TlsConfig(Path("c"), Path("k"), (HostPort("0.0.0.0", 0), HostPort("::", 2)))
    native = NativeConfig(tcp4=HostPort("127.0.0.1", 0), unix=Path("u"), tls=tls, websocket=HostPort("::1", 0))
    config = Config(Path(), ServerConfig("s1", Path()), native, FabricConfig(("ipc:///a",), ("ipc:///a",)))
    assert [(key.split()[-1], address.port) for key, address, _ in addresses_of(config)] == [
        ("tcp4", 0), ("listen", 0), ("listen", 2), ("websocket", 0),
    ]  # fmt: skip
    first, second = (for_worker(config, index, [11, 12, 2, 14]) for index in (0, 1))
    assert (first.native.unix, second.native.unix) == (Path("u"), None)
    assert [address.port for _, address, _ in addresses_of(second)] == [11, 12, 2, 14]
    with pytest.raises(ConfigError, match="restart the bridge"):
        for_worker(config, 0, [11])
