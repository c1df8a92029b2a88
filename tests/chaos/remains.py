"""What a chaos run leaves on disk once all its processes have ended: there must be nothing that still waits.

It must never be asked while a server runs.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import is_mailbox, lane, owner_of
from bester.broker.wire.outcomes import OUTCOME_TYPE
from tests.chaos.traffic import SENDERS

CRASH = "Traceback (most recent call last)"
SHOWN_LINES = 30
"""Of a crash: its place and its error, mostly."""


def waiting(server: Path, name: str) -> list[str]:
    """Say what still waits in a server's store.

    A sender who has gone is told later outcomes when it returns. News for another server wait for a minute where they
    are of a message that it has lost with a life, unreported; that all that must be told is told, the ledger sees.
    """
    with closing(SqliteStore(server / "data" / "store.db")) as store:
        boxes = store.open().queues
    return [
        f"still waits at {name}: {state.messages} in {box!r}"
        for box, state in boxes.items()
        if state.messages and not _may_wait(box, SENDERS[name])
    ]


def _may_wait(box: str, sender: str) -> bool:
    return owner_of(box) == sender if is_mailbox(box) else box == lane(owner_of(box), OUTCOME_TYPE)


def crashes(directory: Path) -> list[str]:
    """Return what the logs of a run say of programs that fell over their own feet."""
    found = []
    for log in sorted(directory.rglob("*.log")):
        before, crash, after = log.read_text(errors="replace").partition(CRASH)
        if crash:
            last = before.splitlines()[-1:]
            found.append("\n".join([f"a crash in {log.name}:", *last, crash, *after.splitlines()[:SHOWN_LINES]]))
    return found
