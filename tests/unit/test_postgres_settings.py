"""Sessions of PostgreSQL with changed settings, of its server, a database or a user, or in the address."""

from __future__ import annotations

import time
from contextlib import closing
from urllib.parse import quote

import pytest

from bester.broker.accounts_postgres import PostgresAccounts
from bester.broker.postgres import Database, connect
from bester.broker.postgres_schema import fault
from bester.broker.store.postgres import PostgresStore
from bester.broker.store_requests import Fetch
from tests.postgres_server import Cluster
from tests.unit.store_stand import BOB, entry, keep

ODD = (
    "DateStyle=German", "DateStyle=SQL,DMY", "extra_float_digits=-15", "array_nulls=off", "bytea_output=escape",
    "standard_conforming_strings=off", "default_transaction_isolation=serializable", "TimeZone=Asia/Kathmandu",
    "statement_timeout=1", "search_path=nowhere", "IntervalStyle=sql_standard",
)  # fmt: skip


def with_setting(cluster: Cluster, setting: str) -> Database:
    """Return a new schema, in sessions that begin with this setting."""
    return Database(f"{cluster.url()}&options={quote(f'-c {setting}')}", cluster.schema())


@pytest.mark.parametrize("setting", ODD)
def test_odd_setting_changes_nothing_that_is_kept(cluster: Cluster, setting: str) -> None:
    database = with_setting(cluster, setting)
    with closing(PostgresStore(database, "b1")) as store:
        store.open()
        assert store.commit([keep(1)]).ok
    with closing(PostgresStore(database, "b1")) as store:
        assert sum(each.messages for each in store.open().queues.values()) == 1
        assert store.read(Fetch(BOB, 0, 10, 10_000)) == [entry(1)]
    accounts = PostgresAccounts(database)
    try:
        accounts.add("ann", "secret")
        (ann,) = accounts.list()
        with connect(database, "a test") as other:
            made = other.execute("SELECT extract(epoch FROM created_at)::bigint FROM accounts").fetchone()
        assert made is not None and abs(ann.created_s - made[0]) <= 1
    finally:
        accounts.close()


def test_time_for_statements_is_without_a_bound_before_the_first_that_takes_any(cluster: Cluster) -> None:
    """A function of the user's, as slow as a catalog that is read for the first time on a busy machine."""
    slow = cluster.schema()
    with connect(cluster.database(), "a test") as other:
        other.execute(f"CREATE SCHEMA {slow}".encode())
        body = "SELECT pg_sleep(1.5); SELECT pg_catalog.quote_ident($1)"
        other.execute(f"CREATE FUNCTION {slow}.quote_ident(text) RETURNS text LANGUAGE sql AS $${body}$$".encode())
    options = quote(f"-c statement_timeout=500 -c search_path={slow},pg_catalog")
    with connect(Database(f"{cluster.url()}&options={options}", cluster.schema()), "a test") as session:
        assert session.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_session_at_rest_is_not_ended(cluster: Cluster) -> None:
    with connect(cluster.database(), "a test") as session:
        if session.info.server_version < 140_000:
            pytest.skip("a PostgreSQL that ends no session at rest")
    with connect(with_setting(cluster, "idle_session_timeout=1000"), "a test") as session:
        assert session.execute("SHOW idle_session_timeout").fetchone() == ("0",)


# --- the check ------------------------------------------------------------------------------------------------------


def test_database_that_takes_no_writes_is_found_by_the_check(cluster: Cluster) -> None:
    found = fault(with_setting(cluster, "default_transaction_read_only=on"))
    assert found is not None and "takes no writes; name the primary" in found
    assert fault(cluster.database()) is None


def test_schema_that_is_not_the_users_is_found_by_the_check(cluster: Cluster) -> None:
    user = f"plain_{time.monotonic_ns()}"
    named = [cluster.database() for _ in range(4)]
    none, empty, other, ours = (Database(cluster.url(user), each.schema) for each in named)
    with connect(named[0], "a test") as owner:
        owner.execute(f"CREATE ROLE {user} LOGIN".encode())
        for each in (empty, other):
            owner.execute(f"CREATE SCHEMA {each.schema}".encode())
        owner.execute(f"CREATE TABLE {other.schema}.t (a int)".encode())
        PostgresAccounts(named[3]).close()  # makes the tables
        for each, words in ((none, "may not write"), (empty, "may not write"), (other, "denied"), (ours, "denied")):
            found = fault(each)
            assert found is not None and words in found and "; let the user own the schema" in found
        owner.execute(f"GRANT USAGE ON SCHEMA {other.schema}, {ours.schema} TO {user}".encode())
        owner.execute(f"GRANT SELECT ON {ours.schema}.version TO {user}".encode())
        assert "another program's tables" in str(fault(other))
        assert "may not write" in str(fault(ours))
        owner.execute(f"GRANT CREATE ON SCHEMA {empty.schema} TO {user}".encode())
        assert fault(empty) is None
        owner.execute(f"DROP OWNED BY {user}".encode())
        owner.execute(f"DROP ROLE {user}".encode())


def test_database_with_a_single_connection_left_is_found_by_the_check(cluster: Cluster) -> None:
    """Messages and accounts have a connection each."""
    user = f"single_{time.monotonic_ns()}"
    with connect(cluster.database(), "a test") as owner:
        owner.execute(f"CREATE ROLE {user} LOGIN CONNECTION LIMIT 1".encode())
        owner.execute(f"GRANT CREATE ON DATABASE postgres TO {user}".encode())
        try:
            found = fault(Database(cluster.url(user), cluster.schema()))
            assert found is not None and "too many connections" in found and "CONNECTION LIMIT" in found
            owner.execute(f"ALTER ROLE {user} CONNECTION LIMIT 2".encode())
            assert fault(Database(cluster.url(user), cluster.schema())) is None
        finally:
            owner.execute(f"DROP OWNED BY {user}".encode())
            owner.execute(f"DROP ROLE {user}".encode())


def test_database_in_another_encoding_is_found_by_the_check(cluster: Cluster) -> None:
    name = f"latin_{time.monotonic_ns()}"
    with connect(cluster.database(), "a test") as owner:
        owner.execute(
            f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0".encode()
        )
        try:
            found = fault(Database(cluster.url().replace("/postgres?", f"/{name}?")))
        finally:
            owner.execute(f"DROP DATABASE {name}".encode())
    assert found is not None and "LATIN1; make one with createdb --encoding UTF8" in found
