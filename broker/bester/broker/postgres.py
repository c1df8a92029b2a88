"""PostgreSQL: the address of a database, connections to it, and the text of its faults. The library psycopg is loaded
with the first connection alone.

No password is ever part of a text made here: `Database.where` leaves it out, and an address that cannot be read is not
quoted.
"""

from __future__ import annotations

import logging
import re
import secrets
from dataclasses import dataclass, field
from selectors import EVENT_READ, DefaultSelector
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from bester.broker.wire.codes import BesterError, ConfigError

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

SCHEMES = ("postgresql", "postgres")
CONNECT_S = 2
"""Seconds for making a connection, the least that the library takes: longer, and a broker would seem to hang."""
ANSWER_S = 10
"""Patience with the first answer of a connection that was made: a pooler that has no session of PostgreSQL for it lets
it wait for minutes, in which a program would hang."""
SILENCE_MS = 3_000
"""Time for which a server may leave data unacknowledged: a cable that was pulled is found within that time."""
LOCK_MS = 2_000
"""Patience with a lock of another session: locks of Bester's own last milliseconds."""
ABANDONED_MS = 10_000
"""Time after which PostgreSQL ends a transaction whose process has stopped in the middle."""
MIGRATION_MS = 600_000
"""Patience of a start with another process that brings the schema to a new version."""
TEXT_LIMIT = 300
"""Characters of a fault's text."""
BOUND_TRIES = 20
"""Attempts to lift a bound of a statement's time within that bound."""
_SETTINGS = (
    ("lock_timeout", LOCK_MS),
    ("idle_in_transaction_session_timeout", ABANDONED_MS),
    ("tcp_keepalives_idle", 5),
    ("tcp_keepalives_interval", 2),
    ("tcp_keepalives_count", 3),
    ("default_transaction_isolation", "read committed"),
    ("DateStyle", "ISO"),
    ("extra_float_digits", 1),
    ("array_nulls", "on"),
)
"""Settings of a session that statements here rely on, whatever a server, database, user or address sets: with other
ones times cannot be read, or are rounded to years."""
_NEWER = ("idle_session_timeout", "transaction_timeout")
"""Settings that PostgreSQL 14 and 17 have brought, and that would end a session at rest, or a migration: 0 is never."""
POOLED = "let the pooler in between give each connection a session of its own: pool_mode = session"
NEEDS = 'PostgreSQL needs the library psycopg, which is not installed: pip install "psycopg[binary]>=3.2"'
SECRET_VARIABLES = ("PGPASSWORD",)
"""Variables of libpq that hold a secret of the server's own."""
_SECRET = re.compile("pass(?!file)|pwd|secret", re.IGNORECASE)
"""In the name of an option that holds a secret, also of one that libpq does not know."""
_NAME_SESSION = "SELECT set_config('bester.session', %s, false)"
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_REFUSALS = (
    ("invalid value for parameter ", "url"),
    ("unrecognized configuration parameter ", "url"),
    ("session is read-only", "25006"),
    ("server is in hot standby mode", "25006"),
    ("session is not read-only", "url"),
    ("server is not in hot standby mode", "url"),
    ("invalid database ", "invalid"),
    ("too many ", "53300"),
    ("connection slots are reserved", "53300"),
    ("database system is ", "57P"),
    ("not currently accepting connections", "55000"),
    ("authentication failed", "28"),
    ("no password supplied", "28"),
    ("role ", "28"),
    ("no pg_hba.conf entry", "28"),
    ("does not exist", "3D"),
    ("resolve host", "host"),
    ("pooling mode", "26000"),
    ("no session within ", "pooler"),
    ("query_wait_timeout", "pooler"),
    ("invalid port", "url"),
    ("SSL", "ssl"),
)
"""Words of a server that refuses a connection, and the code that such an error would have."""
_REMOVED = (
    "see that a pooler in between is in session mode; otherwise something was removed from the schema: stop the server "
    "and restore a backup"
)
_REMEDIES = {
    "url": "see [store] url",
    "invalid": "a DROP DATABASE was interrupted: end it with another one, then restore a backup into a new database",
    "host": "see the host in [store] url, and that its name server answers",
    "ssl": "see sslmode and sslrootcert in [store] url, and ssl of PostgreSQL",
    "pooler": "see the pooler in between: it has no session left, or cannot reach PostgreSQL",
    "08": "see that PostgreSQL is running and reachable",
    "28": "see the user and the password, in the address, in PGPASSWORD or in ~/.pgpass",
    "26000": POOLED,
    "42P05": POOLED,
    "3D": "make the database with createdb",
    "42501": "let the user own the schema, or grant it CREATE on the database",
    "42P01": _REMOVED,
    "42883": _REMOVED,
    "25006": "name the primary, for a standby accepts no writes; or see default_transaction_read_only",
    "53100": "make room on the disk of PostgreSQL",
    "53300": "raise max_connections of PostgreSQL, or the CONNECTION LIMIT of the user or the database",
    "55000": "let the database take connections: ALTER DATABASE … ALLOW_CONNECTIONS true",
    "57P": "it is starting or stopping; the broker connects again by itself",
}


