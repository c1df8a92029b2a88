"""A broker whose lease was taken says nothing that rests on its store, on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import pytest

from bester.broker.core.effects import Effects, StoreRead
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.postgres import Database
from bester.broker.store.postgres import PostgresStore
from bester.broker.store_driver import StoreDriver
from bester.broker.store_requests import Bury, Committed, FindDeadLetters, Read, Write
from tests.unit.postgres_cable import Cable
from tests.unit.store_stand import asked, keep, letter

DEADLINE_S = 30.0
LETTERS = FindDeadLetters(None, None, 9)


class Told(Router):
    """A router that records what the driver tells it, and the driver of a store. `log` has `committed` and `read`."""

    def __init__(self, store: PostgresStore) -> None:
        super().__init__(Settings("s1"), epoch="e", first_token=1, now=0.0, wall_s=0.0)
        self.log: list[str] = []
        self.threads: list[threading.Thread] = []
        self.driver = StoreDriver(self, store, lambda effects: None, aside=self._aside)

    def _aside(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work)
        self.threads.append(thread)
        thread.start()

    def on_committed(self, writes: Sequence[Write], result: Committed, now: float) -> Effects:
        self.log.append("committed")
        return Effects()

    def on_reads(self, answered: Iterable[tuple[StoreRead, Any]], now: float) -> Effects:
        self.log += ["read" for _ in answered]
        return Effects()

    def ask(self, *requests: Write | Read) -> None:
        """Ask for writes and reads in one turn."""
        reads = [StoreRead(each, lambda answer, now: None) for each in requests if isinstance(each, Read)]
        self.driver.add([each for each in requests if not isinstance(each, Read)], reads)
        self.driver.run()

    def turn(self) -> None:
        """Let a turn of the loop pass."""
        self.driver.retry()
        self.driver.run()

    def end(self) -> None:
        """Let all threads finish, and take their results."""
        for thread in self.threads:
            thread.join(DEADLINE_S)
            self.turn()


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def take_lease(store: PostgresStore, database: Database) -> None:
    """Let another process take the lease, which has run out."""
    with closing(PostgresStore(database, store.broker)) as second:
        asked(second, "UPDATE broker SET until = clock_timestamp() WHERE ns = :ns")
        second.open()


def test_nothing_is_said_of_what_waits_behind_a_commit_whose_fate_another_broker_has_sealed(
    far: PostgresStore, cable: Cable, postgres: Database
) -> None:
    """The connection breaks in the middle of a commit, and before it is back another process has the lease."""
    told, here = Told(far), far.database
    nowhere = Database("postgresql://bester@/postgres?host=/nowhere", here.schema)
    cable.cut, far.database = "before", nowhere
    told.ask(keep(1))
    until(lambda: far.away != "")
    take_lease(far, postgres)
    told.ask(keep(2), Bury(letter("a")), LETTERS)
    far.database = here
    until(lambda: far.fenced != "")
    told.turn()
    assert told.log == []
    far.close()
    told.end()
    assert told.log == []


@pytest.mark.parametrize("request_", [keep(1), Bury(letter("a")), LETTERS], ids=["message", "dead letter", "question"])
def test_nothing_is_said_of_what_is_refused_because_the_lease_was_taken(
    request_: Write | Read, far: PostgresStore, postgres: Database
) -> None:
    told = Told(far)
    take_lease(far, postgres)
    told.ask(request_)
    told.end()
    assert far.fenced and told.log == []
