"""Run the program under test in its own process group, and kill the program together with its children."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WAITS = ("sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
"""Shell that becomes the program on a line of input, and ends if this process is killed before that."""
OUTPUT_LINES = 6
"""Lines of a program's output that are shown where a case fails."""
OUTPUT_BYTES = 4096
COMPLAINT = re.compile(r"error|exception|fatal|panic|cannot|not found", re.IGNORECASE)
SHUTDOWN_S = 5.0
"""Longest time until a killed process is gone."""


class Program:
    """A running program; its output goes to a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    async def start(
        cls, argv: Sequence[str], environment: Mapping[str, str], log: Path, known: Callable[[int], None]
    ) -> Program:
        """Start a program; `known` receives the process id before the program runs. Raises OSError where the start
        fails.
        """
        if shutil.which(argv[0]) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such program, or it may not be run", argv[0])
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *WAITS,
                *argv,
                env={**os.environ, **environment},
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        known(process.pid)
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()
        return cls(process, log)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the process group."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while the program runs."""
        return self._process.returncode

    def send_signal(self, name: str) -> None:
        """Send a signal to the program itself."""
        if self.status is None:
            self._process.send_signal(signal.Signals[f"SIG{name}"])

    async def exits(self, within_s: float) -> int | None:
        """Wait for the end; return the exit status, None where the program did not end."""
        try:
            return await asyncio.wait_for(self._process.wait(), within_s)
        except TimeoutError:
            return None

    async def end(self) -> None:
        """Kill the program and its children."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        await self.exits(SHUTDOWN_S)

    @property
    def complaint(self) -> str:
        """The last line of the program's output that reads like a complaint, else the last line; empty where there is
        none. A runtime may write more after the error: Node its version, Ruby the callers."""
        lines = self.tail(OUTPUT_BYTES)
        return next((line for line in reversed(lines) if COMPLAINT.search(line)), lines[-1] if lines else "")

    def tail(self, limit: int = OUTPUT_LINES) -> list[str]:
        """Return the last lines of the program's output, with control characters replaced."""
        try:
            text = self._log.read_bytes()[-OUTPUT_BYTES:].decode(errors="replace")
        except OSError:
            return []
        lines = [line for line in text.splitlines() if line.strip()][-limit:]
        return ["".join(char if char.isprintable() else "\ufffd" for char in line.expandtabs()) for line in lines]
