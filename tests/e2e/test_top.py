"""`bester top` in a terminal: drawn anew, over a restart of the server, and the terminal is left as it was."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bester.cli.top import frame
from tests.live import BESTER, DEADLINE_S, LiveServer, head, short_directory

TOML = head() + '[handlers.echo]\napp = "bester.handlers.stock.echo:app"\n'
ENTERED, LEFT, SHOWN = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


class Terminal:
    """A terminal with a program on it. `text` is what it has written."""

    def __init__(self) -> None:
        self.text = ""
        self._ours, self.theirs = pty.openpty()
        self.resize(24, 100)
        self.before = termios.tcgetattr(self.theirs)
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def _read(self) -> None:
        self.text += os.read(self._ours, 65536).decode(errors="replace")
        self._news.set()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    async def says(self, words: str) -> None:
        """Wait until the words are written, from now on."""
        self.text = ""
        async with asyncio.timeout(DEADLINE_S):
            while words not in self.text:
                self._news.clear()
                await self._news.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)
        os.close(self.theirs)


@asynccontextmanager
async def topped(directory: Path) -> AsyncIterator[tuple[Terminal, asyncio.subprocess.Process]]:
    """Run `bester top` on a terminal of its own."""
    terminal = Terminal()
    there = terminal.theirs
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = await asyncio.create_subprocess_exec(
        BESTER, "top", "--every", "0.2", cwd=directory, stdin=there, stdout=there, stderr=there,
        start_new_session=True, env={**inherited, "TERM": "xterm"},
    )  # fmt: skip
    try:
        yield terminal, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        terminal.close()


async def ended_well(terminal: Terminal, process: asyncio.subprocess.Process, status: int) -> None:
    """Wait for the end, and check that the terminal is as it was."""
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == status
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    async with asyncio.timeout(DEADLINE_S):
        while LEFT not in terminal.text or SHOWN not in terminal.text:
            await asyncio.sleep(0.02)


async def test_screen_goes_on_over_a_restart_and_ends_at_q() -> None:
    async with short_directory() as directory:
        server = await LiveServer.start(directory, TOML)
        try:
            async with topped(directory) as (terminal, process):
                await terminal.says("RECEIVED/S")
                await terminal.says("q quits")
                terminal.resize(8, 30)
                await terminal.says("TYPE  HANDLERS  WAIT  IN FLIGH\x1b")
                terminal.resize(24, 100)
                await server.stop()
                await terminal.says("no server runs with bester.toml")
                server = await LiveServer.start(directory, TOML)
                await terminal.says("q quits")
                terminal.type(b"q")
                await ended_well(terminal, process, 0)
        finally:
            await server.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signal_leaves_the_terminal_as_it_was(number: signal.Signals) -> None:
    async with short_directory() as directory:
        server = await LiveServer.start(directory, TOML)
        try:
            async with topped(directory) as (terminal, process):
                await terminal.says("q quits")
                process.send_signal(number)
                await ended_well(terminal, process, 128 + number)
        finally:
            await server.stop()


def test_frame_has_the_height_of_the_screen_and_counts_types_without_room() -> None:
    row = {
        "received": 0, "answered": 0, "took_s": 0.0, "reported": 0, "whole_s": 0.0, "workers": 1, "waiting": 0,
        "inflight": 0,
    }  # fmt: skip
    status: dict[str, Any] = {
        "server": "s\x1b1", "up_s": 5.0, "users": 0, "sessions": 0, "cases": 0, "logins": {}, "lockouts": 0,
        "queued": {"messages": 0, "mailboxes": 0}, "store": {"bytes": None}, "servers": [],
        "types": {f"t{number}": dict(row) for number in range(100)},
    }  # fmt: skip
    for height in (5, 7, 12):
        assert len(frame(status, status, "", height)) == height
    lines = frame(status, status, "", 24)
    assert (len(lines), lines[-2:]) == (24, [("and 83 more types", "dim"), ("q quits", "dim")])
    assert lines[0][0].startswith("s\\u001b1, up 5 s")
    assert frame(status, status, "gone\x07", 24)[-1] == ("gone\\u0007", "bold red")
