"""Directory of a server's data: private to its owner, and used by one server at a time.

The fabric's socket in the directory admits any process that can open the socket, so the directory's mode keeps others
out. The mode of a directory with foreign files is never changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import stat
import time
from pathlib import Path

from bester.broker.wire.codes import BesterError, ConfigError

LOCK = "server.lock"
DATABASES = ("accounts.db", "store.db")
SYSTEM = re.compile(
    r"/(bin|boot|dev|etc|home|lib\d*|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|var)?"
    r"|/usr/(bin|etc|games|include|lib|libexec|local|sbin|share|src)"
    r"|/var/(cache|lib|local|lock|log|mail|opt|run|spool|tmp)"
)
"""Directories shared by the whole machine, even if empty: closed to others, they would break other programs."""
OURS = frozenset(
    {LOCK, "fabric.sock", "handlers", "server.key"}
    | {name + end for name in DATABASES for end in ("", "-wal", "-shm", "-journal")}
)


def is_shared(path: Path) -> bool:
    """Return whether a directory belongs to the machine, or is this user's home with foreign files: its mode is not
    Bester's to change. Raises OSError."""
    real = path.resolve()
    if SYSTEM.fullmatch(str(real)) is not None:
        return True
    return real == Path(os.path.expanduser("~")).resolve() and not set(os.listdir(real)) <= OURS


def prepare(path: Path) -> None:
    """Create the directory with mode 0700, or check its mode. Raises ConfigError with the remedy."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & 0o077:
            return
        everybodys = SYSTEM.fullmatch(str(path.resolve())) is not None
        if not everybodys and set(os.listdir(path)) <= OURS:  # empty, or created by Bester under another umask
            path.chmod(0o700)
            return
    except FileExistsError:
        raise ConfigError(f"{path}: is no directory; name another one as [server] data_dir") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a directory of your own as [server] data_dir") from None
    if is_shared(path) or path.stat().st_uid != os.geteuid():
        problem = (
            f"other users share the directory (mode {mode:04o}); name a directory of Bester's own as [server] data_dir"
        )
        raise ConfigError(f"{path}: {problem}")
    raise ConfigError(
        f"{path}: other users may open the directory (mode {mode:04o}); chmod 700 it, or name another [server] data_dir"
    )


ENDING_S = 30.0
"""Seconds to wait for a process that is about to end: longer than a server drains."""
ENDING = b"ending\n"
LOOK_AGAIN_S = 0.05

_held: list[Lock] = []


def about_to_end() -> None:
    """Mark every lock of this process as soon free, so that the next process waits for the lock."""
    for lock in _held:
        lock.mark()


async def until_ended(path: Path) -> None:
    """Wait while another server uses the data directory and has marked its lock as soon free."""
    deadline = time.monotonic() + ENDING_S
    while _is_ending(path / LOCK) and time.monotonic() < deadline:  # noqa: ASYNC110 (another process tells by its file)
        await asyncio.sleep(LOOK_AGAIN_S)


def _is_ending(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # taking the lock tells whether it is usable
    try:
        if os.pread(descriptor, 32, 0).partition(b"\n")[2] != ENDING:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


class Lock:
    """Exclusive right to use a thing, held until `close` or the end of the process."""

    def __init__(self, lock: Path, thing: Path, key: str) -> None:
        """Take the lock by the file `lock`; `key` is the configuration key that names another thing.

        Raises ConfigError, or BesterError if another process holds the lock. A file that is no lock of Bester's stays
        unchanged.
        """
        try:
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            where = lock if os.path.lexists(lock) else lock.parent
            raise ConfigError(f"{where}: {error.strerror}; name a place of your own as {key}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = self._owner_text().partition("\n")[0]
            self.close()
            who = f"process {owner}" if owner.isdigit() else "another process"
            text = f"{thing}: {who} serves from it; stop that, or name another {key}"
            raise BesterError("not-allowed", text) from None
        if not re.fullmatch(r"[\d\0]*(\nending)?", self._owner_text()):
            self.close()
            raise ConfigError(f"{lock}: a foreign file stands where the lock of {thing} would be; name another {key}")
        with contextlib.suppress(OSError):  # a full disk: the lock is held without naming its owner
            os.ftruncate(self._fd, 0)
            os.write(self._fd, b"%d\n" % os.getpid())
        _held.append(self)

    def mark(self) -> None:
        """Mark the lock as soon free."""
        try:
            os.pwrite(self._fd, ENDING, len(b"%d\n" % os.getpid()))
        except OSError:  # a full disk: the next process is refused while the lock is held
            pass

    def _owner_text(self) -> str:
        """Return the beginning of the file: the present or last owner."""
        return os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()

    def close(self) -> None:
        """Release the lock."""
        if self in _held:
            _held.remove(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Claim(Lock):
    """Exclusive right to serve from a directory."""

    def __init__(self, path: Path) -> None:
        """Prepare and lock the directory. Raises ConfigError, or BesterError if another server holds the lock."""
        prepare(path)
        super().__init__(path / LOCK, path, "[server] data_dir")
