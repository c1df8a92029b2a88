"""The directory of a server's data: private to its owner, and used by one server at a time.

The fabric's socket in it admits whoever can open it, so the directory's mode is
what keeps others out. It never changes the mode of a directory that holds
anything of somebody else's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from pathlib import Path

from bester.broker.wire.codes import BesterError, ConfigError

LOCK = "server.lock"
DATABASES = ("accounts.db", "store.db")
OURS = frozenset({LOCK, "fabric.sock", *(name + end for name in DATABASES for end in ("", "-wal", "-shm", "-journal"))})


def prepare(path: Path) -> None:
    """Make the directory with mode 0700, or see that it has it. Raises ConfigError with the remedy."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & 0o077:
            return
        if set(os.listdir(path)) <= OURS:  # empty, or made by us under another umask
            path.chmod(0o700)
            return
    except FileExistsError:
        raise ConfigError(f"{path}: is no directory; name another one as [server] data_dir") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a directory of your own as [server] data_dir") from None
    raise ConfigError(f"{path}: others may open it (mode {mode:04o}); chmod 700 it, or name another [server] data_dir")


class Lock:
    """The right to a thing that one process at a time may use, held until it is closed or the process ends."""

    def __init__(self, lock: Path, thing: Path, key: str) -> None:
        """Take it by way of the file `lock`; `key` is where another thing can be named.

        Raises ConfigError, or BesterError where another process has it. What is no lock of Bester's is left as it is.
        """
        try:
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            where = lock if os.path.lexists(lock) else lock.parent
            raise ConfigError(f"{where}: {error.strerror}; name a place of your own as {key}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = self._said()
            self.close()
            who = f"process {owner}" if owner.isdigit() else "another process"
            text = f"{thing}: {who} serves from it; stop that, or name another {key}"
            raise BesterError("not-allowed", text) from None
        if not re.fullmatch(r"[\d\0]*", self._said()):
            self.close()
            raise ConfigError(f"{lock}: somebody else's file, where the lock of {thing} would be; name another {key}")
        with contextlib.suppress(OSError):  # a full disk: then nobody is told who has it, and it is held all the same
            os.ftruncate(self._fd, 0)
            os.write(self._fd, b"%d\n" % os.getpid())

    def _said(self) -> str:
        """Return the beginning of the file: who has it, or had it last."""
        return os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()

    def close(self) -> None:
        """Give it free."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Claim(Lock):
    """The right to serve from a directory."""

    def __init__(self, path: Path) -> None:
        """Prepare and claim the directory. Raises ConfigError, or BesterError where another server has it."""
        prepare(path)
        super().__init__(path / LOCK, path, "[server] data_dir")
