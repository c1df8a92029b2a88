"""Free descriptors, looked for before a step that would not survive the want of one."""

from __future__ import annotations

import os

LEAST = 32
"""Descriptors of a program that serves: its loop, its files, and one ZeroMQ context."""
OF_A_CHILD = 8
"""Descriptors for the start of a child process, beside its streams; uvloop prints tracebacks where it lacks one."""


def require(count: int) -> None:
    """Raise OSError where this process may not open so many more descriptors."""
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0)) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)
