"""Tables of a server in PostgreSQL, the steps from an older version to this one, and the views for people who ask in
SQL.

A schema that a newer Bester has written, or that holds another program's tables, is never touched.
"""

from __future__ import annotations

import secrets
from contextlib import closing
from typing import TYPE_CHECKING, Any

from bester.broker import postgres
from bester.broker.postgres import MIGRATION_MS, Database
from bester.broker.wire.codes import BesterError, ConfigError

if TYPE_CHECKING:
    from bester.broker.postgres import Connection

LEASE_LOST = "BF001"
"""SQLSTATE of a statement by a broker whose namespace another one has taken over, or that has other contents than the
broker knows."""
ACCOUNTS_CHANGED = "bester_accounts"
"""Beginning of the channel on which a change of the accounts is notified; the schema's name follows."""
LOCK = 0x62737472
"""Key of the lock that one process at a time holds while it makes or changes the schema ("bstr")."""

# `ns` is the namespace of a broker: everything but the accounts is one broker's own. `key` is a digest of the id (and
# queue), for an index holds no text above 2.7 KB. A reference to a shared body counts as long as `outcome` is null.
_TABLES = (
    """
    CREATE TABLE broker (
        ns INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name TEXT COLLATE "C" NOT NULL UNIQUE,
        epoch TEXT NOT NULL,
        life BIGINT NOT NULL DEFAULT 0,
        lease BIGINT NOT NULL DEFAULT 0,
        commits BIGINT NOT NULL DEFAULT 0,
        holder TEXT NOT NULL DEFAULT '',
        until TIMESTAMPTZ NOT NULL DEFAULT 'epoch'
    ) WITH (fillfactor = 10)
    """,
    """
    CREATE TABLE entry (
        ns INTEGER NOT NULL,
        number BIGINT NOT NULL,
        key BYTEA NOT NULL,
        box TEXT COLLATE "C" NOT NULL,
        id TEXT COLLATE "C" NOT NULL,
        target TEXT COLLATE "C" NOT NULL,
        type TEXT COLLATE "C" NOT NULL,
        sender TEXT COLLATE "C",
        expires_s DOUBLE PRECISION NOT NULL,
        outcome TEXT COLLATE "C",
        repeated BOOLEAN NOT NULL DEFAULT FALSE,
        meta BYTEA NOT NULL,
        size BIGINT NOT NULL,
        body BYTEA NOT NULL,
        shared BIGINT,
        PRIMARY KEY (ns, number)
    ) WITH (autovacuum_vacuum_scale_factor = 0.05)
    """,
    "CREATE UNIQUE INDEX entry_key ON entry (ns, key)",
    "CREATE INDEX entry_id ON entry (ns, left(id, 200))",
    "CREATE INDEX entry_waiting ON entry (ns, box, number) WHERE outcome IS NULL",
    "CREATE INDEX entry_expiring ON entry (ns, expires_s, number) WHERE outcome IS NULL",
    "CREATE INDEX entry_ended ON entry (ns, expires_s) WHERE outcome IS NOT NULL",
    "CREATE INDEX entry_remembered ON entry (ns, number) WHERE outcome IS NOT NULL AND outcome <> 'queued'",
    "CREATE INDEX entry_remote ON entry (ns, box, number) WHERE outcome = 'queued'",
    "CREATE INDEX entry_shared ON entry (ns, shared) WHERE shared IS NOT NULL AND outcome IS NULL",
    "CREATE TABLE body (ns INTEGER, serial BIGINT, body BYTEA NOT NULL, PRIMARY KEY (ns, serial))",
    'CREATE TABLE handed (ns INTEGER, box TEXT COLLATE "C", upto BIGINT NOT NULL, PRIMARY KEY (ns, box))',
    """
    CREATE TABLE arrived (
        ns INTEGER,
        peer TEXT COLLATE "C",
        type TEXT COLLATE "C",
        epoch TEXT COLLATE "C" NOT NULL,
        floor BIGINT NOT NULL,
        outcomes BYTEA NOT NULL,
        PRIMARY KEY (ns, peer, type)
    )
    """,
    """
    CREATE TABLE seen_type (
        ns INTEGER, name TEXT COLLATE "C", serial BIGINT GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (ns, name)
    )
    """,
    """
    CREATE TABLE letter (
        ns INTEGER,
        serial BIGINT GENERATED ALWAYS AS IDENTITY,
        key BYTEA NOT NULL,
        id TEXT COLLATE "C" NOT NULL,
        type TEXT COLLATE "C" NOT NULL,
        reason TEXT COLLATE "C" NOT NULL,
        at_s DOUBLE PRECISION NOT NULL,
        meta BYTEA NOT NULL,
        body BYTEA NOT NULL,
        PRIMARY KEY (ns, serial)
    )
    """,
    "CREATE UNIQUE INDEX letter_key ON letter (ns, key)",
    "CREATE INDEX letter_type ON letter (ns, type, serial)",
    """
    CREATE TABLE clock (
        ns INTEGER PRIMARY KEY,
        stored_s DOUBLE PRECISION NOT NULL,
        skew_s DOUBLE PRECISION NOT NULL,
        boot TEXT COLLATE "C" NOT NULL,
        boot_s DOUBLE PRECISION NOT NULL
    )
    """,
    """
    CREATE TABLE server_name (
        ns INTEGER, name TEXT COLLATE "C", serial BIGINT GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (ns, name)
    )
    """,
    """
    CREATE TABLE native_peer (
        ns INTEGER, address TEXT COLLATE "C", reports BOOLEAN NOT NULL, PRIMARY KEY (ns, address)
    )
    """,
    'CREATE TABLE held_server (ns INTEGER, name TEXT COLLATE "C", PRIMARY KEY (ns, name))',
    """
    CREATE TABLE disowned (
        ns INTEGER, name TEXT COLLATE "C", upto BIGINT NOT NULL, at_s DOUBLE PRECISION NOT NULL, PRIMARY KEY (ns, name)
    )
    """,
    # Accounts are the server's, whatever broker asks. Every change counts `account_version` up and holds its row until
    # the commit, so that a reader who asks for changes above a number misses none.
    "CREATE TABLE account_version (one INTEGER PRIMARY KEY CHECK (one = 1), number BIGINT NOT NULL)",
    "INSERT INTO account_version VALUES (1, 0)",
    """
    CREATE TABLE account (
        name TEXT COLLATE "C" PRIMARY KEY,
        hash TEXT NOT NULL,
        created_s DOUBLE PRECISION NOT NULL,
        disabled BOOLEAN NOT NULL DEFAULT FALSE,
        changed BIGINT NOT NULL
    )
    """,
    "CREATE INDEX account_changed ON account (changed)",
    'CREATE TABLE removed (name TEXT COLLATE "C" PRIMARY KEY, changed BIGINT NOT NULL)',
    # Every write begins with `hold`, every read with `held`. The row of the broker is locked from there to the commit,
    # so a takeover waits for a commit that has begun, and none begins after the takeover.
    """
    CREATE FUNCTION hold(its_ns INTEGER, its_lease BIGINT, its_commits BIGINT, for_s DOUBLE PRECISION) RETURNS VOID
    LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE broker SET commits = its_commits, until = clock_timestamp() + for_s * INTERVAL '1 second'
            WHERE ns = its_ns AND lease = its_lease AND commits = its_commits - 1;
        IF NOT FOUND THEN
            PERFORM held(its_ns, its_lease);
            RAISE EXCEPTION 'the database was set back, or is a copy' USING ERRCODE = 'BF001';
        END IF;
    END $$
    """,
    """
    CREATE FUNCTION held(its_ns INTEGER, its_lease BIGINT) RETURNS VOID LANGUAGE plpgsql STABLE AS $$
    BEGIN
        PERFORM 1 FROM broker WHERE ns = its_ns AND lease = its_lease;
        IF NOT FOUND THEN RAISE EXCEPTION 'another process has taken the lease' USING ERRCODE = 'BF001'; END IF;
    END $$
    """,
)
_VIEWS = (
    """
    CREATE VIEW brokers AS
        SELECT name AS broker, until > now() AS living, until AS lease_until, lease AS lease_epoch, life AS starts,
            commits, holder::json ->> 'host' AS host, (holder::json ->> 'pid')::int AS process
        FROM broker WHERE holder <> ''
    """,
    """
    CREATE VIEW queued AS
        SELECT b.name AS broker,
            CASE WHEN e.box LIKE 'user/%' THEN substr(e.box, 6) END AS "user",
            CASE WHEN e.box LIKE 'lane/%' THEN split_part(e.box, '/', 2) END AS server,
            e.type, e.id, e.target, e.sender, e.size AS bytes, e.number,
            e.number <= coalesce(h.upto, 0) AS was_sent,
            to_timestamp(e.expires_s - coalesce(c.skew_s, 0)) AS expires_at,
            coalesce(s.body, e.body) AS body
        FROM entry e JOIN broker b USING (ns)
            LEFT JOIN clock c USING (ns)
            LEFT JOIN handed h ON h.ns = e.ns AND h.box = e.box
            LEFT JOIN body s ON s.ns = e.ns AND s.serial = e.shared
        WHERE e.outcome IS NULL
    """,
    """
    CREATE VIEW outcomes AS
        SELECT b.name AS broker, e.id, e.sender, e.target, e.type, e.outcome
        FROM entry e JOIN broker b USING (ns) WHERE e.outcome IS NOT NULL
    """,
    """
    CREATE VIEW dead_letters AS
        SELECT b.name AS broker, l.id, l.type, l.reason, to_timestamp(l.at_s) AS died_at, l.body, l.serial
        FROM letter l JOIN broker b USING (ns)
    """,
    """
    CREATE VIEW accounts AS SELECT name, to_timestamp(created_s) AS created_at, disabled FROM account
    """,
)

