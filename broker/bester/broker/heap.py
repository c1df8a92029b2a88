"""The heap of a serving process: freed memory is kept for the next bodies, rather than given back to the system.

By itself glibc gives back the end of its heap as soon as 128 KiB are free there. Bodies of that size come and go by the
thousand a second: each would be asked for anew in every process that it passes, page by page, and these page faults
take a fifth to a third of the time of a message of 100 kB. Other C libraries have no such setting, and need none.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 16 * 1024 * 1024
"""Free memory at the end of a heap that is kept: the large bodies between the turns of a loop, several times over. Each
thread that allocates has a heap of its own: one of Python and one of ZeroMQ."""
MAPPED_BYTES = 4 * 1024 * 1024
"""Blocks of this size are given back as soon as they are free: larger than a message. glibc sets a bound for these by
itself, unless it is told what to keep."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Keep freed memory from now on, unless the environment has settings of its own for glibc."""
    try:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    except (OSError, TypeError):  # a program that is linked as one piece, or another system
        return
    if mallopt is not None and not any(name in os.environ for name in _SETTINGS):
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
