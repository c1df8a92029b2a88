"""Remains on disk of a chaos run, once all its processes have ended: no message may still wait."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import is_mailbox, lane, owner_of
from bester.broker.wire.outcomes import OUTCOME_TYPE
from tests.chaos.traffic import SENDERS

CRASH = "Traceback (most recent call last)"
SHOWN_LINES = 30
"""Lines of a crash that are shown: its place and its error, mostly."""


def waiting(server: Path, name: str) -> list[str]:
    """Yield the messages that still wait in a server's store.

    A sender who has gone is told later outcomes when it returns. Outcomes for another server wait for a minute where
    they concern a message that it has lost with a life, unreported; the ledger checks that each due outcome is told.
    """
    with closing(SqliteStore(server / "data" / "store.db")) as store:
        queues = store.open().queues
    return [
        f"still waits at {name}: {state.messages} in {queue!r}"
        for queue, state in queues.items()
        if state.messages and not may_wait(queue, SENDERS[name])
    ]


def may_wait(queue: str, sender: str) -> bool:
    """Return whether messages may be left in a queue: later outcomes for the sender or another
    server."""
    return owner_of(queue) == sender if is_mailbox(queue) else queue == lane(owner_of(queue), OUTCOME_TYPE)


def crashes(directory: Path) -> list[str]:
    """Return the crashes in the logs of a run."""
    found = []
    for log in sorted(directory.rglob("*.log")):
        before, crash, after = log.read_text(errors="replace").partition(CRASH)
        if crash:
            last = before.splitlines()[-1:]
            found.append("\n".join([f"a crash in {log.name}:", *last, crash, *after.splitlines()[:SHOWN_LINES]]))
    return found
