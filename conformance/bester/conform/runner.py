"""Run cases concurrently, each with its own deadline, and report them in the order of their numbers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from bester.conform.cases import Case
from bester.conform.result import Result, Unseen

CASE_S = 60.0
"""Longest time for a case: each wait in the case has its own, shorter, limit."""


async def run(
    cases: Sequence[Case],
    play: Callable[[Case], Awaitable[Result]],
    told: Callable[[Result], None],
    jobs: int,
) -> list[Result]:
    """Play cases, `jobs` at once; `told` receives each result as soon as those of lower numbers are there."""
    places = asyncio.Semaphore(jobs)
    done: dict[int, Result] = {}
    results: list[Result] = []

    async def one(case: Case) -> None:
        async with places:
            done[case.number] = await play(case)
        while len(results) < len(cases) and cases[len(results)].number in done:
            results.append(done[cases[len(results)].number])
            told(results[-1])

    async with asyncio.TaskGroup() as group:
        # Cases that wait longest begin first: the short ones fit in beside them.
        for case in sorted(cases, key=lambda case: case.start == "welcomed" and "slow" not in case.needs):
            group.create_task(one(case))
    return results


async def judged(case: Case, script: Callable[[], Awaitable[None]], output: Callable[[], list[str]]) -> Result:
    """Run a script and return its result: an Unseen that the script raises is a failure."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(CASE_S):
            await script()
    except Unseen as unseen:
        return Result(case, "fail", time.monotonic() - started, " ".join(str(unseen).split()), output())
    except TimeoutError:
        return Result(case, "fail", time.monotonic() - started, f"was not over after {CASE_S:g} s", output())
    return Result(case, "pass", time.monotonic() - started)
