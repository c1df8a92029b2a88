"""Runs `bester demo` as a shell would, and checks that nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.live import BESTER, Process, short_directory


@asynccontextmanager
async def demo(*arguments: str) -> AsyncIterator[Process]:
    """Run a demo in a temporary directory of the test; no process may be left at its end."""
    async with short_directory() as directory:
        process = await Process.start(BESTER, "demo", *arguments, cwd=directory, env={"TMPDIR": str(directory)})
        try:
            yield process
        finally:
            if process.process.returncode is None:
                process.process.kill()
            await process.process.wait()
        assert list(directory.iterdir()) == []
        assert programs_in(directory) == []


def programs_in(directory: Path) -> list[str]:
    """Return the programs whose working directory is below this one, as servers and handlers have it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and os.readlink(entry / "cwd").startswith(str(directory)):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # the process has ended, or is another user's
    return found
