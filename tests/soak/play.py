"""A soak run: two servers that know each other, and visitors who come and go for a time. Does anything grow?"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import aiohttp

from bester.broker.accounts import Accounts
from bester.broker.data_dir import prepare
from tests.benchmarks.processes import children, memory_bytes
from tests.descriptors import descriptors_of
from tests.live import LiveServer, head, short_directory
from tests.soak.growth import WINDOWS, growth
from tests.soak.visitors import PASSWORD, USERS, Visits

SERVERS = ("s1", "s2")
LOOKS = 400
"""Looks at the processes in a run."""
MOST_BYTES = 10 << 20
"""Growth of a process's memory over the last quarter of a run that is no leak: the allocator's own ups and downs."""
MOST_SHARE = 0.1
"""The same, as a share of the memory."""
MOST_DESCRIPTORS = 4
"""The same in descriptors."""
CALM_S = 60.0
"""Longest time from the last visitor until a server has as many descriptors as before the first."""
DONE = {"frames", "browsers", "handlers", "accounts"}
"""What is done in every run: a short one takes as long as that takes, on a busy machine, but no longer than CALM_S."""
AGAIN_S = 0.05
"""Pause of a visitor that was not let in."""


@dataclass
class Sampled:
    """Samples of a process: its memory in bytes, and its descriptors."""

    bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


@dataclass
class Result:
    """What a run has found: what visitors did, and samples by process. `left` are descriptors by server that were still
    there long after the last visitor, beyond those before the first."""

    counts: Counter[str]
    samples: dict[str, Sampled]
    left: dict[str, int]

    def wrongs(self) -> list[str]:
        """Return what grows."""
        found = []
        for name, sampled in self.samples.items():
            if len(sampled.bytes) < WINDOWS:
                found.append(f"{name}: was there for {len(sampled.bytes)} looks alone")
                continue
            grown, most = growth(sampled.bytes), max(MOST_BYTES, MOST_SHARE * sampled.bytes[-1])
            if grown > most:
                found.append(f"{name}: memory grew by {grown / 2**20:.1f} MiB in a quarter of the run")
            if growth(sampled.descriptors) > MOST_DESCRIPTORS:
                found.append(f"{name}: descriptors grew by {growth(sampled.descriptors):.0f} in a quarter of the run")
        found += [f"{name}: {left} descriptors are left" for name, left in self.left.items() if left > 0]
        return found


async def play(seconds: float, seed: int, tell: Callable[[str], None] = lambda text: None) -> Result:
    """Make a run of so many seconds."""
    async with short_directory() as directory, _servers(directory) as servers:
        before = {name: descriptors_of(server.processes[0].process.pid) for name, server in servers.items()}
        counts: Counter[str] = Counter()
        enough = asyncio.Event()
        samples: dict[str, Sampled] = {}
        async with asyncio.TaskGroup() as group:
            for name, server in servers.items():
                (peer,) = set(SERVERS) - {name}
                line = await server.processes[0].says(" serves ")
                (address,) = [each for each in line.replace(",", " ").split() if each.startswith("ws://")]
                visits = Visits(server, peer, address, Random(f"{seed}/{name}"), counts)
                for many, manner in visits.manners():
                    for _ in range(many):
                        group.create_task(_again(manner, enough, counts))
            await _looked_at(servers, samples, seconds, counts, tell)
            enough.set()
        return Result(counts, samples, await _left(servers, before))


async def _again(manner: Callable[[], Awaitable[None]], enough: asyncio.Event, counts: Counter[str]) -> None:
    """Do something until it is enough, whatever the server answers."""
    while not enough.is_set():
        try:
            await manner()
        except (OSError, EOFError, TimeoutError, aiohttp.ClientError):
            counts["not let in"] += 1
            await asyncio.sleep(AGAIN_S)


async def _looked_at(
    servers: dict[str, LiveServer], samples: dict[str, Sampled], seconds: float, counts: Counter[str],
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Look at the servers and their handlers for so long; tell now and then what there is."""
    end_s, told_s = time.monotonic() + seconds, time.monotonic()
    while (now := time.monotonic()) < end_s or (now < end_s + CALM_S and not counts.keys() >= DONE):
        await asyncio.sleep(seconds / LOOKS)
        for name, server in servers.items():
            pid = server.processes[0].process.pid
            for number, process in enumerate([pid, *children(pid)]):
                sampled = samples.setdefault(f"handler {number} of {name}" if number else name, Sampled())
                with suppress(OSError):
                    sampled.bytes.append(memory_bytes(process))
                    sampled.descriptors.append(descriptors_of(process))
        if time.monotonic() - told_s > max(seconds / 20, 5.0):
            told_s = time.monotonic()
            sizes = ", ".join(f"{name} {sampled.bytes[-1] >> 20} MiB" for name, sampled in samples.items())
            tell(f"{counts['frames']} frames; {sizes}")


async def _left(servers: dict[str, LiveServer], before: dict[str, int]) -> dict[str, int]:
    """Return by how many descriptors each server has more than before, once there are none, or after CALM_S."""
    end_s = time.monotonic() + CALM_S
    while True:
        pids = {name: server.processes[0].process.pid for name, server in servers.items()}
        left = {name: descriptors_of(pid) - before[name] for name, pid in pids.items()}
        if time.monotonic() > end_s or all(count <= 0 for count in left.values()):
            return left
        await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def _servers(directory: Path) -> AsyncIterator[dict[str, LiveServer]]:
    """Run both servers."""
    servers: dict[str, LiveServer] = {}
    try:
        for name in SERVERS:
            servers[name] = await _start(directory, name)
        for server in servers.values():  # the links of their handlers, and to each other, have descriptors, too
            await server.has_type("onward")
            await server.processes[0].says("server-reached")
        yield servers
    finally:
        stopped = await asyncio.gather(*(server.stop() for server in servers.values()))
        statuses = [status for each in stopped for status in each]
    told = [line for server in servers.values() for process in server.processes for line in process.lines]
    assert not any(statuses), "\n".join(told[-40:])
    assert not any("Traceback" in line for line in told), "\n".join(told[-200:])


async def _start(directory: Path, name: str) -> LiveServer:
    (peer,) = set(SERVERS) - {name}
    place = directory / name
    place.mkdir()
    await asyncio.to_thread(_make_accounts, place / "data", USERS)
    shutil.copy(Path(__file__).with_name("onward.py"), place)
    native = 'websocket = "127.0.0.1:0"\nmax_connections = 1000\n'
    toml = (
        head(name, native=native) + f"[store]\nttl_s = 20\n[servers.{peer}]\n"
        f'fabric = "ipc://{directory / peer}/data/fabric.sock"\naccept_types = ["chat"]\n'
    )
    handlers = ("bester.handlers.stock.echo:app", "bester.handlers.stock.chat:app")
    toml += '[handlers.onward]\napp = "onward:app"\n'
    return await LiveServer.start(place, toml, handlers=handlers)


def _make_accounts(data: Path, names: Sequence[str]) -> None:
    prepare(data)
    with closing(Accounts(data)) as accounts:
        for name in names:
            accounts.add(name, PASSWORD)
