"""New files that get their names whole, and replace none: of keys, and of databases."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def put(new: Path, name: Path) -> None:
    """Give a complete new file of the same directory its name, over power cuts too. Raises FileExistsError where the
    name is taken: nothing is replaced. The caller removes `new`, where it is still there.

    A file system without hard links (FAT, some network mounts) has no such step: there the directory is locked between
    the look at the name and the renaming, so that of two such programs one gets the name. A directory that may
    be written and not read can be neither locked nor waited for.
    """
    with _opened(name.parent) as directory:
        try:
            os.link(new, name)
        except FileExistsError:
            raise
        except OSError:
            if directory is not None:
                with contextlib.suppress(OSError):  # a network mount without locks
                    fcntl.flock(directory, fcntl.LOCK_EX)  # until the descriptor is closed
            if os.path.lexists(name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(name)) from None
            os.rename(new, name)
        if directory is not None:
            _write_down(directory)


def _write_down(directory: int) -> None:
    """Wait until the names in a directory are on the disk; some network mounts do not know how."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int | None]:
    """Open a directory; None for one that this user may not read."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
