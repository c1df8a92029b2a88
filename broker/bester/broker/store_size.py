"""Size of the store and room on its disk, looked up now and then for the figures."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from bester.broker.core.figures import StoreFigures
from bester.broker.store import Store

MEASURE_S = 5.0
"""Time between two looks at a store's files: the size changes slowly, and each look asks the file system."""


class StoreSize:
    """Writes the size of a store into the figures. `file` is the store's file, None where it is none."""

    def __init__(self, store: Store, file: Path | None, figures: StoreFigures) -> None:
        self._store = store
        self._file = file
        self._figures = figures
        self._look_at = 0.0

    def tick(self, now: float) -> None:
        """Look at the size, if the time has come; call a few times a second."""
        if self._file is None:
            self._figures.size_bytes = self._store.size_bytes
            return
        if now < self._look_at:
            return
        self._look_at = now + MEASURE_S
        with contextlib.suppress(OSError):
            log = self._file.with_name(f"{self._file.name}-wal")
            self._figures.log_bytes = log.stat().st_size if log.exists() else 0
            self._figures.size_bytes = self._file.stat().st_size + self._figures.log_bytes
            disk = os.statvfs(self._file.parent)
            self._figures.room_bytes = disk.f_bavail * disk.f_frsize
