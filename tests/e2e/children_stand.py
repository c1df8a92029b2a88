"""Children of a supervisor, in real processes, for the tests of their lives."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.bridge.children.plan import Child
from bester.bridge.children.supervisor import Children

DEADLINE_S = 60.0
"""Deadline of an event: five lives of a child follow each other in some tests, on a loaded machine."""
STEADY = "import time; print('here', flush=True); time.sleep(600)"
"""Program that reports its start and stays."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def python(name: str, program: str, **environment: str) -> Child:
    return Child(name, (sys.executable, "-c", program), environment)


@asynccontextmanager
async def running(directory: Path, *children: Child) -> AsyncIterator[Children]:
    group = Children(children, directory)
    await group.start()
    try:
        yield group
    finally:
        await group.stop()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await asyncio.sleep(0.01)
