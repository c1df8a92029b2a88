"""The brokers of a server in PostgreSQL: which of them live, and what is left of the others. Nothing is written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bester.broker.postgres import Database, connect, require
from bester.broker.store.lease import other_server
from bester.broker.store_brokers import GONE_S, MOST_BROKERS, MOST_COUNTED, BrokerSeen
from bester.broker.wire.codes import BesterError

if TYPE_CHECKING:
    from bester.broker.postgres import Connection

_BROKERS = f"""
SELECT broker, state, gone_s, process, waiting FROM (
    SELECT name AS broker,
        CASE WHEN until > now() THEN 'lives' WHEN until = 'epoch' THEN 'ended' ELSE 'dead' END AS state,
        CASE WHEN until > now() OR until = 'epoch' THEN 0.0
            ELSE extract(epoch FROM now() - until) END::float8 AS gone_s,
        concat('process ', holder::json ->> 'pid', ' on ', holder::json ->> 'host') AS process,
        CASE WHEN until > now() THEN 0 ELSE (SELECT count(*) FROM (
            SELECT 1 FROM entry e WHERE e.ns = b.ns AND e.outcome IS NULL LIMIT {MOST_COUNTED}
        ) AS waits) END AS waiting
    FROM broker b WHERE holder <> ''
) AS seen
WHERE state = 'lives' OR waiting > 0 OR (state = 'dead' AND gone_s < {GONE_S})
ORDER BY gone_s, broker LIMIT {MOST_BROKERS}
"""  # noqa: S608 (own words)


def brokers_of(connection: Connection) -> list[BrokerSeen]:
    """Return the brokers of the server, by name. Raises psycopg.Error."""
    return sorted(BrokerSeen(*row) for row in connection.execute(_BROKERS.encode()))


def server_fault(database: Database, server: str) -> str | None:
    """Return why no broker of a server may begin in a schema where one of another server lives, None where it may, or
    where the database does not tell."""
    try:
        require(database)
        import psycopg

        try:
            with connect(database, "bester check") as connection:
                held = other_server(connection, server)
        except psycopg.Error:
            return None
    except BesterError:
        return None
    return None if held is None else f"{database.where}: {held.why}"


def clock_ahead_s(database: Database) -> float | None:
    """Return by how many seconds the database's clock is ahead of this machine's, negative where it is behind, None
    where the database does not tell."""
    try:
        require(database)
        import psycopg

        try:
            with connect(database, "bester check") as connection:
                before_s = time.time()
                row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
                return None if row is None else float(row[0]) - (before_s + time.time()) / 2
        except psycopg.Error:
            return None
    except BesterError:
        return None


def namespaces(database: Database) -> list[BrokerSeen]:
    """Return the brokers that have served a server, none where the database does not tell."""
    try:
        require(database)
        import psycopg

        try:
            with connect(database, "bester check") as connection:
                return brokers_of(connection)
        except psycopg.Error:
            return []
    except BesterError:
        return []
