"""Listening Unix sockets: bound where no other file is in the way, and removed only by their owner.

The socket of a killed server is replaced; any other file at the path stays unchanged and is reported in one line. A
process that opens, replaces or removes a socket holds a lock on its directory meanwhile: of two servers that start at
once with one path, the second finds the first one listening.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

from bester.broker.wire.address import PATH_BYTES
from bester.broker.wire.codes import ConfigError

PROBE_S = 1.0
"""Time for the connection to a listening server; the system accepts for it, so only a stopped machine takes long."""
LOCK_S = 2.0
"""Time to wait for the directory's lock; binding takes well below a millisecond. File systems without locks, and
unreadable directories, are used without one."""
LOCK_AGAIN_S = 0.01
DEAD = ""
"""Stands for the socket of a server that has ended, which is in nobody's way."""


class UnixSocket:
    """Listening socket, and the file by which clients find it."""

    __slots__ = ("_file", "path", "socket")

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.socket = sock
        self.path = path
        self._file: tuple[int, int] | None = _number(path)

    def remove(self) -> None:
        """Remove the file, unless another process has replaced it; a repeated call does nothing. Call this method
        before the socket is closed: after that another file may have its inode."""
        ours, self._file = self._file, None
        with contextlib.suppress(OSError), _directory_of(self.path):
            if ours is not None and _number(self.path) == ours:
                os.unlink(self.path)


def _number(path: str) -> tuple[int, int]:
    """Return device and inode, which identify a file."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def listen(where: str, path: str, *, backlog: int, mode: int | None = None) -> UnixSocket:
    """Listen on a path, with the file's `mode` if given. `where` names the socket in errors, as the operator wrote it.

    The socket is non-blocking. Raises ConfigError with the remedy.
    """
    if len(os.fsencode(path)) > PATH_BYTES:
        raise ConfigError(
            f"{where}: longer than the {PATH_BYTES} bytes a Unix socket's path may have; choose a shorter one"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _directory_of(path):
            _make_way(where, path)
            sock.bind(path)
            try:
                if mode is not None:  # before any client can connect
                    os.chmod(path, mode)
                sock.listen(backlog)
                return UnixSocket(sock, path)
            except OSError:
                os.unlink(path)
                raise
    except (OSError, ValueError) as error:
        sock.close()
        raise ConfigError(f"{where}: cannot listen there: {_why(path, error)}") from None
    except BaseException:
        sock.close()
        raise


def _make_way(where: str, path: str) -> None:
    """Remove the socket of a server that has ended. Raises ConfigError if any other file is at the path."""
    found = _found_at(path)
    if found == DEAD:
        os.unlink(path)
    elif found is not None:
        raise ConfigError(f"{where}: {found}")


def _found_at(path: str) -> str | None:
    """Return what is in the way at a path, with the remedy; DEAD for the socket of a server that has ended, None where
    nothing is there. Raises OSError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(mode):
        movable = stat.S_ISREG(mode) or stat.S_ISLNK(mode)
        help_ = "remove it or name another path" if movable else "name another path"
        return f"is {_kind(mode)}, not a socket; {help_}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return DEAD
        except PermissionError:
            return "another user's socket is there; name another path"
        except OSError as error:
            # A full backlog or a socket of another kind: the path is in use.
            if not isinstance(error, TimeoutError | BlockingIOError) and error.errno != errno.EPROTOTYPE:
                raise
    return "another server listens there; stop it or name another path"


def fault(path: str) -> str | None:
    """Return why no server could begin to listen at a path now, with the remedy; None where one could. Changes
    nothing."""
    directory = os.path.dirname(path) or "."
    try:
        found = _found_at(path)
        if not os.path.isdir(directory):
            raise NotADirectoryError(errno.ENOTDIR, "")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "")
    except (OSError, ValueError) as error:
        return _why(path, error)
    return found or None


def other_kind(path: str) -> str | None:
    """Return the kind of a file that is no socket, as "a directory"; None for a socket or a free path."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISSOCK(mode) else _kind(mode)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a file" if stat.S_ISREG(mode) else "a device"


def _why(path: str, error: Exception) -> str:
    """Return the reason of the system's refusal, with the remedy."""
    directory = os.path.dirname(path) or "."
    if isinstance(error, ValueError) or not isinstance(error, OSError):
        return "no path has a zero byte in it; name another one"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no directory {directory}; make it, or name another path"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not write to {directory}; name a path in a directory of yours"
    if error.errno == errno.EADDRINUSE:
        return "another process has just put a file there; name another path"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}; make room on its disk"
    return f"{error.strerror or error}; name a path in a directory of yours"


@contextlib.contextmanager
def _directory_of(path: str) -> Iterator[None]:
    """Hold the lock of a path's directory, if the directory can be locked."""
    try:
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError):  # the operation in the directory reports this error
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(LOCK_AGAIN_S)
            except OSError:
                break
        yield
    finally:
        os.close(fd)
