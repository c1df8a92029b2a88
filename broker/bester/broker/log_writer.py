"""Writes a log where writing may block, fail or never end, on a thread of its own.

A server must not stop because somebody stopped reading its log: what cannot be written soon waits, within a bound, and
what is above it is dropped, counted, and the count written as soon as writing works again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from bester.broker.streams import wait_for_room

LIMIT_BYTES = 1024 * 1024
"""Of entries that wait: hours of a quiet server's log, and a bound on what a reader that has stopped may cost."""
NOT_READ = "nobody read it"


class LogWriter:
    """Writes entries to a descriptor, in order. Its thread ends with the process.

    `lost(count, why)` returns the entry that says how many others are missing where it stands.
    """

    def __init__(self, descriptor: int, encoding: str, *, lost: Callable[[int, str], str]) -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._lost_entry = lost
        self._entries: deque[bytes] = deque()
        self._bytes = 0
        self._lost = 0
        self._why = ""
        self._busy = False
        self._torn = False  # the last thing written is part of a line
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, entry: str) -> None:
        """Have an entry written soon, or drop it where too much waits."""
        data = f"{entry}\n".encode(self._encoding, "backslashreplace")
        with self._changed:
            # Once one is dropped, all are until the count stands in their place.
            if self._bytes + len(data) > LIMIT_BYTES or (self._lost and self._why == NOT_READ):
                self._count(1, NOT_READ)
                return
            self._entries.append(data)
            self._bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def lose(self, why: str) -> None:
        """Count an entry that cannot be written."""
        with self._changed:
            self._count(1, why)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written; False where that takes longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._entries or self._busy or (self._lost and self._why == NOT_READ):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def _count(self, lines: int, why: str) -> None:
        self._lost += lines
        self._why = why

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                # What failed is not tried again by itself; what was dropped is said as soon as somebody reads again.
                while not self._entries and not (self._lost and self._why == NOT_READ):
                    self._changed.wait()
                self._busy = True
                lines = len(self._entries)
                data = b"".join(self._entries)
                self._entries.clear()
                lost, why = self._lost, self._why
                self._lost = 0
            # What was dropped came after what waited. What failed to be written came before.
            if lost:
                entry = f"{self._lost_entry(lost, why)}\n".encode(self._encoding, "backslashreplace")
                data = data + entry if why == NOT_READ else entry + data
            error = self._write(data)
            with self._changed:
                self._bytes = sum(map(len, self._entries))
                if error is not None:
                    self._count(lines + lost, error)

    def _write(self, data: bytes) -> str | None:
        """Write all of it; return why that was not possible."""
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
