"""The deployment with 200 messages at once, over every kind of link: each arrives once, each report is good."""

from __future__ import annotations

import asyncio
import re

import pytest

from bester.cli.demo import LINKS
from tests.e2e.demo_run import demo
from tests.live import DEADLINE_S


@pytest.mark.parametrize("links", LINKS)
async def test_200_messages_at_once(links: str) -> None:
    async with demo("deployment", "--links", links, "--count", "200") as run:
        assert await asyncio.wait_for(run.process.wait(), 3 * DEADLINE_S) == 0, run.lines
        line = await run.says("sent at once")
    assert re.match(r"200 sent at once: 200 arrived, 200 reports good, in \d+ ms", line)
    assert any(line.startswith("200 of 200 messages took this way") for line in run.lines)
    assert "U1 → S1/M1 → S1/M2 → S2/M1 → S3/M1 → U2" in run.lines
