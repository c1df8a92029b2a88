"""A directory without room for the index of a database's log: SQLite opens a file there for one process alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from bester.broker import database


class FullDirectory:
    """Stand-in for a full disk in this process, until `has_room` is set. `looks` counts how often a file was looked
    through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_room = False
        self.looks = 0
        self._connect, self._damage = database.connect, database.damage
        monkeypatch.setattr(database, "connect", self._connect_if_alone)
        monkeypatch.setattr(database, "damage", self._look)

    def _connect_if_alone(self, path: Path, timeout_s: float, *, alone: bool = False) -> sqlite3.Connection:
        if not alone and not self.has_room:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
            raise error
        return self._connect(path, timeout_s, alone=alone)

    def _look(self, db: sqlite3.Connection, path: Path, *, order: bool = False) -> str | None:
        self.looks += 1
        return self._damage(db, path, order=order)
