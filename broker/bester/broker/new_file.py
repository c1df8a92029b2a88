"""New files that get their names whole, and replace none: of keys, and of databases."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_UNNAMED = getattr(os, "O_TMPFILE", 0)  # Linux


def write(content: bytes, name: Path) -> None:
    """Write a new file with mode 0600, whole or not at all. Raises OSError: FileExistsError where the name is taken.

    A program that is killed meanwhile leaves nothing. Where the file system has no files without names (FAT, network
    mounts), that program leaves a hidden file beside.
    """
    if _write_unnamed(content, name):
        return
    descriptor, new = tempfile.mkstemp(prefix=f".{name.name}.", dir=name.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            _fill(file, content)
        put(Path(new), name)
    finally:
        Path(new).unlink(missing_ok=True)


def _write_unnamed(content: bytes, name: Path) -> bool:
    """Write a file that has no name before its content is on the disk; return False where the system cannot do that, or
    does not, for a reason that the other way will find again."""
    if not _UNNAMED:
        return False
    try:
        descriptor = os.open(name.parent, _UNNAMED | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            _fill(file, content)
            # With a directory's descriptor, which an absolute path leaves unused: else Python's call names the link in
            # /proc itself, not the file.
            os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
    except FileExistsError:
        raise
    except OSError:
        return False
    with _opened(name.parent) as directory:
        if directory is not None:
            _write_down(directory)
    return True


def _fill(file: BinaryIO, content: bytes) -> None:
    """Write a file's content, and wait until it is on the disk."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


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
