"""Fixtures of several unit tests, and property tests: machines are shared, so no single example is judged by its
time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import settings

from bester.broker.postgres import Database, connect
from bester.broker.postgres_schema import migrate
from bester.broker.store.postgres import PostgresStore
from tests.unit.postgres_cable import Cable

settings.register_profile("shared machine", deadline=None, print_blob=True)
settings.load_profile("shared machine")
_numbers = count(1)


@pytest.fixture
def cable(postgres: Database) -> Iterator[Cable]:
    """A cable to a PostgreSQL that has Bester's tables."""
    with connect(postgres, "a test") as made:
        migrate(made, postgres)
    found = Cable(postgres)
    yield found
    found.close()


@pytest.fixture
def far(cable: Cable) -> Iterator[PostgresStore]:
    """A store at the end of the cable."""
    found = PostgresStore(cable.database, f"far{next(_numbers)}")
    found.open()
    yield found
    found.close()
