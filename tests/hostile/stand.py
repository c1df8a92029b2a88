"""The stand of a hostile run: the server under attack (s1), an honest one beside it (s2), and the keys of all.

s1 lists two hostile servers: s3 on the fabric, n3 by the native protocol. A hostile handler has a key for the type
`evil` alone. Accounts have passwords; the hostile user is one of them.
"""

from __future__ import annotations

import asyncio
import json
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bester.broker.accounts import Accounts
from tests.benchmarks.processes import children, memory_bytes, peak_memory_bytes
from tests.hostile.program import AT_WORK
from tests.keyed import Pair, free_port, key_file, new_pair
from tests.live import LiveServer, Process, head, short_directory

PASSWORD = "a password of many words"
MARK = "for honest eyes"
"""Stands in every letter of the honest: nobody but the recipient may read the mark."""
STOP_S = 120.0
"""Time of a hostile program to begin, and for its end: its loop is busy, and the machine may be, too."""
HONEST = ("alice", "bob")
HOSTILE = ("eve", "mute", "zed")
"""`mute` is logged in and reads nothing, `zed` never logs in."""


class Keys(NamedTuple):
    """Pairs of the servers and of the hostile handler."""

    s1: Pair
    s2: Pair
    s3: Pair
    mallory: Pair


class Processor(NamedTuple):
    """Seconds, or shares of a time, for which a process ran, and for which it could have run and had no processor."""

    ran: float
    stood: float

    def since(self, before: Processor) -> Processor:
        """Return the time since an earlier look."""
        return Processor(self.ran - before.ran, self.stood - before.stood)


def processor_s(pid: int) -> Processor:
    """Return the times of a process's main thread; zeros where the system does not tell."""
    try:
        ran_ns, stood_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return Processor(0.0, 0.0)
    return Processor(int(ran_ns) / 1e9, int(stood_ns) / 1e9)


def threads_ran_s(pid: int) -> dict[int, float]:
    """Return for how many seconds each thread of a process has run, by its number; nothing where the system does not
    tell."""
    return {int(task.name): processor_s(int(task.name)).ran for task in Path("/proc").glob(f"{pid}/task/*")}


class Stand:
    """Running servers; `at` has the native address of each."""

    def __init__(self, directory: Path, keys: Keys, ports: dict[str, int], servers: dict[str, LiveServer]) -> None:
        self.directory = directory
        self.keys = keys
        self.ports = ports
        self.servers = servers
        self.ids = directory / "ids"
        """File of the ids that s2 gives to its messages: a hostile server would have to guess them."""
        self.quiet_bytes = 0

    @property
    def victim(self) -> Process:
        """Return the process of s1."""
        return self.servers["s1"].processes[0]

    def note_quiet(self) -> None:
        """Note the memory of the server before any attack."""
        self.quiet_bytes = memory_bytes(self.victim.process.pid)

    def processor_s(self) -> Processor:
        """Return the processor's time of the server under attack, so far."""
        return processor_s(self.victim.process.pid)

    @property
    def grown_bytes(self) -> int:
        """Return by how much the server's peak is above its memory before any attack."""
        return peak_memory_bytes(self.victim.process.pid) - self.quiet_bytes

    def spec(self) -> dict[str, Any]:
        """Return the addresses, keys and passwords that the hostile programs own."""
        server = self.servers["s1"]
        return {
            "host": server.host, "port": server.port, "fabric": f"tcp://127.0.0.1:{self.ports['s1']}",
            "password": PASSWORD, "server_key": self.keys.s1.public, "mallory": self.keys.mallory._asdict(),
            "s3": self.keys.s3._asdict(), "s3_port": self.ports["s3"], "n3_port": self.ports["n3"],
            "ids": str(self.ids), "mark": MARK,
        }  # fmt: skip


@asynccontextmanager
async def stand(*, brief: bool = False) -> AsyncIterator[Stand]:
    """Run s1 and s2, linked by CURVE. With `brief` they end at once, whatever is under way."""
    async with short_directory() as directory:
        keys = Keys(*(new_pair() for _ in Keys._fields))
        ports = {name: free_port() for name in ("s1", "s2", "s3", "n3")}
        servers: dict[str, LiveServer] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for name, other in (("s1", "s2"), ("s2", "s1")):
                    group.create_task(_start(servers, directory / name, other, keys, ports))
            await servers["s1"].processes[0].says("server-reached")
            await servers["s2"].processes[0].says("server-reached")
            yield Stand(directory, keys, ports, servers)
        finally:
            ends = [asyncio.ensure_future(_stop(server, brief=brief)) for server in servers.values()]
            await asyncio.wait(ends)  # for all of them, also where one fails
            statuses = [status for end in ends for status in end.result()]
        told = [line for server in servers.values() for process in server.processes for line in process.lines]
        assert not any(statuses), "\n".join(told[-40:])
        assert not any("Traceback" in line for line in told), "\n".join(told[-200:])


