"""What the operating system says of other processes, as far as it says anything (`/proc`, as on Linux)."""

from __future__ import annotations

import os
from pathlib import Path

STOPPED = frozenset("Tt")
"""States of a process that a signal (T) or a debugger (t) has stopped."""


def is_stopped(process: int) -> bool:
    """Say whether a process is stopped; where the system does not tell, it is not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return False
    return not STOPPED.isdisjoint(stat.rpartition(")")[2].split()[:1])


def exists(process: int) -> bool:
    """Say whether there is such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
