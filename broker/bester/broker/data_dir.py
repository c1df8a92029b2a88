"""The directory of a server's data: private to its owner, and used by one server at a time.

The fabric's socket in it admits whoever can open it, so the directory's mode is
what keeps others out. It never changes the mode of a directory that holds
anything of somebody else's.
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
"""What belongs to everybody on the machine, even where it is empty: closed to others it would break what they run."""
OURS = frozenset({LOCK, "fabric.sock", *(name + end for name in DATABASES for end in ("", "-wal", "-shm", "-journal"))})


def prepare(path: Path) -> None:
    """Make the directory with mode 0700, or see that it has it. Raises ConfigError with the remedy."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & 0o077:
            return
        everybodys = SYSTEM.fullmatch(str(path.resolve())) is not None
        if not everybodys and set(os.listdir(path)) <= OURS:  # empty, or made by us under another umask
            path.chmod(0o700)
            return
    except FileExistsError:
        raise ConfigError(f"{path}: is no directory; name another one as [server] data_dir") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a directory of your own as [server] data_dir") from None
    if everybodys or path.resolve() == Path(os.path.expanduser("~")).resolve() or path.stat().st_uid != os.geteuid():
        what = f"others use it, too (mode {mode:04o}); name a directory of Bester's own as [server] data_dir"
        raise ConfigError(f"{path}: {what}")
    raise ConfigError(f"{path}: others may open it (mode {mode:04o}); chmod 700 it, or name another [server] data_dir")


ENDING_S = 30.0
"""How long a process is waited for that says it is about to end: longer than a server drains."""
ENDING = b"ending\n"
LOOK_AGAIN_S = 0.05

_held: list[Lock] = []


def about_to_end() -> None:
    """Note in every lock of this process that it will soon be free: whoever wants it next waits for that."""
    for lock in _held:
        lock.mark()


async def until_ended(path: Path) -> None:
    """Wait while another server serves from a data directory and says that it is about to end."""
    deadline = time.monotonic() + ENDING_S
    while _is_ending(path / LOCK) and time.monotonic() < deadline:  # noqa: ASYNC110 (another process tells by its file)
        await asyncio.sleep(LOOK_AGAIN_S)


def _is_ending(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # whether it can be used at all, whoever takes it finds out
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
            owner = self._said().partition("\n")[0]
            self.close()
            who = f"process {owner}" if owner.isdigit() else "another process"
            text = f"{thing}: {who} serves from it; stop that, or name another {key}"
            raise BesterError("not-allowed", text) from None
        if not re.fullmatch(r"[\d\0]*(\nending)?", self._said()):
            self.close()
            raise ConfigError(f"{lock}: somebody else's file, where the lock of {thing} would be; name another {key}")
        with contextlib.suppress(OSError):  # a full disk: then nobody is told who has it, and it is held all the same
            os.ftruncate(self._fd, 0)
            os.write(self._fd, b"%d\n" % os.getpid())
        _held.append(self)

    def mark(self) -> None:
        """Note that the process is about to end."""
        try:
            os.pwrite(self._fd, ENDING, len(b"%d\n" % os.getpid()))
        except OSError:  # a full disk: whoever wants the lock is refused, as long as it is held
            pass

    def _said(self) -> str:
        """Return the beginning of the file: who has it, or had it last."""
        return os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()

    def close(self) -> None:
        """Give it free."""
        if self in _held:
            _held.remove(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Claim(Lock):
    """The right to serve from a directory."""

    def __init__(self, path: Path) -> None:
        """Prepare and claim the directory. Raises ConfigError, or BesterError where another server has it."""
        prepare(path)
        super().__init__(path / LOCK, path, "[server] data_dir")
