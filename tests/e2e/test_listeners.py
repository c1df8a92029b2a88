"""Listening: sockets and ports that are taken, addresses that are refused, and the messages for the operator."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bester.bridge.listeners import check_plaintext, listen_tcp, listen_unix
from bester.broker.core.settings import Settings
from bester.broker.fabric_listeners import BACKLOG
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from bester.broker.wire.address import HostPort
from bester.broker.wire.codes import ConfigError
from tests.ipv6 import needs_ipv6
from tests.keyed import free_port
from tests.live import DEADLINE_S

LOOPBACK = HostPort("127.0.0.1", 0)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        yield Path(name)


def refused(text: str) -> pytest.RaisesExc[ConfigError]:
    return pytest.raises(ConfigError, match=re.escape(text))


class TestTcp:
    async def test_listener_names_its_port(self) -> None:
        listener = await listen_tcp("tcp4", LOOPBACK, asyncio.Protocol, family=socket.AF_INET)
        assert re.fullmatch(r"tcp4://127\.0\.0\.1:[1-9]\d+", listener.url)
        host, port = listener.address.split(":")
        with socket.create_connection((host, int(port))):
            pass
        listener.close()

    @needs_ipv6
    async def test_ipv6_address_is_in_brackets(self) -> None:
        listener = await listen_tcp("tcp6", HostPort("::1", 0), asyncio.Protocol, family=socket.AF_INET6)
        assert re.fullmatch(r"tcp6://\[::1\]:[1-9]\d+", listener.url)
        listener.close()

    async def test_a_port_in_use(self) -> None:
        first = await listen_tcp("tcp4", LOOPBACK, asyncio.Protocol, family=socket.AF_INET)
        address = HostPort("127.0.0.1", int(first.address.rpartition(":")[2]))
        with refused(f"port {address.port} is in use; stop its owner or choose another port"):
            await listen_tcp("[native] tcp4", address, asyncio.Protocol, family=socket.AF_INET)
        first.close()

    async def test_an_address_of_another_machine(self) -> None:
        with refused("this machine has no such address"):
            await listen_tcp("k", HostPort("192.0.2.1", 0), asyncio.Protocol, family=socket.AF_INET, insecure=True)

    async def test_unknown_name(self) -> None:
        with refused("'nonesuch.invalid' is no IPv4 address of this machine"):
            await listen_tcp(
                "k", HostPort("nonesuch.invalid", 0), asyncio.Protocol, family=socket.AF_INET, insecure=True
            )

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
    async def test_plain_text_beyond_loopback_needs_insecure(self, host: str) -> None:
        with refused("insecure = true"):
            await listen_tcp("[native] tcp4", HostPort(host, 0), asyncio.Protocol, family=socket.AF_INET)
        check_plaintext("[native] tcp4", HostPort(host, 0), insecure=True)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_loopback_needs_no_insecure(self, host: str) -> None:
        check_plaintext("[native] tcp4", HostPort(host, 0), insecure=False)


class TestUnix:
    async def test_socket_is_removed_with_its_listener(self, directory: Path) -> None:
        path = str(directory / "s")
        listener = await listen_unix("unix", path, asyncio.Protocol, mode=0o600)
        assert (listener.url, listener.address) == (f"unix://{path}", path)
        listener.close()
        assert not os.path.exists(path)

    async def test_socket_of_a_dead_server_is_replaced(self, directory: Path) -> None:
        path = str(directory / "s")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        assert os.path.exists(path)
        listener = await listen_unix("unix", path, asyncio.Protocol)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        listener.close()

    async def test_socket_of_a_living_server_is_not_replaced(self, directory: Path) -> None:
        path = str(directory / "s")
        first = await listen_unix("unix", path, asyncio.Protocol)
        with refused("another server listens there"):
            await listen_unix("unix", path, asyncio.Protocol)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        first.close()

    async def test_socket_of_a_later_listener_is_not_removed(self, directory: Path) -> None:
        path = str(directory / "s")
        first = await listen_unix("unix", path, asyncio.Protocol)
        os.unlink(path)
        second = await listen_unix("unix", path, asyncio.Protocol)
        first.close()
        assert os.path.exists(path)
        second.close()

    async def test_file_without_a_socket_stays_unchanged(self, directory: Path) -> None:
        path = directory / "s"
        path.write_text("precious")
        with refused("is a file, not a socket"):
            await listen_unix("unix", str(path), asyncio.Protocol)
        assert path.read_text() == "precious"

    async def test_missing_directory(self, directory: Path) -> None:
        with refused("cannot listen there"):
            await listen_unix("unix", str(directory / "no" / "s"), asyncio.Protocol)

    async def test_too_long_path(self, directory: Path) -> None:
        with refused("107 bytes"):
            await listen_unix("unix", str(directory / ("x" * 108)), asyncio.Protocol)


@needs_ipv6
async def test_address_of_one_link_without_its_interface_is_named_as_such() -> None:
    address = HostPort("fe80::1", 7)
    with refused("tcp6 = '[fe80::1]:7': an address of one link needs its interface; write it as '[fe80::1%eth0]:7'"):
        await listen_tcp("tcp6", address, asyncio.Protocol, family=socket.AF_INET6, insecure=True)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the descriptors of ZeroMQ are found there")
async def test_fabric_on_tcp_lets_as_many_connections_wait_as_on_ipc() -> None:
    port = free_port()
    endpoint = f"tcp://127.0.0.1:{port}"
    async with Broker(Settings("s1", open_accounts=True), (endpoint,), OpenAccounts(), MemoryStore()):
        assert backlog_of(port) == min(BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))


def backlog_of(port: int) -> int | None:
    """Return how many connections may wait at the listener of this process at a port."""
    for found in Path("/proc/self/fd").iterdir():
        try:
            is_socket = str(found.readlink()).startswith("socket:")
        except OSError:  # the descriptor of this look itself
            continue
        if not is_socket:
            continue
        with socket.fromfd(int(found.name), socket.AF_INET, socket.SOCK_STREAM) as listener:
            if listener.getsockname()[1:] == (port,):
                told = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
                (sacked,) = struct.unpack_from("=I", told, 28)  # of a listener: the bound of its queue
                return int(sacked)
    return None


async def test_fault_in_one_tick_ends_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[float] = []
    async with Broker(Settings("s1", open_accounts=True), (), OpenAccounts(), MemoryStore()) as broker:
        real = broker.router.tick

        def tick(now: float, wall: float) -> Any:
            ticks.append(now)
            if len(ticks) == 1:
                raise RuntimeError("a fault")
            return real(now, wall)

        monkeypatch.setattr(broker.router, "tick", tick)
        async with asyncio.timeout(DEADLINE_S):
            while len(ticks) < 3:
                await asyncio.sleep(0.01)