# Brokers on different machines have store's times of their own, which the database's clock compares.
_SAVED_AT = ("ALTER TABLE clock ADD COLUMN saved_at TIMESTAMPTZ",)

# Adoptions are told to whoever asks later, through any broker.
_ADOPTIONS = (
    """
    CREATE TABLE adoption (
        serial BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        broker TEXT COLLATE "C" NOT NULL,
        adopter TEXT COLLATE "C" NOT NULL,
        at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
        messages BIGINT NOT NULL,
        outcomes BIGINT NOT NULL,
        letters BIGINT NOT NULL
    )
    """,
    """
    CREATE VIEW adoptions AS
        SELECT broker, adopter, at AS adopted_at, messages, outcomes, letters AS dead_letters FROM adoption
    """,
)

# A lane has the outcomes of several epochs, which an older version cannot read.
_EPOCHS = ()

# Where statistics are older than a crowd of messages, or missing, PostgreSQL takes every index of the waiting messages
# for as good as the others, and may read all messages of all queues for one queue. This one serves those alone who ask
# for a time.
_EXPIRING = (
    "DROP INDEX entry_expiring",
    "CREATE INDEX entry_expiring ON entry (ns, expires_s, number) WHERE outcome IS NULL AND expires_s < 'infinity'",
)

STEPS: tuple[tuple[str, ...], ...] = ((*_TABLES, *_VIEWS), _SAVED_AT, _ADOPTIONS, _EPOCHS, _EXPIRING)
"""Step n makes version n + 1 of version n. A released step is never changed: steps are only added."""


