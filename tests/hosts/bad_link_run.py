"""A run over a bad link: messages from S1 to S2 while frames are lost, one direction is shut, and the link is cut."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

from bester.client import Client
from tests.hosts.link import BadLink, bad_link
from tests.hosts.stand import Host, unlinked_hosts
from tests.live import BESTER, Process, short_directory

WINDOW = 64
"""Messages without a report at a time."""
EMPTY_S = 60.0
"""Time from the end of all faults until the outbox must be empty."""
LOOK_S = 0.2


class Plan(NamedTuple):
    """`messages` to send, evenly over the faults; `loss` is the share of frames lost throughout. The faults in their
    order, in seconds: loss alone, one direction that carries nothing (`deaf`: 0 where S1 hears nothing, 1 where S2
    does), with the link cut in the middle of that time, and loss alone again."""

    messages: int = 10_000
    loss: float = 0.3
    alone_s: float = 20.0
    one_way_s: float = 60.0
    cut_s: float = 10.0
    deaf: int = 0
    seed: int = 0

    @property
    def faults_s(self) -> float:
        """Duration of all faults."""
        return 2 * self.alone_s + self.one_way_s


class Result(NamedTuple):
    """`noted` counts each number at the handler; `bad` are reports by reason; `empty_s` is the time after the last
    fault at which the outbox was empty, None where that took longer than EMPTY_S."""

    sent: int
    bad: Counter[str]
    noted: Counter[int]
    empty_s: float | None
    outcomes: Counter[str]
    frames: int
    frames_lost: int

    @property
    def lost(self) -> list[int]:
        """Numbers that the handler never got."""
        return [number for number in range(self.sent) if number not in self.noted]

    @property
    def twice(self) -> list[int]:
        """Numbers that the handler got more than once."""
        return [number for number, count in self.noted.items() if count > 1]

    @property
    def is_good(self) -> bool:
        """Return whether nothing was lost, doubled or refused, and the outbox was empty in time."""
        return not (self.lost or self.twice or self.bad) and self.empty_s is not None


async def run(plan: Plan, tell: Callable[[str], None] = lambda text: None) -> Result:
    """Send all messages under the plan's faults and return the result. Needs root, `ip` and /dev/net/tun."""
    async with short_directory() as directory:
        with unlinked_hosts(2, directory) as (here, there), bad_link(here, there, Random(plan.seed)) as link:
            link.start()
            try:
                async with _servers(here, there) as servers:
                    bad, outcomes, empty_s = await _send_all(plan, link, here, there, tell)
            finally:
                link.stop()
            # Both servers have ended, so that no handler gets anything any more.
            noted = Counter(map(int, (there.directory / "noted").read_text().split()))
            result = Result(plan.messages, bad, noted, empty_s, outcomes, link.carried, link.lost)
            if not result.is_good:
                print(*(line for server in servers for line in server.lines), sep="\n", file=sys.stderr)
            return result


def _write(host: Host, name: str, handler: str, rest: str) -> None:
    (host.directory / "noting.py").write_text(Path(__file__).with_name("noting.py").read_text())
    (host.directory / "bester.toml").write_text(
        f'[server]\nname = "{name}"\ndata_dir = "d"\n[native]\nunix = "n.sock"\n[accounts]\nauth = "open"\n'
        f'[fabric]\nlisten = ["ipc://DATA_DIR/f.sock", "tcp://{host.address}:2225"]\n'
        f'[handlers.{handler}]\napp = "noting:{handler}_app"\n{rest}'
    )


@asynccontextmanager
async def _servers(here: Host, there: Host) -> AsyncIterator[list[Process]]:
    """Run S1 and S2, linked by CURVE, until S1 has reached S2."""
    for host in (here, there):
        _write(host, "S", "note", "")
    keys = [host.bester("keys").splitlines()[0] for host in (here, there)]
    rest = f'[servers.S2]\nfabric = "tcp://{there.address}:2225"\nkey = "{keys[1]}"\n'
    _write(here, "S1", "onward", rest)
    rest = f'[servers.S1]\nfabric = "tcp://{here.address}:2225"\nkey = "{keys[0]}"\naccept_types = ["note"]\n'
    _write(there, "S2", "note", rest)
    servers = [await host.start(BESTER, "up") for host in (here, there)]
    try:
        await servers[0].says("server-reached")
        await servers[0].says("types=['onward']")
        await servers[1].says("types=['note']")
        yield servers
    finally:
        statuses = [await server.end() for server in servers]
    assert statuses == [0, 0], [server.lines for server in servers]


async def _send_all(
    plan: Plan, link: BadLink, here: Host, there: Host, tell: Callable[[str], None]
) -> tuple[Counter[str], Counter[str], float | None]:
    """Send all messages under the faults; return reasons of bad reports, outcomes, and when the outbox was empty."""
    loop = asyncio.get_running_loop()
    bad: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    window = asyncio.Semaphore(WINDOW)
    mended: asyncio.Future[float] = loop.create_future()

    async def send(client: Client, number: int) -> None:
        try:
            report = await client.send("onward", {"number": number, "text": "x" * 100})
            outcomes.update(report.recipients.values() or ["good"])
            if not report.good:
                bad[report.reason or "none"] += 1
        finally:
            window.release()

    async with (
        Client(f"unix:{here.directory}/n.sock", user="alice", password="x") as client,
        asyncio.TaskGroup() as group,
    ):
        began = loop.time()
        faults = group.create_task(_faults(plan, link, tell))
        faults.add_done_callback(lambda _: mended.set_result(loop.time()))
        for number in range(plan.messages):
            await asyncio.sleep(max(0.0, began + number * plan.faults_s / plan.messages - loop.time()))
            await window.acquire()
            group.create_task(send(client, number))
    healed = await mended
    done = await _until_done(plan, here, there, healed + EMPTY_S)
    return bad, outcomes, None if done is None else done - healed


async def _until_done(plan: Plan, here: Host, there: Host, deadline: float) -> float | None:
    """Return when the outbox was empty and the handler had as many messages; None after the deadline."""
    loop = asyncio.get_running_loop()
    noted = there.directory / "noted"
    while loop.time() < deadline:
        peers = await asyncio.to_thread(here.bester, "peers", "--json")
        rows = [json.loads(line) for line in peers.splitlines()]
        queued = sum(queue["messages"] for row in rows for queue in row["outbox"])
        if queued == 0 and noted.exists() and noted.read_bytes().count(b"\n") >= plan.messages:
            return loop.time()
        await asyncio.sleep(LOOK_S)
    return None


async def _faults(plan: Plan, link: BadLink, tell: Callable[[str], None]) -> None:
    """Play the plan's faults and mend the link."""
    link.loss = plan.loss
    half_s = (plan.one_way_s - plan.cut_s) / 2
    nothing = f"and S{plan.deaf + 1} hears nothing"
    for deaf, cut, seconds, text in (
        (None, False, plan.alone_s, f"{plan.loss:.0%} of the frames are lost"),
        (plan.deaf, False, half_s, nothing),
        (plan.deaf, True, plan.cut_s, "and the link is cut"),
        (plan.deaf, False, half_s, nothing),
        (None, False, plan.alone_s, "and both hear each other"),
    ):
        link.deaf, link.is_cut = deaf, cut
        tell(f"{text}, for {seconds:g} s")
        await asyncio.sleep(seconds)
    link.loss = 0.0
    tell("the link is good")
