"""Freed memory is kept: the large bodies that pass a server cost no page faults, once there is memory for them."""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path

import pytest

from tests.live import RawClient, live_server

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")

BODY = b'"' + b"x" * 100_000 + b'"'
AT_ONCE = 8
ROUNDS = 40
FEW = 3.0
"""Page faults of a message; a body has 25 pages."""


def faults(pid: int) -> int:
    """Return how many pages the system has given to a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


async def ask(client: RawClient, rounds: int) -> None:
    """Send large bodies, some at once, and wait for what comes of them."""
    for _ in range(rounds):
        for number in range(AT_ONCE):
            client.submit("echo", BODY, str(number))
        for number in range(AT_ONCE):
            report, _ = await client.until_report(str(number))
            assert report["header"]["status"] == "good"


def test_large_bodies_cost_no_page_faults() -> None:
    async def play() -> None:
        async with live_server("", "apart", ("bester.handlers.stock.echo:app",)) as server:
            client = await RawClient.login(server, "alice")
            await ask(client, ROUNDS)
            pids = [process.process.pid for process in server.processes]
            before = [faults(pid) for pid in pids]
            await ask(client, ROUNDS)
            each = [(faults(pid) - start) / (ROUNDS * AT_ONCE) for pid, start in zip(pids, before, strict=True)]
            await client.close()
            assert max(each) < FEW, f"page faults of a message in bridge, broker and handler: {each}"

    asyncio.run(play())
