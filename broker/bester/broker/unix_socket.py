"""Unix sockets to listen on: bound where nothing of anybody's is in the way, and removed only while they are one's own.

A socket that a server left behind when it was killed is replaced; whatever else is at the path is left as it is, and
said in one line. Whoever opens, replaces or removes one holds a lock on its directory meanwhile, so that of two servers
that start at once with one path the second finds the first one's socket listening.
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

from bester.broker.wire.codes import ConfigError

PATH_BYTES = 107
"""The longest path a Unix socket can have on Linux."""
PROBE_S = 1.0
"""How long a server may take to be found listening; the system answers for it, so only a stopped machine takes long."""
LOCK_S = 2.0
"""How long the directory may be another's: binding takes well below a millisecond. Some file systems have no locks, and
some directories may not be read: then there is none."""
LOCK_AGAIN_S = 0.01


class UnixSocket:
    """A socket that listens, and the file by which it is found."""

    __slots__ = ("_file", "path", "socket")

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.socket = sock
        self.path = path
        self._file: tuple[int, int] | None = _number(path)

    def remove(self) -> None:
        """Remove the file, unless it is somebody else's by now. Call it before the socket is closed: after that another
        file may have the number. A second time it does nothing."""
        ours, self._file = self._file, None
        with contextlib.suppress(OSError), _directory_of(self.path):
            if ours is not None and _number(self.path) == ours:
                os.unlink(self.path)


def _number(path: str) -> tuple[int, int]:
    """Tell one file from all others there are."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def listen(where: str, path: str, *, backlog: int, mode: int | None = None) -> UnixSocket:
    """Listen on a path, with the file's mode where one is given. `where` says in errors what the operator wrote.

    The socket does not block. Raises ConfigError with the remedy.
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
                if mode is not None:  # before anybody is let in
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
    """Remove the socket of a server that is gone. Raises ConfigError where anything else is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        movable = stat.S_ISREG(mode) or stat.S_ISLNK(mode)
        help_ = "remove it or name another path" if movable else "name another path"
        raise ConfigError(f"{where}: is {_kind(mode)}, not a socket; {help_}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except PermissionError:
            raise ConfigError(f"{where}: another user's socket is there; name another path") from None
        except OSError as error:
            # Too many wait to be let in, or it is a socket of another kind: somebody has it.
            if not isinstance(error, TimeoutError | BlockingIOError) and error.errno != errno.EPROTOTYPE:
                raise
    raise ConfigError(f"{where}: another server listens there; stop it or name another path")


def other_kind(path: str) -> str | None:
    """Say what is at a path that is no socket, as "a directory"; None where nothing is, or a socket."""
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
    """Say what the system has against it, and what helps."""
    directory = os.path.dirname(path) or "."
    if isinstance(error, ValueError) or not isinstance(error, OSError):
        return "no path has a zero byte in it; name another one"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no directory {directory}; make it, or name another path"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not write to {directory}; name a path in a directory of yours"
    if error.errno == errno.EADDRINUSE:
        return "somebody else has just put something there; name another path"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}; make room on its disk"
    return f"{error.strerror or error}; name a path in a directory of yours"


@contextlib.contextmanager
def _directory_of(path: str) -> Iterator[None]:
    """Hold the lock of a path's directory, where there can be one."""
    try:
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError):  # whatever is done there will say so
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
