"""Every test leaves the process as it found it: no socket, pipe or event descriptor, no task, no child process."""

from __future__ import annotations

import asyncio
import compileall
import gc
import inspect
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

from tests import orphans
from tests.postgres_server import cluster, postgres
from tests.stores import USUAL, parametrize, store_kind

__all__ = ["cluster", "postgres", "store_kind"]  # fixtures of every test

PROC = Path("/proc/self")
"""The process's entries in /proc; on a system without /proc nothing is checked."""
KINDS = ("socket:", "pipe:", "anon_inode:")
"""Kinds of descriptors that count, as /proc shows them; regular files are closed by the garbage collector."""
DEADLINE_S = 5.0
"""Time in seconds for self-ending leftovers (a thread that closes its pipe, a child that is reaped); a good test needs
none."""
STEP_S = 0.01
SHORT_CHARACTERS = len("/private/tmp")
"""Longest directory for temporary files. A path of a Unix socket has 107 bytes at most, and pytest's names for a worker
and a test take most of them."""
ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("broker", "bridge", "handlers", "client", "cli", "conformance", "tests", "examples")

Belongings = set[tuple[str, str]]


def belongings() -> Belongings:
    """Return the leftovers that a test could leave behind in this process: (kind, name)."""
    found: Belongings = set()
    if not PROC.exists():
        return found
    for name in os.listdir(PROC / "fd"):
        try:
            what = os.readlink(PROC / "fd" / name)
        except OSError:  # the descriptor was the directory listing itself
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
    """Fail where the process holds more at the end than at the beginning."""
    before = belongings()
    yield
    if not belongings() - before:
        return
    gc.collect()
    deadline = time.monotonic() + DEADLINE_S
    while (left := belongings() - before) and time.monotonic() < deadline:
        time.sleep(STEP_S)  # no event tells of the end: poll until the leftovers are gone or the deadline is reached
    if left:
        pytest.fail("left behind: " + ", ".join(f"{what} ({which})" for what, which in sorted(left)))


@pytest.fixture(autouse=True, scope="session")
def _libuv_is_there() -> None:
    """Make uvloop's one pipe beforehand: the first loop of a process opens the pipe, and all later loops keep it."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True, scope="session")
def _no_orphans() -> Iterator[None]:
    """End what is left where this process is killed in the midst of a test."""
    with orphans.guarded():
        yield


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
    """Check the test's own loop: set up before the fixtures that the test asks for, checked after all of them ended."""
    before, held = asyncio.all_tasks(), belongings()
    yield
    deadline = time.monotonic() + DEADLINE_S
    # A task or a transport that was asked to end does so in one of the next turns of the loop.
    while (left := asyncio.all_tasks() - before - {asyncio.current_task()}) or belongings() - held:
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(STEP_S)
    if left:
        pytest.fail(f"tasks left behind: {left}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses the stores of the tests marked `stores`."""
    text = "stores of the tests marked `stores`: all, or sqlite, memory and postgresql with commas"
    parser.addoption("--stores", default=USUAL, metavar="KIND,KIND", help=text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each of its stores."""
    parametrize(metafunc)


def pytest_configure(config: pytest.Config) -> None:
    """Use a directory for temporary files whose path is short. Compile the project once: a test's server or command
    starts in half the time where Python need not compile the project anew, as it does at each start under
    PYTHONDONTWRITEBYTECODE."""
    if not hasattr(config, "workerinput"):  # the workers start after this
        if len(tempfile.gettempdir()) > SHORT_CHARACTERS:
            os.environ["TMPDIR"], tempfile.tempdir = "/tmp", None
        for name in SOURCES:
            compileall.compile_dir(str(ROOT / name), quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Return the workers of `-n auto`: half more than the cores, as tests of real processes wait as long as they
    compute. A number in the environment goes before."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + (cores + 1) // 2


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.fixturenames.insert(item.fixturenames.index("_nothing_left") + 1, "_no_task_left")
