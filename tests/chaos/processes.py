"""The processes of a chaos run: started, killed, frozen and started again, one by one, by their process id.

All of them carry a mark in their environment, so that in the end none stays behind, not even an orphan's children.
Invariant: no process without that mark is ever signalled.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.benchmarks.processes import children
from tests.wall_clock import path

ROOT = Path(__file__).resolve().parents[2]
PATH = path(str(ROOT))
"""PYTHONPATH with which our processes find the modules of the run, and the prelude."""
BESTER = str(Path(sys.executable).with_name("bester"))
MARK = "BESTER_CHAOS_RUN"
END_S = 15.0
"""From SIGTERM to SIGKILL in the end: a server drains for 10 s at most."""
LOOK_S = 0.02
"""Seconds between two polls for a change that no event tells of."""


class Part:
    """A program of the run, over all its lives. Its output goes into `NAME.log`."""

    def __init__(self, name: str, directory: Path, mark: str, *, ready: str = "") -> None:
        self.name = name
        self.lives = 0
        self.frozen = False
        self._directory = directory
        self._mark = mark
        self._ready = ready
        self._log = directory / f"{name}.log"
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.serves_since: float | None = None
        """Time at which this life was first seen to be ready (`look`)."""
        self.environment: dict[str, str] = {}
        """Environment variables of the next lives, beside those of all programs."""

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The exit status of the last life, None while the process lives."""
        return None if self._process is None else self._process.poll()

    def reap(self) -> None:
        """Take note of the process's end, where it has ended."""
        if self._process is not None:
            self._process.poll()

    def start(self, *command: str) -> None:
        """Begin another life."""
        assert not self.alive
        self.lives += 1
        self.frozen = False
        self.serves_since = None
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                cwd=self._directory,
                env={
                    **os.environ,
                    **self.environment,
                    "PYTHONPATH": PATH,
                    "PYTHONUNBUFFERED": "1",
                    MARK: self._mark,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the run alone
            )

    def look(self, at_s: float) -> None:
        """Note whether this life is ready by now."""
        if self.serves_since is None and self.alive and self.ready:
            self.serves_since = at_s

    @property
    def ready(self) -> bool:
        """Return whether this life has logged that it is ready."""
        return all(word in self.log() for word in self._ready.split("|"))

    def log(self) -> str:
        """Return the log of this life."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def news(self, place: int) -> tuple[str, int]:
        """Return the whole lines of the log, over all lives, from a place on, and the place behind them."""
        if not self._log.exists():
            return "", place
        with self._log.open("rb") as log:
            log.seek(place)
            lines, line_feed, _ = log.read().rpartition(b"\n")
        return lines.decode(errors="replace"), place + len(lines) + len(line_feed)

    def offspring(self) -> list[int]:
        """Return the handler processes that this part has started."""
        if self._process is None or not self.alive:
            return []
        return [pid for pid in children(self._process.pid) if "bester.handlers" in _command_line(pid)]

    def worker(self, name: str) -> int | None:
        """Return the handler process of this name that this part has started, None where there is none."""
        return next((pid for pid in self.offspring() if f"--name {name} " in _command_line(pid)), None)

    def processes(self) -> list[int]:
        """Return the process of this part, while it lives."""
        return [self._process.pid] if self._process is not None and self.alive else []

    def kill(self) -> None:
        """Send SIGKILL, also to a frozen process; return when the process is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        if self._process is not None and self.frozen:
            self._process.send_signal(signal.SIGCONT)
        self.frozen = False

    def signal(self, number: int) -> None:
        """Send a signal, where the process lives."""
        if self._process is not None and self.alive:
            self._process.send_signal(number)

    def ask_to_end(self) -> None:
        """Send SIGTERM, where the process lives."""
        self.signal(signal.SIGTERM)


class Parts:
    """All programs of a run, from `with` to their end."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.all: list[Part] = []

    def part(self, name: str, directory: Path, *, ready: str = "") -> Part:
        """Add a program, which does not run so far. `ready`: words that its log must hold, parted by `|`."""
        part = Part(name, directory, self.mark, ready=ready)
        self.all.append(part)
        return part

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
        try:
            self._end_all()
        finally:
            signal.signal(signal.SIGINT, ctrl_c)

    def _end_all(self) -> None:
        for pid in marked(self.mark):
            signal_one(pid, signal.SIGCONT)
        for part in self.all:
            part.frozen = False
            part.ask_to_end()
        deadline = time.monotonic() + END_S
        while any(part.alive for part in self.all) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        while pids := marked(self.mark):
            for pid in pids:
                signal_one(pid, signal.SIGKILL)
            time.sleep(LOOK_S)
            for part in self.all:
                part.reap()


def signal_one(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def marked(mark: str) -> list[int]:
    """Return every living process that carries this run's mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # the process is gone, or another user's
            if wanted in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def python(module: str, *arguments: str) -> Sequence[str]:
    """Return the command that runs a module of ours."""
    return (sys.executable, "-m", module, *arguments)
