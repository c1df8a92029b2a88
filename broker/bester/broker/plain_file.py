"""Reads a small file on the loop: never a pipe or a device, at which the loop would wait until somebody writes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read(path: Path, limit_bytes: int) -> bytes:
    """Return the first bytes of a file. Raises OSError, also where the path is that of a pipe, a socket or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe's open would wait for its writer
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):  # before `fdopen`, which would leave the descriptor of one open
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is a pipe or a device, and no file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit_bytes)
    finally:
        os.close(descriptor)
