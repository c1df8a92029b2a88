"""The common part of the hostile programs: manners from the parent's "go" to its "stop", and their counts.

A program that is loaded waits for its "go". At "stop" it tells its counts and ends at once: a thread hears the parent,
as the loop is busy.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

AT_WORK = "at work"
PAUSE_S = 0.1
"""Between two attempts of a manner whose connection was ended."""
LOWEST = 19
"""Priority (`nice`) of a program that yields, where the system has nothing lower."""


class Program:
    """A hostile program: `spec` holds addresses, keys and passwords, `counts` the deeds and the letters seen.

    `deed` names the count that shows the program at work.
    """

    deed = "batches"

    def __init__(self, spec: dict[str, Any], seed: int) -> None:
        self.spec = spec
        self.random = Random(seed)
        self.counts: Counter[str] = Counter({"seen": 0})
        self.mark = spec["mark"].encode()

    def look(self, data: bytes) -> None:
        """Count letters of the honest that this program can read."""
        if self.mark in data:
            self.counts["seen"] += data.count(self.mark)

    async def rest(self) -> None:
        """Give the other manners a turn: a write into a queue with room gives nobody else one. Longer where the run is
        brief, for the server has to work off what it has taken in."""
        await asyncio.sleep(self.spec["rest_s"])

    async def again(self, name: str, manner: Callable[[], Awaitable[None]]) -> None:
        """Go on with a manner for ever, with new connections where the server has ended them."""
        while True:
            with suppress(OSError, EOFError, TimeoutError):
                await manner()
            self.counts[name] += 1
            await asyncio.sleep(PAUSE_S * (0.5 + self.random.random()))


def yield_to_others() -> None:
    """Run while nobody else needs the processor; call before the program has threads, which inherit that.

    Real attackers have processors of their own, so here the server and the honest go first. A program of low priority
    keeps a processor for its slice of some milliseconds where another one wakes up; an idle one (Linux) gives it up at
    once.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    os.nice(LOWEST)


async def _at_work(program: Program) -> None:
    """Tell the parent when the program floods the server, or does the one thing that it was told to."""
    counts = program.counts
    while not (counts.total() if program.spec.get("manner") else counts[program.deed]):
        await asyncio.sleep(PAUSE_S)
    print(AT_WORK, flush=True)


def _end_at_stop(program: Program) -> None:
    """Wait for the parent's "stop", or its end; then tell the counts, and end the process."""
    sys.stdin.readline()
    print(json.dumps(program.counts.copy()), flush=True)
    os._exit(0)


async def _run(program: Program, manners: Sequence[tuple[str, Callable[[], Awaitable[None]]]]) -> None:
    """Run the manners until the process ends. Raises the exception of a manner that has failed."""
    wanted = program.spec.get("manner")
    chosen = [(name, manner) for name, manner in manners if wanted in (None, name)]
    if not chosen:
        raise SystemExit(f"there is no manner {wanted!r}: {', '.join(sorted({name for name, _ in manners}))}")
    async with asyncio.TaskGroup() as group:
        for name, manner in chosen:
            group.create_task(program.again(name, manner))
        group.create_task(_at_work(program))


def main(make: Callable[[dict[str, Any], int], Any]) -> None:
    """Run a program: the command line is its spec (JSON) and its seed; its counts are printed at the end."""
    # a write to a connection that the server has ended is a warning
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    spec = json.loads(sys.argv[1])
    if spec["yields"]:
        yield_to_others()
    program = make(spec, int(sys.argv[2]))
    if not sys.stdin.readline():
        return  # the parent has ended
    threading.Thread(target=_end_at_stop, args=(program,), daemon=True).start()
    asyncio.run(_run(program, program.manners()))
