"""Free descriptors: looked for before a step that would not survive the want of one; and errors that tell of it."""

from __future__ import annotations

import errno
import os
import resource

LEAST = 32
"""Descriptors of a program that serves: its loop, its files, and one ZeroMQ context."""
OF_A_CHILD = 8
"""Descriptors for the start of a child process, beside its streams; uvloop prints tracebacks where it lacks one."""
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of a system that cannot give a descriptor or memory now, and may later."""


def is_scarce(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised over, says that the system has no room now."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in SCARCE:
            return True
        error = error.__cause__ or error.__context__
    return False


def limit() -> int:
    """Return how many descriptors this process may have, which may be lowered at any time."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def is_among_last(descriptor: int, kept: int) -> bool:
    """Return whether fewer than `kept` descriptors are free, as a new one tells: it is the lowest that was."""
    return descriptor >= limit() - kept


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
