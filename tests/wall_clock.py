"""A wall clock for the processes of a test, which the test sets. `prelude` lists the calls that show the clock."""

from __future__ import annotations

import os
import time
from pathlib import Path

PRELUDE = Path(__file__).parent / "prelude"


class WallClock:
    """A clock, kept in a file; processes that are started with `env` see the clock. `ahead_s`: seconds ahead of the
    machine's own clock."""

    def __init__(self, file: Path, ahead_s: float = 0.0) -> None:
        self._file = file
        self.ahead_s = ahead_s
        self.set(ahead_s)

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that a process needs."""
        return {"BESTER_TEST_CLOCK": str(self._file), "PYTHONPATH": path()}

    def set(self, ahead_s: float) -> None:
        """Set the clock; a reader sees the old time or the new one."""
        new = self._file.with_suffix(".new")
        new.write_text(repr(ahead_s))
        os.replace(new, self._file)
        self.ahead_s = ahead_s

    def now_s(self) -> float:
        """The clock's time, in seconds since 1970."""
        return time.time() + self.ahead_s


def path(*before: str) -> str:
    """Return a PYTHONPATH with the prelude in it, behind the paths `before`."""
    return os.pathsep.join(filter(None, (*before, str(PRELUDE), os.environ.get("PYTHONPATH"))))
