"""The two servers of a chaos run: one in a single process, one with every part in a process of its own.

Each knows the other by name, over the fabric; their users have accounts. Where they listen stays the same over all
their lives, so that clients find them again.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import SystemRandom

from bester.broker.accounts import Accounts
from tests.chaos.processes import BESTER, Part, Parts
from tests.chaos.sender import PASSWORD
from tests.chaos.traffic import SENDERS, SERVERS

QUICK = ("talk", "pipe", "far", "both")
TTL_S = 24 * 3600
"""Nothing expires during a run: what is queued must arrive."""
ATTEMPTS = 20
"""Handlers are killed far more often here than a message deserves to be given up for."""
PORTS = range(20_000, 32_000)
"""Below what the kernel gives to outgoing connections: none of those takes a port while its server is dead."""
CONFIG = """
[server]
name = "{name}"
data_dir = "data"
[native]
{native}
[store]
ttl_s = {ttl_s}
[handlers.quick]
app = "tests.chaos.handlers:quick"
types = ["talk", "pipe", "far", "both"]
workers = 2
attempts = {attempts}
[handlers.slow]
app = "tests.chaos.handlers:slow"
workers = 2
attempts = {attempts}
[servers.{peer}]
fabric = "ipc://{peer_directory}/data/fabric.sock"
"""


class Program:
    """A part of a server, and the command that runs it."""

    def __init__(self, part: Part, *command: str) -> None:
        self.part = part
        self._command = command

    def start(self) -> None:
        self.part.start(*self._command)


class Server:
    """A server's directory, address and programs."""

    def __init__(self, name: str, address: str, programs: Sequence[Program]) -> None:
        self.name = name
        self.address = address
        self.programs = programs


def free_port() -> int:
    """Return a port that nobody has now."""
    while True:
        port = SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def make_servers(parts: Parts, directory: Path) -> list[Server]:
    """Write the configurations and accounts; nothing is started."""
    port = free_port()
    _configure(directory, "s1", "s2", f'tcp4 = "127.0.0.1:{port}"')
    _configure(directory, "s2", "s1", 'unix = "native"')
    together, apart = directory / "s1", directory / "s2"
    fabric = ("--fabric", f"ipc://{apart}/data/fabric.sock", "--workers", "2")
    types = "|".join(f"'{type_}'" for type_ in (*QUICK, "slow"))
    one = [Program(parts.part("up", together, ready=f" serves |{types}"), BESTER, "up")]
    several = [
        Program(parts.part("broker", apart, ready=f"broker |{types}"), BESTER, "broker"),
        Program(parts.part("bridge", apart, ready=" serves "), BESTER, "bridge"),
        Program(parts.part("quick", apart), BESTER, "handler", "tests.chaos.handlers:quick", *fabric),
        Program(parts.part("slow", apart), BESTER, "handler", "tests.chaos.handlers:slow", *fabric),
    ]
    return [Server("s1", f"127.0.0.1:{port}", one), Server("s2", f"unix:{apart}/native", several)]


def _configure(directory: Path, name: str, peer: str, native: str) -> None:
    own = directory / name
    own.mkdir()
    text = CONFIG.format(
        name=name, peer=peer, native=native, peer_directory=directory / peer, ttl_s=TTL_S, attempts=ATTEMPTS
    )
    (own / "bester.toml").write_text(text)
    with closing(Accounts(own / "data")) as accounts:
        for user in (SENDERS[name], *SERVERS[name]):
            accounts.add(user, PASSWORD)
