"""Dead letters that a chaos run leaves in the stores of its servers, to be read once all processes have ended."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import FindDeadLetters

MOST = 10_000


class DeadLetter(NamedTuple):
    """A dead letter: its server, its message (by the run's number), the reason, its date in seconds since 1970, and the
    server to which the message was on its way, where there was one."""

    server: str
    number: int
    reason: str
    at_s: float
    to: str | None


def dead_letters(directory: Path, server: str) -> list[DeadLetter]:
    """Return a server's, oldest first; `directory` is the server's own."""
    with closing(SqliteStore(directory / "data" / "store.db")) as store:
        store.open()
        found = store.read(FindDeadLetters(None, None, MOST))
    return [
        DeadLetter(server, json.loads(letter.body)["number"], letter.reason, letter.at_s, letter.meta.get("server"))
        for letter in reversed(found)
    ]
