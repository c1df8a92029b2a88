"""`bester demo` with live servers: its output, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import Any

import aiohttp
import pytest

from bester.broker.wire.codes import BesterError
from bester.cli.demo.people import Person
from bester.cli.demo.servers import Servers
from bester.cli.demo.story import STORIES, write_files
from tests.e2e.demo_run import demo, programs_in
from tests.live import DEADLINE_S, short_directory

TIMES = re.compile(r"(\S+) +\w+ +([\d.]+) ms +([\d.]+) ms")


async def ended(process: asyncio.subprocess.Process) -> int:
    return await asyncio.wait_for(process.wait(), 3 * DEADLINE_S)


async def test_deployment_shows_the_path_with_a_time_for_each_step() -> None:
    async with demo() as run:
        assert await ended(run.process) == 0, run.lines
        await run.says("U1 had its report after")
    assert "U1 → S1/M1 → S1/M2 → S2/M1 → S3/M1 → U2" in run.lines
    rows = [match.groups() for line in run.lines if (match := TIMES.match(line))]
    assert [where for where, _, _ in rows] == ["S1/M1", "S1/M2", "S2/M1", "S3/M1", "U2"]
    since = [float(at_ms) for _, at_ms, _ in rows]
    assert since == sorted(since)
    assert 0 < since[-1] < 1000 * DEADLINE_S
    assert sum(float(step_ms) for _, _, step_ms in rows) == pytest.approx(since[-1], abs=0.1)
    assert '"came_by":["S1/M1","S1/M2","S2/M1"]' in await run.says("U2 receives:")


async def test_letters_arrive_translated() -> None:
    async with demo("letters") as run:
        assert await ended(run.process) == 0, run.lines
        await run.says("G had its report after")
    assert "Hello, my friend! I miss you. When can we have a «cafezinho»? A hug, T" in await run.says("G receives:")
    assert '"by":"T@magic-machine"' in await run.says("G receives:")
    assert "Let us drink coffee on Saturday." in await run.says("T receives:")
    assert "T → magic-machine/portuguese → magic-machine/english → magical-boks/english → G" in run.lines
    assert "G → magical-boks/afrikaans → magical-boks/english → magic-machine/english → T" in run.lines


async def test_pages_show_messages_until_ctrl_c() -> None:
    async with demo("--page") as run, aiohttp.ClientSession() as session:
        pages = {name: (await run.says(f"{name}'s page:")).split()[-1] for name in ("S1", "S2", "S3")}
        await run.says("Ctrl-C ends the demo")
        async with asyncio.timeout(3 * DEADLINE_S):
            for name, page in pages.items():
                status: dict[str, Any] = {}
                counts: dict[str, int] = {}
                while min(counts.values(), default=0) < 4:  # a rehearsal, the story, and two more
                    await asyncio.sleep(0.05)
                    async with session.get(f"{page}api/status") as answer:
                        status = await answer.json()
                    counts = {type_: row["answered"] for type_, row in status["types"].items() if type_ != "(others)"}
                assert (status["server"], "M1" in counts) == (name, True)
            async with session.get(pages["S2"]) as answer:
                assert "<!doctype html>" in await answer.text()
        run.process.send_signal(signal.SIGINT)
        assert await ended(run.process) == 0, run.lines


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_signal_ends_the_demo_and_all_its_processes(number: int, status: int) -> None:
    async with demo() as run:
        await run.says("The deployment")  # the servers are about to start
        run.process.send_signal(number)
        assert await ended(run.process) == status, run.lines
    assert not [line for line in run.lines if "Traceback" in line]


async def test_unknown_story_is_wrong_usage() -> None:
    async with demo("fairy-tale") as run:
        assert await ended(run.process) == 2
        assert "fairy-tale" in await run.says("bester:")


async def test_server_that_cannot_start_is_named_with_its_last_log_line() -> None:
    async with short_directory() as directory:
        (s1, *others), _ = write_files(STORIES["deployment"], "fabric", directory)
        assert s1.path is not None
        s1.path.unlink()
        person = Person("U1", str(s1.native.tcp4), "secret", 1)
        async with Servers((s1, *others), {}) as servers:
            with pytest.raises(BesterError, match=r"S1 ended with exit status 2; S1: bester: .*s1\.toml"):
                await asyncio.wait_for(person.connect(servers.check), DEADLINE_S)
        assert programs_in(directory) == []
