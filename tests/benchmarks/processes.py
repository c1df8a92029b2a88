"""Processes of the benchmark: started, watched and ended one by one, by their process id.

Each writes to a log of its own, whose last line explains a death. Invariant: only started processes are ended, and none
of them is left.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.benchmarks.programs import BenchmarkError

STOP_TIMEOUT_S = 15.0  # a server drains for 10 s at most
START_TIMEOUT_S = 30.0  # imports and a first handshake on a loaded machine
LAST_WORDS = 300  # characters of a log line that explain enough
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAUSE_S = 0.02  # between two looks at a process that is starting


def children(pid: int) -> list[int]:
    """Return the process ids of all living descendants of a process, parents first."""
    by_parent: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process ended while we looked
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                by_parent.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, unseen = [], [pid]
    while unseen:
        below = sorted(by_parent.get(unseen.pop(0), []))
        found += below
        unseen += below
    return found


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def peak_memory_bytes(pid: int) -> int:
    """Return the most memory that a process has had resident up to now; 0 for a process that has ended."""
    return _memory(pid, "VmHWM:")


def memory_bytes(pid: int) -> int:
    """Return the memory that a process has resident now; 0 for a process that has ended."""
    return _memory(pid, "VmRSS:")


def _memory(pid: int, field: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


class Running:
    """A process and its descendants, from `with` to its end.

    `stop_timeout_s` is the time from SIGTERM to SIGKILL at the end.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.stop_timeout_s = STOP_TIMEOUT_S
        self._log = folder / f"{name.replace(' ', '-')}.log"
        with self._log.open("wb") as log:
            # In a session of its own, so that Ctrl-C reaches the benchmark alone, which then ends the process in order.
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def log(self) -> str:
        """Return the log up to now."""
        return self._log.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready` returns true; raise BenchmarkError when the process dies or stays silent."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            last = (self.log().strip().splitlines() or ["(it wrote nothing)"])[-1][:LAST_WORDS]
            if self._process.poll() is not None:
                raise BenchmarkError(f"{self.name} ended with status {self._process.returncode}: {last}")
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.name} was not ready within {START_TIMEOUT_S:.0f} s: {last}")
            time.sleep(PAUSE_S)

    def kill(self) -> None:
        """Kill the process, as a crash does."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        offspring = children(self.pid)
        self._process.terminate()
        try:
            self._process.wait(self.stop_timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in offspring:  # a server ends its own; this is for one that was killed
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