@dataclass(frozen=True, slots=True)
class Database:
    """Address of a database (`postgresql://…`), and the schema with a server's tables."""

    url: str = field(repr=False)
    schema: str = "bester"

    @property
    def where(self) -> str:
        """Return the address without passwords, for people."""
        parts = urlsplit(self.url)
        user, at, hosts = parts.netloc.rpartition("@")
        options = [(key, value) for key, value in parse_qsl(parts.query) if not _SECRET.search(key)]
        query = f"?{urlencode(options, safe='/,:')}" if options else ""
        return f"postgresql://{user.partition(':')[0]}{at}{hosts}{parts.path}{query}"

    @property
    def secrets(self) -> list[str]:
        """Return the passwords in the address, as written and as meant."""
        parts = urlsplit(self.url)
        written = [parts.netloc.rpartition("@")[0].partition(":")[2]]
        options = (option.partition("=") for option in parts.query.split("&"))
        written += [value for key, _, value in options if _SECRET.search(unquote(key))]
        return [secret for each in written if each for secret in {each, unquote(each)}]


def may_hold_secret(url: str) -> bool:
    """Return whether there may be a password in a text that was meant as the address of a database."""
    return "@" in url or _SECRET.search(unquote(url)) is not None


def url_fault(url: str) -> str | None:
    """Return the fault of an address, which is not quoted since it may hold a password; None where there is none."""
    try:
        parts = urlsplit(url)
        unquote(parts.netloc, errors="strict")
    except ValueError:
        return "is no address that can be read; write postgresql://USER@HOST/DATABASE, with odd characters as %XX"
    if parts.scheme not in SCHEMES or not url.startswith(f"{parts.scheme}://"):
        return "is no address of PostgreSQL; write postgresql://USER@HOST/DATABASE"
    if _BAD_ESCAPE.search(url):
        return "has a % that is followed by no two digits; write it as %25"
    if parts.fragment:
        return "has a # in it; write it as %23"
    if "@" in parts.path:  # what is before it may be the end of a password
        return "has an @ behind a /; write a / in a user or password as %2F, an @ in a database's name as %40"
    if not parts.path.strip("/") and not {"dbname", "service"} & dict(parse_qsl(parts.query)).keys():
        return "names no database; write postgresql://USER@HOST/DATABASE"
    if not url.isprintable():
        return "has a character that cannot be printed; write it as %XX"
    return None


def schema_fault(schema: str) -> str | None:
    """Return the fault of a schema's name, or None."""
    if _SCHEMA.fullmatch(schema) and not schema.startswith("pg_"):
        return None
    return f"{schema!r} is no plain name; use lower-case letters, digits and _, 63 at most, and no pg_ in front"


def connect(database: Database, name: str) -> Connection:
    """Return a new connection in autocommit mode whose tables are those of the schema. `name` is what PostgreSQL shows
    of the connection.

    Raises ConfigError where the library is missing, psycopg.Error where there is no connection.
    """
    require(database)
    import psycopg

    connection: Connection = psycopg.connect(
        database.url,
        autocommit=True,
        connect_timeout=CONNECT_S,
        application_name=name,
        keepalives_idle=5,
        keepalives_interval=1,
        keepalives_count=3,
        tcp_user_timeout=SILENCE_MS,
        client_encoding="UTF8",
    )
    try:
        if not _is_answered(connection, b"", ANSWER_S):
            raise psycopg.OperationalError(f"no session within {ANSWER_S:g} s")
        _lift_bound(connection)  # first: a new session's first query takes milliseconds
        with connection.pipeline():
            connection.execute("SELECT set_config('search_path', quote_ident(%s), false)", (database.schema,))
            for setting, value in _SETTINGS:
                connection.execute("SELECT set_config(%s, %s, false)", (setting, str(value)))
            known = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = ANY(%s)"
            connection.execute(known, (list(_NEWER),))
    except BaseException:
        connection.close()
        raise
    return connection


