"""Reads the configuration again at SIGHUP, or once it has changed, and applies the parts that can change live.

Each part checks its piece of the new configuration first, and opens the descriptors that the piece needs; nothing is
applied before all have: a mistake, a file that is gone or empty, or a system that has no descriptor left, keeps
everything as it is, and is logged.
What failed for want of room alone, or for a certificate that is not valid yet, is tried again at the next look.
What no part applies is named in the log.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import stat
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from pathlib import Path

from bester.broker.config import Config
from bester.broker.descriptors import is_scarce
from bester.broker.logs import facts
from bester.broker.terminals import hung_up
from bester.broker.tls_files import NotYetValidError
from bester.broker.wire.codes import BesterError, ConfigError

LOOK_S = 57.0
"""Time between two looks at whether the file has changed: soon enough for who forgets the signal, and little work."""
SETTLED_S = 3.0
"""Time for which a changed file has to stay as it is: the first half of a file that is being written may be sound."""

log = logging.getLogger("bester")

Apply = Callable[[], None]
Prepare = Callable[[Config, ExitStack], Apply]
"""Checks a part of a new configuration, opens what the part needs, and returns a function that applies the part; that
one cannot fail. The stack releases what was opened where another part has a fault. Raises BesterError or OSError for a
mistake, or where the system has no room, before anything has changed."""


class Reloader:
    """Reloads one program's configuration. `read` reads the files; None: this program has none to read again.

    Parts are added with `add`, then `start` is called on the running loop. `watched` are files beside the configuration
    whose change counts as well.
    """

    def __init__(self, config: Config, read: Callable[[], Config] | None) -> None:
        self.config = config
        self.watched: list[Path] = [config.path] if config.path is not None else []
        self._read = read
        self._parts: list[Prepare] = []
        self._live: set[str] = set()
        self._seen: tuple[object, ...] = ()
        self._found: tuple[object, ...] = ()  # at the latest look
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None

    def add(self, keys: Collection[str], prepare: Prepare) -> None:
        """Add a part, which applies these keys of the configuration, as in `fabric.parties` or `servers`."""
        self._live.update(keys)
        self._parts.append(prepare)

    def start(self) -> None:
        """Reload at SIGHUP and at changes from now on."""
        if self._read is None:
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._seen = self._signature()
        self._timer = loop.call_later(LOOK_S, self._tick)

    def close(self) -> None:
        """Reload no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if self._settling is not None:
                self._settling.cancel()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)

    def reload(self) -> bool:
        """Read and apply the configuration; return whether it could be. The log says what became of it."""
        assert self._read is not None
        self._seen = self._signature()
        try:
            if self.config.path is not None:
                _require_file(self.config.path)
            new = self._read()
            with ExitStack() as opened:
                steps = [prepare(new, opened) for prepare in self._parts]
                opened.pop_all()  # what was opened is in use from now on
        except (BesterError, OSError) as error:
            why = error.text if isinstance(error, BesterError) else _words(error)
            fields_ = facts("not-reloaded", why=why)
            log.error("the configuration is not reloaded, and stays as it was: %s", why, extra=fields_)
            if is_scarce(error) or isinstance(error, NotYetValidError):
                self._seen = ()
            return False
        for apply in steps:
            apply()
        changed = changes(self.config, new)
        later = [key for key in changed if key not in self._live]
        text = "the configuration was read again"
        fields_ = facts("reloaded", changed=changed, restart=later)
        if later:
            text += f"; a restart applies {', '.join(later)}"
        log.log(logging.WARNING if later else logging.INFO, "%s", text, extra=fields_)
        if not later:  # else the next reload names them again
            self.config = new
        return True

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._tick)
        self.look()

    def look(self) -> None:
        """Reload if a file has changed, and not since the look before, or what the last reload found no room for."""
        found, before = self._signature(), self._found
        self._found = found
        if found == self._seen:
            return
        if found == before:
            self.reload()
        elif self._timer is not None:
            if self._settling is not None:
                self._settling.cancel()
            self._settling = asyncio.get_running_loop().call_later(SETTLED_S, self.look)

    def _signature(self) -> tuple[object, ...]:
        """Return what tells a changed file from the present one."""
        seen: list[object] = []
        for path in self.watched:
            try:
                status = path.stat()
                seen.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                seen.append(None)
        return tuple(seen)


def _require_file(path: Path) -> None:
    """Raise ConfigError where the file of the running configuration is missing or empty, which would be read as the
    defaults, or is a pipe or a device, whose reader would wait."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ConfigError(f"{path}: is not there any more; put it back, or restart without it") from None
    if stat.S_ISDIR(status.st_mode):
        return  # its reader says so
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(
            f"{path}: is a pipe or a device, which is read at the start alone; put a file there to reload it"
        )
    if not status.st_size:
        raise ConfigError(f"{path}: is empty; put its lines back, or write a comment there for the defaults")


def _words(error: OSError) -> str:
    """Return an error of the system in words."""
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error.strerror or error}"


def changes(old: Config, new: Config) -> list[str]:
    """Return the keys whose values differ: `SECTION.KEY` where a section has keys of its own."""
    found = []
    for field in fields(Config):
        if field.name in ("path", "directory", "notices"):
            continue
        before, after = getattr(old, field.name), getattr(new, field.name)
        if is_dataclass(before) and is_dataclass(after) and type(before) is type(after):
            found += [
                f"{field.name}.{inner.name}"
                for inner in fields(before)
                if getattr(before, inner.name) != getattr(after, inner.name)
            ]
        elif before != after:
            found.append(field.name)
    return found
