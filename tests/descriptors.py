"""The limit of open descriptors, made low for a moment: a system that has none left, without filling it up."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

MOST = 4096
"""Descriptors that are looked at: more than a process of tests has."""


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Leave this process so many free descriptors meanwhile; what runs beside has no more, either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = islice((number for number in itertools.count() if not _is_open(number)), count, None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(free), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors_of(process: int) -> int:
    """Return how many descriptors another process has open. Raises OSError where that is gone."""
    return len(os.listdir(f"/proc/{process}/fd"))


def open_descriptors() -> int:
    """Return how many descriptors this process has open, of the first thousands."""
    return sum(map(_is_open, range(MOST)))


async def settled_descriptors() -> int:
    """Return how many are open once none is closed any more of what earlier tests have left."""
    gc.collect()
    counts = [open_descriptors()]
    while len(counts) < 6 or len(set(counts[-6:])) > 1:
        await asyncio.sleep(0.02)
        counts.append(open_descriptors())
    return counts[-1]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
