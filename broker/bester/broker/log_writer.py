"""Writer of a log on a thread of its own, as a write may block, fail or never end.

A server must not stop because nobody reads its log. Entries wait within a bound; entries above the bound are dropped
and counted, and the count is written as soon as writing works again.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from bester.broker.streams import has_room, wait_for_room

LIMIT_BYTES = 1024 * 1024
"""Bound of the waiting entries: hours of a quiet server's log, and all that a reader that has stopped may cost."""
PART_BYTES = select.PIPE_BUF
"""Bytes of one write without a thread: a descriptor that has room takes so many without blocking."""
NOT_READ = "the reader had stopped"


class LogWriter:
    """Writes entries to a descriptor, in order, on a daemon thread."""

    def __init__(self, descriptor: int, encoding: str, *, lost: Callable[[int, str], str]) -> None:
        """`lost(count, why)` returns the entry that stands in place of `count` missing ones."""
        self._descriptor = descriptor
        self._encoding = encoding
        self._lost_entry = lost
        self._entries: deque[bytes] = deque()
        self._bytes = 0
        self._lost = 0
        self._why = ""
        self._busy = False
        self._torn = False  # the last write ended within a line
        self._begun = False  # the first entry is the rest of a partly written one
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, entry: str) -> None:
        """Queue an entry for writing, or drop and count the entry above LIMIT_BYTES."""
        data = f"{entry}\n".encode(self._encoding, "backslashreplace")
        with self._changed:
            has_thread = self._has_thread()
            if not has_thread:
                self._write_at_once()
            # After the first drop all entries are dropped until the count is written in their place.
            if self._bytes + len(data) > LIMIT_BYTES or (self._lost and self._why == NOT_READ):
                self._count(1, NOT_READ)
                return
            self._entries.append(data)
            self._bytes += len(data)
            if not has_thread:
                self._write_at_once()
            self._changed.notify_all()

    def lose(self, why: str) -> None:
        """Count an entry that cannot be written."""
        with self._changed:
            self._count(1, why)

    def flush(self, timeout_s: float) -> bool:
        """Wait until every entry is written; return False after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._entries or self._busy or (self._lost and self._why == NOT_READ):
                left_s = deadline - time.monotonic()
                if self._thread is None:
                    self._write_at_once(max(0.0, left_s))
                if left_s <= 0:
                    return False
                if self._thread is not None:
                    self._changed.wait(left_s)
        return True

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has none for us; the next entry tries again
                return False
            self._thread = thread
        return True

    def _write_at_once(self, timeout_s: float = 0.0) -> None:
        """Write on the caller's thread, as far as that does not block: there is no other. `timeout_s`: wait so long for
        the first room."""
        while has_room(self._descriptor, timeout_s):
            timeout_s = 0.0
            if self._lost and not self._begun and (self._why != NOT_READ or not self._entries):
                error = self._write(self._count_of(self._lost, self._why))
                if error is None:
                    self._lost = 0
                else:
                    self._count(0, error)
            elif self._entries:
                error = self._write_part(self._entries.popleft())
            else:
                break
            if error is not None:
                break
        self._bytes = sum(map(len, self._entries))

    def _write_part(self, entry: bytes) -> str | None:
        """Write the beginning of an entry, and leave the rest for the next time; return why that was not possible."""
        part, rest = entry[:PART_BYTES], entry[PART_BYTES:]
        error = self._write(part)
        if error is not None:
            self._torn = self._torn or self._begun
            self._begun = False
            self._count(1, error)
            return error
        self._begun = bool(rest)
        if rest:
            self._entries.appendleft(rest)
        return None

    def _count(self, lines: int, why: str) -> None:
        self._lost += lines
        self._why = why

    def _count_of(self, lines: int, why: str) -> bytes:
        return f"{self._lost_entry(lines, why)}\n".encode(self._encoding, "backslashreplace")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                # A failed write is retried with the next entry; a count of dropped entries is written without one.
                while not self._entries and not (self._lost and self._why == NOT_READ):
                    self._changed.wait()
                self._busy = True
                lines = len(self._entries)
                data = b"".join(self._entries)
                self._entries.clear()
                lost, why = self._lost, self._why
                self._lost, self._begun = 0, False
            # Dropped entries came after the waiting ones; entries whose write failed came before them.
            if lost:
                entry = self._count_of(lost, why)
                data = data + entry if why == NOT_READ else entry + data
            error = self._write(data)
            with self._changed:
                self._bytes = sum(map(len, self._entries))
                if error is not None:
                    self._count(lines + lost, error)

    def _write(self, data: bytes) -> str | None:
        """Write all bytes; return the reason if writing failed, else None."""
        if self._torn:
            data = b"\n" + data
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:
                    wait_for_room(self._descriptor)
        except OSError as error:
            self._torn = 0 < len(rest) < len(data) or (self._torn and len(rest) == len(data))
            return error.strerror or type(error).__name__
        self._torn = False
        return None