async def _stop(server: LiveServer, *, brief: bool) -> list[int]:
    """End a server; return the exit statuses of its processes. A server that is hurried ends with 1, which is fine."""
    process = server.processes[0]
    try:
        if brief:
            process.send_signal(signal.SIGTERM)
            await process.says("finishing the messages under way")
    finally:  # nothing is left running of a server that does not answer
        statuses = await server.stop()
    return [0 if brief and status == 1 else status for status in statuses]


async def _start(servers: dict[str, LiveServer], place: Path, other: str, keys: Keys, ports: dict[str, int]) -> None:
    name = place.name
    place.mkdir()
    shutil.copy(Path(__file__).with_name("letters.py"), place)
    own = key_file(place / "own.key", getattr(keys, name))
    toml = (
        head(name) + f'[fabric]\nlisten = ["ipc://DATA_DIR/fabric.sock", "tcp://127.0.0.1:{ports[name]}"]\n'
        f'curve = true\nkey = "{own}"\n'
        f'[servers.{other}]\nfabric = "tcp://127.0.0.1:{ports[other]}"\nkey = "{getattr(keys, other).public}"\n'
        'accept_types = ["letter"]\n[handlers.letter]\napp = "letters:app"\n'
    )
    if name == "s1":
        toml += (
            f'[fabric.parties.mallory]\nkey = "{keys.mallory.public}"\nrole = "handler"\ntypes = ["evil"]\n'
            f'[servers.s3]\nfabric = "tcp://127.0.0.1:{ports["s3"]}"\nkey = "{keys.s3.public}"\n'
            'accept_types = ["letter"]\n'
            f'[servers.n3]\nnative = "127.0.0.1:{ports["n3"]}"\naccept_types = ["letter"]\n'
        )
    await asyncio.to_thread(_accounts, place / "data", (*HONEST, *HOSTILE))
    servers[name] = await LiveServer.start(place, toml)
    await servers[name].has_type("letter")


def _accounts(directory: Path, names: tuple[str, ...]) -> None:
    accounts = Accounts(directory)
    try:
        for name in names:
            accounts.add(name, PASSWORD)
    finally:
        accounts.close()


class Attack:
    """A hostile program in a process of its own, which attacks from `begin` to `stop`. A program that `yields`, as the
    spec says, runs while nobody else needs its processor."""

    def __init__(self, party: str, spec: dict[str, Any], seed: int) -> None:
        command = [sys.executable, "-m", f"tests.hostile.{party}", json.dumps(spec), str(seed)]
        self.party = party
        self._ran_s: dict[int, float] = {}
        self._began = 0.0
        self.shares: list[float] = []
        """Share of a processor that each thread of the program had from its `begin` to its `stop`."""
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self) -> None:
        """Let the program begin, and wait until it is at work. Raises RuntimeError where it ends before."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], STOP_S)
        line = self._process.stdout.readline() if ready else "nothing"
        if line.strip() != AT_WORK:
            raise RuntimeError(f"the hostile {self.party} ended before it began: {line!r}")
        self._ran_s, self._began = threads_ran_s(self._process.pid), time.monotonic()

    def stop(self) -> dict[str, int]:
        """End the program; return its counts. Raises RuntimeError where the program did not end well."""
        span_s = time.monotonic() - self._began
        ran_s = threads_ran_s(self._process.pid)
        self.shares = [(ran_s[thread] - self._ran_s.get(thread, 0.0)) / span_s for thread in ran_s]
        try:
            printed, _ = self._process.communicate("stop\n", timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the hostile {self.party} did not end") from None
        if self._process.returncode != 0 or not printed:
            raise RuntimeError(f"the hostile {self.party} ended with status {self._process.returncode}")
        counts: dict[str, int] = json.loads(printed)
        return counts

    def kill(self) -> None:
        """End the program, however it is."""
        for pid in [*children(self._process.pid), self._process.pid]:
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
        self._process.wait()
