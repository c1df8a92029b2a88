"""The common part of the hostile programs: manners that run until the parent says stop, and their counts."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

AT_WORK = "at work"
PAUSE_S = 0.1
"""Between two attempts of a manner whose connection was ended."""


class Program:
    """A hostile program: `spec` holds addresses, keys and passwords, `counts` the deeds and the letters seen."""

    def __init__(self, spec: dict[str, Any], seed: int) -> None:
        self.spec = spec
        self.random = Random(seed)
        self.counts: Counter[str] = Counter({"seen": 0})
        self.mark = spec["mark"].encode()

    def look(self, data: bytes) -> None:
        """Count letters of the honest that this program can read."""
        if self.mark in data:
            self.counts["seen"] += data.count(self.mark)

    async def again(self, name: str, manner: Callable[[], Awaitable[None]]) -> None:
        """Go on with a manner for ever, with new connections where the server has ended them."""
        while True:
            with suppress(OSError, EOFError, TimeoutError):
                await manner()
            self.counts[name] += 1
            await asyncio.sleep(PAUSE_S * (0.5 + self.random.random()))


async def _at_work(program: Program) -> None:
    """Tell the parent when the program has done anything to the server."""
    while not program.counts.total():
        await asyncio.sleep(PAUSE_S)
    print(AT_WORK, flush=True)


async def _stopped() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def _run(program: Program, manners: Sequence[tuple[str, Callable[[], Awaitable[None]]]]) -> None:
    wanted = program.spec.get("manner")
    chosen = [(name, manner) for name, manner in manners if wanted in (None, name)]
    if not chosen:
        raise SystemExit(f"there is no manner {wanted!r}: {', '.join(sorted({name for name, _ in manners}))}")
    tasks = [asyncio.create_task(program.again(name, manner)) for name, manner in chosen]
    stopped = asyncio.create_task(_stopped())
    tasks.append(asyncio.create_task(_at_work(program)))
    try:
        await asyncio.wait([stopped, *tasks[:-1]], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def main(make: Callable[[dict[str, Any], int], Any]) -> None:
    """Run a program: the command line is its spec (JSON) and its seed; its counts are printed at the end."""
    logging.getLogger("asyncio").setLevel(
        logging.ERROR
    )  # a write to a connection that the server has ended is a warning
    program = make(json.loads(sys.argv[1]), int(sys.argv[2]))
    with suppress(asyncio.CancelledError):
        asyncio.run(_run(program, program.manners()))
    print(json.dumps(program.counts), flush=True)
