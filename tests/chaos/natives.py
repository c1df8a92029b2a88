"""The two native servers of a chaos run, as the run sees them: processes that come and go, also elsewhere.

Where the run may give its servers a name server, they are known to them by name: the name may be missing or get no
answer for a while, and a native server that was killed may come back at another address. Elsewhere they stay where they
are, and are known by address.
"""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random

import msgspec

from tests.chaos.happened import Happened
from tests.chaos.journal import now_s
from tests.chaos.machine import may_mount
from tests.chaos.names import NameServer
from tests.chaos.native import Spec
from tests.chaos.processes import Part, Parts, python
from tests.chaos.servers import Server, free_port
from tests.chaos.traffic import NATIVES, SERVERS

SUFFIX = "chaos.test"
PLACES = 3
"""Each may be at so many addresses."""
MOVES = 0.4
"""Share of the returning servers that come back at another address."""


class NativeServer:
    """A native server. `host` is its name at the servers."""

    def __init__(self, name: str, number: int, network: str, part: Part) -> None:
        self.name = name
        self.part = part
        self.port = free_port()
        self.addresses = [f"{network}.{10 * (number + 1) + place}" for place in range(PLACES)]
        self.address = self.addresses[0]
        self.host = f"{name}.{SUFFIX}" if may_mount() else self.address

    def says(self, names: NameServer) -> None:
        """Let its name be known, as its address is now."""
        names.knows[self.host] = self.address
        names.silent.discard(self.host)


class Natives:
    """Both native servers. `lives` numbers their messages: every fourth is one server's own, from `first_life` on."""

    def __init__(self, parts: Parts, directory: Path, network: str, seed: int, first_life: int) -> None:
        self._directory = directory
        self._seed = seed
        self._first_life = first_life
        self._random = Random(f"{seed}/moves")
        self._servers: list[Server] = []
        self._names: NameServer | None = None
        self.all = [
            NativeServer(name, number, network, parts.part(name, directory, ready="serves"))
            for number, name in enumerate(NATIVES)
        ]

    def know(self, servers: list[Server], names: NameServer | None) -> None:
        """Send to these servers from now on; the name server tells them the addresses."""
        self._servers = servers
        self._names = names
        if names is not None:
            for native in self.all:
                native.says(names)

    def start(self, native: NativeServer, *, restless: bool, says: bool = True) -> None:
        """Begin another life of a server, at its present address. `says`: the server sends messages of its own."""
        number = self.all.index(native)
        life = self._first_life + number + 4 * native.part.lives
        spec = Spec(
            native.name, native.address, native.port, NATIVES[native.name], restless, life,
            f"{self._seed}/{native.name}/{life}", str(self._directory / f"{native.name}-{life}.journal"),
            {server.name: server.tcp for server in self._servers if says},
            {name: list(users) for name, users in SERVERS.items()},
        )  # fmt: skip
        native.part.start(*python("tests.chaos.native", msgspec.json.encode(spec).decode()))

    def come_back(self, native: NativeServer) -> None:
        """Begin another life of a killed server, often at another address; the name server is told first."""
        if self._names is not None and self._random.random() < MOVES:
            native.address = self._random.choice([each for each in native.addresses if each != native.address])
            if native.host in self._names.knows:
                self._names.knows[native.host] = native.address
        self.start(native, restless=True)

    def turn_restless(self) -> None:
        """Turn the servers restless. Until now they behaved well, so that each could be known as reporting or mute."""
        for native in self.all:
            if native.part.alive:
                native.part.signal(signal.SIGUSR1)

    def settle(self, happened: Happened) -> None:
        """Kill both, and start them again without faults and without messages of their own; `happened` records the
        kills."""
        for native in self.all:
            if self._names is not None:
                native.says(self._names)
            number = happened.begins(native.name, kills=True, at_s=now_s())
            if native.part.alive:
                native.part.kill()
            self.start(native, restless=False, says=False)  # else the last messages wait for a server that left
            happened.ends(number, now_s())
