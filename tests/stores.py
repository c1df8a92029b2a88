"""The store of the servers that a test starts: `pytest --stores memory,sqlite,postgresql` runs the tests marked
`stores` on each of these kinds.

`tests.live` writes the store into the configuration of each server; a test opens the accounts by `accounts_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bester.broker.accounts import Accounts
from bester.broker.accounts_postgres import PostgresAccounts
from bester.broker.postgres import Database, connect
from tests.postgres_server import Cluster

KINDS = ("sqlite", "memory", "postgresql")
USUAL = "sqlite"


class _Chosen:
    """Kind of the present test's stores, and in PostgreSQL the schema of each server, by its directory."""

    def __init__(self) -> None:
        self.kind = USUAL
        self.cluster: Cluster | None = None
        self._databases: dict[Path, Database] = {}

    def database(self, directory: Path) -> Database | None:
        """Return the database of the server in a directory, None for another kind of store."""
        if self.cluster is None:
            return None
        return self._databases.setdefault(directory, self.cluster.database())

    @contextmanager
    def set(self, kind: str, cluster: Cluster | None) -> Iterator[None]:
        """Choose a kind for the servers of one test."""
        self.kind, self.cluster = kind, cluster
        try:
            yield
        finally:
            self.kind, self.cluster = USUAL, None
            self._databases.clear()


_chosen = _Chosen()


def kinds_of(text: str) -> tuple[str, ...]:
    """Return the kinds that the option names; "all" is every kind. Raises pytest.UsageError."""
    kinds = KINDS if text == "all" else tuple(part.strip() for part in text.split(","))
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong:
        raise pytest.UsageError(f"--stores: {wrong[0]!r} is none of {', '.join(KINDS)}, all")
    return kinds


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `stores(*kinds, always=False)` on those of its kinds that the option names; `always`: on all of
    its kinds, whatever the option names."""
    marker = metafunc.definition.get_closest_marker("stores")
    if marker is None:
        return
    own = marker.args or KINDS
    wanted = own if marker.kwargs.get("always") else kinds_of(metafunc.config.getoption("--stores"))
    kinds: list[Any] = [kind for kind in own if kind in wanted]
    if not kinds:
        skip = pytest.mark.skip(reason=f"runs with --stores {','.join(own)}")
        kinds = [pytest.param(own[0], marks=skip)]
    metafunc.parametrize("store_kind", kinds, indirect=True)


@pytest.fixture(autouse=True)
def store_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of store that the servers of the test have."""
    kind = getattr(request, "param", USUAL)
    with _chosen.set(kind, request.getfixturevalue("cluster") if kind == "postgresql" else None):
        yield kind


def with_store(toml: str, directory: Path) -> str:
    """Return a configuration with the store of the present test, unless it names one."""
    if _chosen.kind == USUAL or "[store]" in toml:
        return toml
    database = _chosen.database(directory)
    lines: Sequence[str] = ['url = "memory:"']
    if database is not None:
        lines = [f'url = "{database.url}"', f'schema = "{database.schema}"']
    return "\n".join([toml, "[store]", *lines, ""])


def accounts_of(directory: Path) -> Accounts | PostgresAccounts:
    """Open the accounts of the server in a directory, with its data in `data`."""
    database = _chosen.database(directory)
    return Accounts(directory / "data") if database is None else PostgresAccounts(database)


def removed_from(directory: Path) -> set[str]:
    """Return the removed accounts of the server in a directory that are not struck off."""
    database = _chosen.database(directory)
    if database is None:
        with closing(Accounts(directory / "data")) as accounts:
            return accounts.removed()
    with connect(database, "a test") as other:
        return {str(row[0]) for row in other.execute("SELECT name FROM removed")}
