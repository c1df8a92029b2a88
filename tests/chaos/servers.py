"""The two servers of a chaos run: one in a single process, one with every part in a process of its own.

Each knows the other by name, over the fabric, and both know two native servers; their users have accounts. Their
addresses stay the same over all their lives, so that clients find them again. Each server has a machine of its own.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import SystemRandom
from typing import Protocol

from bester.broker.accounts import Accounts
from tests.chaos.machine import Machine
from tests.chaos.processes import BESTER, Part, Parts
from tests.chaos.sender import PASSWORD
from tests.chaos.traffic import ATTEMPTS, FLOODER, SENDERS, SERVERS

QUICK = ("talk", "pipe", "far", "both", "line", "out", "flood")
TTL_S = 24 * 3600
"""No message expires during a run unless its sender said so: queued messages must arrive."""
USER_MESSAGES = 100_000
"""Room in a mailbox: its sender, who has a tenth of it, sends some ten messages a second to a hermit, who is away for
minutes where the receiving process is killed again and again."""
PORTS = range(20_000, 32_000)
"""Ports below the kernel's range for outgoing connections: none of those takes a port while its server is dead."""
CONFIG = """
[server]
name = "{name}"
data_dir = "data"
[native]
tcp4 = "{tcp}"
{unix}
[store]
ttl_s = {ttl_s}
user_messages = {user_messages}
[handlers.quick]
app = "tests.chaos.handlers:quick"
types = {quick}
workers = 2
attempts = {attempts}
[handlers.slow]
app = "tests.chaos.handlers:slow"
workers = 2
attempts = {attempts}
[servers.{peer}]
fabric = "ipc://{peer_fabric}/fabric.sock"
accept_types = ["*"]
{natives}
"""
NATIVE = """
[servers.{name}]
native = "{host}:{port}"
accept_types = ["*"]
{more}
"""


class Program:
    """A part of a server, and the command that runs the part on the server's machine. `more`: environment variables."""

    def __init__(self, part: Part, machine: Machine, more: Mapping[str, str], *command: str) -> None:
        self.part = part
        self._machine = machine
        self._command = command
        part.environment = {**machine.env, **more}

    def start(self) -> None:
        self.part.start(*self._machine.program(*self._command))


class Server:
    """A server's address for clients, its address for native servers (`tcp`), its machine, its programs, and the
    configurations of its brokers."""

    def __init__(
        self, name: str, address: str, tcp: str, machine: Machine, programs: Sequence[Program], configs: Sequence[Path]
    ) -> None:
        self.name = name
        self.address = address
        self.receiving = address
        """Address for the clients that receive: that of another bridge, where there are several."""
        self.tcp = tcp
        self.machine = machine
        self.programs = programs
        self.configs = configs


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


class Known(Protocol):
    """A native server as a configuration names it."""

    name: str
    host: str
    port: int


def make_servers(
    parts: Parts, directory: Path, machines: Mapping[str, Machine], natives: Sequence[Known], more: Mapping[str, str],
    cluster: Callable[[str], Server] | None = None,
) -> list[Server]:  # fmt: skip
    """Write the configurations and accounts; nothing is started. `more`: environment variables of all programs.
    `cluster` makes the second server another way, from the lines on native servers."""
    tcp = {name: f"127.0.0.1:{free_port()}" for name in SERVERS}
    # The first server detects the mute one, the other is configured.
    wishes = {"s1": {"n1": 'order = "type"'}, "s2": {"n2": "reports = false"}}
    second_server: Server | None = None
    for name, peer in (("s1", "s2"), ("s2", "s1")):
        known = [
            NATIVE.format(name=each.name, host=each.host, port=each.port, more=wishes[name].get(each.name, ""))
            for each in natives
        ]
        if name == "s2" and cluster is not None:
            second_server = cluster("".join(known))
        else:
            _configure(directory, name, peer, tcp[name], "".join(known), apart=cluster is None)
    together, apart = directory / "s1", directory / "s2"
    fabric = ("--fabric", f"ipc://{apart}/data/fabric.sock", "--workers", "2")
    types = "|".join(f"'{type_}'" for type_ in (*QUICK, "slow"))

    def program(machine: Machine, part: Part, *command: str) -> Program:
        return Program(part, machine, more, BESTER, *command)

    one = [program(machines["s1"], parts.part("up", together, ready=f" serves |{types}"), "up")]
    first = Server("s1", tcp["s1"], tcp["s1"], machines["s1"], one, [together / "bester.toml"])
    if second_server is not None:
        return [first, second_server]
    second = machines["s2"]
    several = [
        program(second, parts.part("broker", apart, ready=f"broker |{types}"), "broker"),
        program(second, parts.part("bridge", apart, ready=" serves "), "bridge"),
        program(second, parts.part("quick", apart), "handler", "tests.chaos.handlers:quick", *fabric),
        program(second, parts.part("slow", apart), "handler", "tests.chaos.handlers:slow", *fabric),
    ]
    return [
        first,
        Server("s2", f"unix:{apart}/native", tcp["s2"], second, several, [apart / "bester.toml"]),
    ]


def _configure(directory: Path, name: str, peer: str, tcp: str, natives: str, *, apart: bool) -> None:
    own, fabric = directory / name, directory / peer / ("data" if apart else "b1")
    own.mkdir()
    text = CONFIG.format(
        name=name, peer=peer, tcp=tcp, peer_fabric=fabric, ttl_s=TTL_S,
        user_messages=USER_MESSAGES, attempts=ATTEMPTS, natives=natives,
        quick=json.dumps(QUICK), unix='unix = "native"' if name == "s2" else "",
    )  # fmt: skip
    (own / "bester.toml").write_text(text)
    with closing(Accounts(own / "data")) as accounts:
        for user in (SENDERS[name], *SERVERS[name], FLOODER):
            accounts.add(user, PASSWORD)
