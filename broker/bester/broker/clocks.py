"""Readings of the machine's clocks for the core: both clocks at one moment, and the boot since which they run."""

from __future__ import annotations

import time
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Linux; on other systems the wall clock is used after each start."""
_WITH_SLEEP: int | None = getattr(time, "CLOCK_BOOTTIME", None)
CLOCK_APART_S = 0.05
CLOCK_LOOKS = 5
"""Clocks read further apart than this are read again, at most CLOCK_LOOKS times, as the process was stopped between the
two readings."""


def both_clocks() -> tuple[float, float]:
    """Return monotonic and wall clock of one moment, provided that the process was not stopped in between."""
    looks = CLOCK_LOOKS
    while True:
        before, wall_s, now = time.monotonic(), time.time(), time.monotonic()
        looks -= 1
        if now - before < CLOCK_APART_S or not looks:
            return now, wall_s


def with_sleep() -> float:
    """Return the seconds of a clock that goes on while the machine sleeps (Linux; elsewhere the monotonic clock)."""
    return time.clock_gettime(_WITH_SLEEP) if _WITH_SLEEP is not None else time.monotonic()


def boot_id() -> str:
    """Return the id of this boot of the machine, empty if the system has none."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
