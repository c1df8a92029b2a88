"""Ends the processes that a test process leaves behind where it dies itself: interrupted, killed, or out of memory.

A test ends its own children, in its own code, which does not run in a process that is killed: pytest's controller kills
a worker that has not ended some seconds after an interrupt. So a guard, a process in a session of its own, waits for
the end of the test process, and ends all processes with the mark that the test process has put into its environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "BESTER_TEST_PROCESS"
"""Variable of the environment of a test process and all its children."""
PATIENCE_S = 5.0
"""Time from SIGTERM to SIGKILL: a server ends its own handlers meanwhile."""
STEP_S = 0.05


@contextmanager
def guarded() -> Iterator[None]:
    """Have all later children of this process ended when it ends, or leaves the context."""
    before = os.environ.get(MARK)
    os.environ[MARK] = mark = f"{os.getpid()}-{os.urandom(4).hex()}"
    command = [sys.executable, "-I", "-S", __file__, mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            os.environ.pop(MARK)
            if before is not None:
                os.environ[MARK] = before


def unmarked() -> dict[str, str]:
    """Return the environment for a process that outlives this one, and ends by itself."""
    return {name: value for name, value in os.environ.items() if name != MARK}


def marked(mark: str) -> list[int]:
    """Return the processes with a mark, but for this one."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if entry in (process / "environ").read_bytes().split(b"\0") and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def end(mark: str) -> None:
    """End the processes with a mark."""
    late_at = time.monotonic() + PATIENCE_S
    told: set[int] = set()
    while (left := marked(mark)) and (now := time.monotonic()) < late_at + PATIENCE_S:
        for process in left:
            if now >= late_at or process not in told:
                told.add(process)
                try:
                    os.kill(process, signal.SIGKILL if now >= late_at else signal.SIGTERM)
                except OSError:
                    continue
        time.sleep(STEP_S)  # these are no children of this process: nothing tells of their end


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the test process has ended
    end(sys.argv[1])
