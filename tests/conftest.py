"""Every test leaves the process as it found it: no socket, pipe or event descriptor, no task, no child process."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

PROC = Path("/proc/self")
"""Where there is none, nothing is checked."""
KINDS = ("socket:", "pipe:", "anon_inode:")
"""What a descriptor is, as /proc shows it; regular files are closed by whoever collects the garbage."""
DEADLINE_S = 5.0
"""What ends by itself (a thread that closes its pipe, a child that is reaped) has so long; a good test needs none."""
STEP_S = 0.01

Belongings = set[tuple[str, str]]


def belongings() -> Belongings:
    """Return what this process holds that a test could leave behind: (what, which)."""
    found: Belongings = set()
    if not PROC.exists():
        return found
    for name in os.listdir(PROC / "fd"):
        try:
            what = os.readlink(PROC / "fd" / name)
        except OSError:  # it was the directory itself
            continue
        if what.startswith(KINDS):
            found.add((f"descriptor {name}", what))
    for task in (PROC / "task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:  # the thread has ended, or the kernel does not tell
            continue
        found |= {("child process", child) for child in children}
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail where more is there in the end than in the beginning."""
    before = belongings()
    yield
    if not belongings() - before:
        return
    gc.collect()
    deadline = time.monotonic() + DEADLINE_S
    while (left := belongings() - before) and time.monotonic() < deadline:
        time.sleep(STEP_S)  # there is no event for it: looked at until it is gone or the deadline is there
    if left:
        pytest.fail("left behind: " + ", ".join(f"{what} ({which})" for what, which in sorted(left)))


@pytest.fixture(autouse=True, scope="session")
def _libuv_is_there() -> None:
    """The first uvloop of a process opens a pipe that is kept for all later ones; it is nobody's in particular."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_of_the_module() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    """On the test's own loop: set up before all that the test asks for, looked at after all of it has ended."""
    before, held = asyncio.all_tasks(), belongings()
    yield
    deadline = time.monotonic() + DEADLINE_S
    # What was told to end, a task or a transport, ends in one of the next turns of the loop.
    while (left := asyncio.all_tasks() - before - {asyncio.current_task()}) or belongings() - held:
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(STEP_S)
    if left:
        pytest.fail(f"tasks left behind: {left}")


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.fixturenames.insert(item.fixturenames.index("_nothing_left") + 1, "_no_task_left")