def see_session(connection: Connection, database: Database) -> None:
    """See that a connection has a session of PostgreSQL of its own, as far as a second one tells. A pooler that gives
    sessions away between two transactions would mix up the settings of all who share them. Raises ConfigError."""
    import psycopg

    mine = secrets.token_hex(8)
    try:
        connection.execute(_NAME_SESSION, (mine,))
        _name_another(database)
        row = connection.execute("SELECT current_setting('bester.session', true)").fetchone()
    except psycopg.Error as error:
        if POOLED in why(database, error):
            raise ConfigError(why(database, error)) from None
        return  # there is no second connection: whoever needs the first one is told what is wrong
    if row is None or row[0] != mine:
        raise ConfigError(f"{database.where}: connections share sessions of PostgreSQL; {POOLED}")


def another(database: Database) -> Connection:
    """Return a further connection, without the settings of `connect`: it is made though a pooler has no session for it.
    Raises psycopg.Error."""
    import psycopg

    return psycopg.connect(database.url, autocommit=True, connect_timeout=CONNECT_S, application_name="bester check")


def _name_another(database: Database) -> None:
    """Name the session of a second connection, if it has one within CONNECT_S: a pooler that has no further session
    lets it wait for minutes, and does not give it the first one. Raises psycopg.Error."""
    with another(database) as other:
        name = f"SELECT set_config('bester.session', '{secrets.token_hex(8)}', false)"
        _is_answered(other, name.encode(), CONNECT_S)
        other.close()


def _is_answered(connection: Connection, statement: bytes, within_s: float) -> bool:
    """Return whether a statement, the first of a connection, has an answer of whatever kind in time; where it has none
    the connection is of no use any more. Raises psycopg.Error."""
    link = connection.pgconn
    link.send_query(statement)
    link.flush()
    with DefaultSelector() as selector:
        selector.register(connection.fileno(), EVENT_READ)
        if not selector.select(within_s):
            return False
    while link.get_result() is not None:
        pass
    return True


def _lift_bound(connection: Connection) -> None:
    """Lift the role's bound of a statement's time, which holds for this statement as well: a busy machine may need more
    than a millisecond for it."""
    import psycopg

    for left in reversed(range(BOUND_TRIES)):
        try:
            connection.execute("SET statement_timeout = 0")
            return
        except psycopg.errors.QueryCanceled:
            if not left:
                raise


def require(database: Database) -> None:
    """Raise ConfigError where the library is missing."""
    try:
        import psycopg  # noqa: F401 (whether it can be loaded)

        logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of errors that are raised, too
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "psycopg"
        raise ConfigError(f"{database.where}: {NEEDS if missing else f'{NEEDS} ({error})'}") from None


def why(database: Database, error: Exception) -> str:
    """Return the text of a fault: one line with a remedy."""
    state = str(getattr(error, "sqlstate", None) or "")
    words = " ".join(str(error).split()) or type(error).__name__
    for secret in database.secrets:  # the library quotes an address that it cannot read
        words = words.replace(secret, "***")
    if not state:  # a connection that was refused has none
        state = next((code for text, code in _REFUSALS if text in words), "08")
        state = "url" if type(error).__name__ == "ProgrammingError" else state
    remedy = next((text for start, text in _REMEDIES.items() if state.startswith(start)), "see the log of PostgreSQL")
    return f"{database.where}: {words[:TEXT_LIMIT]}; {remedy}"


def unavailable(database: Database, error: Exception) -> BesterError:
    """Return the error for a database that cannot be used now."""
    full = str(getattr(error, "sqlstate", None)) == "53100"
    return BesterError("storage-full" if full else "storage-unavailable", why(database, error))
