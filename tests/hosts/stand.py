"""Hosts as network namespaces of this machine, each with an address of its own on one link. Needs root and `ip`."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.live import BESTER, Process

SNIFFER = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print("sniffing", flush=True)
with open(sys.argv[1], "wb", buffering=0) as file:
    while True:
        file.write(link.recv(65536))
"""


def missing() -> str | None:
    """Return why there can be no namespaces here, None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (the package iproute2)"
    name = f"bt{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"this system has no network namespaces: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Host(NamedTuple):
    """A host: its namespace, its address, and a directory for its files."""

    namespace: str
    address: str
    directory: Path

    def connect(self) -> None:
        """Give the device eth0 this host's address, and switch the host's devices on."""
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", device, "up")

    def argv(self, *argv: str) -> tuple[str, ...]:
        """Return the arguments that run a program on this host."""
        return ("ip", "netns", "exec", self.namespace, *argv)

    async def start(self, *argv: str, env: dict[str, str] | None = None) -> Process:
        """Start a program on this host, in its directory."""
        return await Process.start(*self.argv(*argv), cwd=self.directory, env=env)

    def bester(self, *arguments: str, given: str = "", env: dict[str, str] | None = None) -> str:
        """Run `bester` on this host to its end, and return its output. A failure is shown with all of the output."""
        done = subprocess.run(
            self.argv(BESTER, *arguments), cwd=self.directory, input=given, capture_output=True, text=True, check=False,
            env={**os.environ, **(env or {})}, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout


@contextmanager
def unlinked_hosts(count: int, directory: Path) -> Iterator[list[Host]]:
    """Make hosts without a device between them."""
    prefix = f"bt{secrets.token_hex(2)}"
    each: list[Host] = []
    try:
        for number in range(1, count + 1):
            place = directory / f"h{number}"
            place.mkdir()
            host = Host(f"{prefix}-{number}", f"10.77.0.{number}", place)
            _ip("netns", "add", host.namespace)
            each.append(host)
        yield each
    finally:
        for host in each:
            subprocess.run(["ip", "netns", "del", host.namespace], check=False, capture_output=True)


@contextmanager
def hosts(count: int, directory: Path) -> Iterator[tuple[Host, list[Host]]]:
    """Make hosts on one link, and the switch between them, which sees all their frames."""
    hub = f"bt{secrets.token_hex(2)}-hub"
    with unlinked_hosts(count, directory) as each:
        _ip("netns", "add", hub)
        try:
            _ip("-n", hub, "link", "add", "br0", "type", "bridge")
            _ip("-n", hub, "link", "set", "br0", "up")
            for number, host in enumerate(each, 1):
                pair = ("type", "veth", "peer", "name", f"p{number}", "netns", hub)
                _ip("-n", host.namespace, "link", "add", "eth0", *pair)
                _ip("-n", hub, "link", "set", f"p{number}", "master", "br0", "up")
                host.connect()
            yield Host(hub, "", directory), each
        finally:
            subprocess.run(["ip", "netns", "del", hub], check=False, capture_output=True)


@asynccontextmanager
async def sniffed(hub: Host, file: Path) -> AsyncIterator[None]:
    """Write all frames on the link to a file."""
    sniffer = await hub.start(sys.executable, "-c", SNIFFER, str(file))
    try:
        await sniffer.says("sniffing")
        yield
    finally:
        sniffer.process.kill()
        await sniffer.process.wait()
