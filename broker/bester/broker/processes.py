"""State of other processes as the operating system reports it (`/proc`, as on Linux)."""

from __future__ import annotations

import os
from pathlib import Path

STOPPED = frozenset("Tt")
"""States of a process that a signal (T) or a debugger (t) has stopped."""


def is_stopped(process: int) -> bool:
    """Return whether a process is stopped; False if the system does not report its state."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return False
    return not STOPPED.isdisjoint(stat.rpartition(")")[2].split()[:1])


def exists(process: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