def migrate(connection: Connection, database: Database) -> None:
    """Make the schema, or bring it to this version, all steps or none; another process that does so is waited for.

    Raises ConfigError for a schema of something else or of a newer Bester, psycopg.Error otherwise."""
    with connection.transaction():
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (str(MIGRATION_MS),))
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        version = _version(connection, database)
        if version == len(STEPS):
            return
        if version == 0:
            if not _one(connection, "SELECT to_regnamespace(quote_ident(%s)) IS NOT NULL", database.schema):
                connection.execute(f'CREATE SCHEMA "{database.schema}"'.encode())
            connection.execute("CREATE TABLE version (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER)")
            connection.execute("INSERT INTO version VALUES (1, 0)")
        for step in STEPS[version:]:
            for statement in step:
                connection.execute(statement.encode())
        connection.execute("UPDATE version SET number = %s", (len(STEPS),))


def fault(database: Database) -> str | None:
    """Return why a server could not begin with a database now, None where it could. Changes nothing."""
    try:
        postgres.require(database)
        import psycopg

        try:
            with closing(postgres.connect(database, "bester check")) as connection:
                postgres.another(database).close()  # messages and accounts have a connection each
                postgres.see_session(connection, database)
                if _one(connection, "SHOW transaction_read_only") == "on":
                    raise psycopg.errors.ReadOnlySqlTransaction("it takes no writes")
                if not _may_write(connection, database):
                    raise psycopg.errors.InsufficientPrivilege(f"the user may not write to schema {database.schema}")
        except psycopg.Error as error:
            return postgres.why(database, error)
    except BesterError as error:
        return error.text
    return None


def _may_write(connection: Connection, database: Database) -> bool:
    """Return whether the user may change the tables, or make them where they are missing. Raises ConfigError."""
    if _version(connection, database):
        return bool(_one(connection, "SELECT has_table_privilege(%s, 'INSERT')", f'"{database.schema}".entry'))
    if _one(connection, "SELECT to_regnamespace(quote_ident(%s)) IS NULL", database.schema):
        return bool(_one(connection, "SELECT has_database_privilege(current_database(), 'CREATE')"))
    return bool(_one(connection, "SELECT has_schema_privilege(%s, 'CREATE')", database.schema))


def _version(connection: Connection, database: Database) -> int:
    """Return the version of the schema, 0 for one that is missing or empty. Raises ConfigError."""
    encoding = _one(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        text = f"the database is encoded in {encoding}; make one with createdb --encoding UTF8 --template template0"
        raise ConfigError(f"{database.where}: {text}")
    release = int(_one(connection, "SHOW server_version_num"))
    if release < 120_000:
        raise ConfigError(f"{database.where}: PostgreSQL {release // 10_000} is too old; version 12 or later is needed")
    tables = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s"
    if not _one(connection, tables, database.schema):
        return 0
    name = f'"{database.schema}".version'
    if _one(
        connection, "SELECT to_regclass(%s) IS NULL OR to_regclass(%s) IS NULL", name, name.replace("version", "entry")
    ):
        text = f"the schema {database.schema} holds another program's tables"
        raise ConfigError(f"{database.where}: {text}; name another one as [store] schema")
    version = int(_one(connection, "SELECT number FROM version"))
    if version > len(STEPS):
        text = f"written by a newer Bester (version {version} of the store, this one reads up to {len(STEPS)})"
        raise ConfigError(f"{database.where}: {text}; start that one, or name another [store] schema")
    return version


def _one(connection: Connection, statement: str, *values: object) -> Any:
    row = connection.execute(statement.encode(), values or None).fetchone()
    assert row is not None
    return row[0]


def new_epoch() -> str:
    """Return an epoch for a new namespace: other servers take none of its messages for duplicates of earlier ones."""
    return secrets.token_hex(8)
