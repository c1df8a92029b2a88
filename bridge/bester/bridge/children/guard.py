"""Guard process: outlives its parent just long enough to kill the parent's children.

The guard reads `+PID` and `-PID` lines from a pipe that only the parent holds. When the pipe ends, however the parent
ended, the guard kills the process groups that are still on the list, and exits. Run as a script, which needs nothing
but the standard library.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Follow the list until the pipe ends, then kill the groups on the list."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the parent counts
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        if line[:1] == b"+":
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass


if __name__ == "__main__":
    main()
