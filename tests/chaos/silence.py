"""Handlers that a broker takes for dead: each must be dead, or have been stopped for a while.

A broker writes a line into its log when a handler has fallen silent, with the number of the process. That process is
looked at then. `Silences` judges, and is pure; `watch` reads the logs and the processes.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from pathlib import Path

from tests.chaos.cables import Cable
from tests.chaos.journal import now_s
from tests.chaos.processes import Part

LOST = re.compile(r"lost role='handler' name='([^']*)' why='fallen silent' process=(\d+)")
LOOK_S = 0.2
LONG_AGO_S = 9.0
"""A process that was stopped may be taken for dead so long afterwards: three heartbeats, and time to look."""
STARVED_S = 2.0
"""A watch that was itself kept waiting for so long shows a machine that lets nobody speak."""
NOBODY = 0
"""Number of no process."""
GONE = frozenset("TtZX")
"""States in /proc of a process that is stopped, or dead."""


class Silences:
    """Handlers taken for dead: `count` of them, and those that were `wrong`."""

    def __init__(self) -> None:
        self.count = 0
        self.wrong: list[str] = []
        self._stopped: dict[int, float] = {}  # until when, by process
        self._looked_s = inf
        self._starved_s = -inf

    def stops(self, process: int) -> None:
        """Note that a process is stopped from now on."""
        self._stopped[process] = inf

    def goes_on(self, process: int, at_s: float) -> None:
        """Note that a process is stopped no more."""
        self._stopped[process] = at_s

    def is_cut_off(self, process: int, at_s: float) -> None:
        """Note that a process was not heard by all until now."""
        self._stopped[process] = max(self._stopped.get(process, -inf), at_s)

    def look(self, at_s: float) -> None:
        """Note that the watch looks; call some times a second."""
        if at_s - self._looked_s > STARVED_S:
            self._starved_s = at_s
        self._looked_s = at_s

    def lost(self, where: str, name: str, process: int, state: str | None, at_s: float) -> None:
        """Judge the loss of a handler whose process is in this state (as in /proc; None: there is no such process)."""
        self.count += 1
        if state is None or state in GONE:
            return
        if at_s - max(self._stopped.get(process, -inf), self._starved_s) > LONG_AGO_S:
            self.wrong.append(f"{where} took handler {name!r} (process {process}) for dead, and it was alive")


async def watch(silences: Silences, parts: Sequence[Part], cables: Sequence[Cable] = ()) -> None:
    """Read the logs of these parts until cancelled, and look at the cables between them."""
    places = dict.fromkeys(parts, 0)
    while True:
        silences.look(now_s())
        for cable in cables:
            for process in cable.silenced():
                silences.is_cut_off(process, now_s())
        for part, place in places.items():
            news, places[part] = part.news(place)
            for name, text in LOST.findall(news):
                process = int(text)
                if process == os.getpid():  # that of a cable: the broker knows no other
                    process = next((pid for cable in cables if (pid := cable.worker(name)) is not None), NOBODY)
                silences.lost(part.name, name, process, state_of(process), now_s())
        await asyncio.sleep(LOOK_S)


def state_of(process: int) -> str | None:
    """Return the state of a process, a letter as in /proc; None where there is no such process."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return None
