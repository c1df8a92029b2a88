"""Addresses of databases: shown without passwords, refused with a reason, and the remedies of refused connections."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from bester.broker import config_file
from bester.broker.postgres import Database, schema_fault, url_fault, why
from bester.broker.wire.codes import ConfigError


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://u:secret@h/d", "postgresql://u@h/d"),
        (
            "postgres://u:sec%40ret@h:1,i:2/d?sslmode=require&password=secret",
            "postgresql://u@h:1,i:2/d?sslmode=require",
        ),
        ("postgresql://h/d?user=u&sslpassword=secret", "postgresql://h/d?user=u"),
        ("postgresql:///d?host=/run/pg", "postgresql:///d?host=/run/pg"),
        ("postgresql://u:a@b@h/d", "postgresql://u@h/d"),
        ("postgresql://u@h/d?passwd=secret&PGPASSWORD=sec+ret&passfile=/p", "postgresql://u@h/d?passfile=/p"),
        ("postgresql://u@h/d?pass%77ord=sec%2Bret", "postgresql://u@h/d"),
        ("postgresql://?service=s", "postgresql://?service=s"),
    ],
)
def test_address_is_shown_without_its_password(url: str, where: str) -> None:
    database = Database(url)
    assert url_fault(url) is None
    assert (database.where, "sec" in repr(database)) == (where, False)
    shown = why(database, psycopg.OperationalError("a\nb secret sec%40ret sec@ret sec+ret sec%2Bret a@b"))
    assert shown.startswith(f"{where}: a b ")
    assert not any(secret in shown for secret in database.secrets)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ('FATAL: role "x" does not exist', "see the user"), ('FATAL: database "x" does not exist', "createdb"),
        ("fe_sendauth: no password supplied", "see the user"), ("Connection refused", "is running"),
        ('FATAL: too many connections for role "x"', "CONNECTION LIMIT"),
        ("FATAL: sorry, too many clients already", "max_connections"),
        ("FATAL: remaining connection slots are reserved for roles with the SUPERUSER attribute", "max_connections"),
        ("FATAL: the database system is starting up", "connects again"),
        ('FATAL: cannot connect to invalid database "x"', "DROP DATABASE was interrupted"),
        ('FATAL: database "x" is not currently accepting connections', "ALLOW_CONNECTIONS"),
        ("failed to resolve host 'db': [Errno -2] Name or service not known", "name server"),
        ('invalid port number: "99999"', "see [store] url"),
        ("server does not support SSL, but SSL was required", "sslmode"),
        ('FATAL: invalid value for parameter "x": "y" DETAIL: Tablespace "y" does not exist.', "see [store] url"),
        ("session is read-only", "name the primary"), ("server is in hot standby mode", "name the primary"),
        ("server is not in hot standby mode", "see [store] url"),
    ],
)  # fmt: skip
def test_refused_connection_has_its_remedy(words: str, remedy: str) -> None:
    assert remedy in why(Database("postgresql://u@h/d"), psycopg.OperationalError(words)).partition(words)[2]


@pytest.mark.parametrize(
    "url",
    ["postgresql:/u:secret@h/d", "postgresql://u:secret@h", "postgresql://u:secret@h/d#x", "postgresql://u:%zz@[h/d",
     "postgresql://u:secret@h/", "postgresql://u:secret@h/d\n", "postgresql://u:secret%t@h/d", "mysql://u:secret@h/d",
     "postgresql://u:secret/x@h/d"],
)  # fmt: skip
def test_address_that_cannot_be_used_is_not_quoted(url: str) -> None:
    fault = url_fault(url)
    assert fault is not None
    assert "secret" not in fault


@pytest.mark.parametrize(
    ("schema", "is_good"),
    [("bester", True), ("a_1", True), ("A", False), ('a"b', False), ("pg_x", False), ("", False), ("a" * 64, False)],
)
def test_schema_has_a_plain_name(schema: str, is_good: bool) -> None:
    assert (schema_fault(schema) is None) == is_good


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h",
        "postgress://u:hunter2@h/d",
        "postgress://h/d?user=u&password=hunter2",
        "POSTGRESQL://h/d?pass%77ord=hunter2",
        "host=h password=hunter2",
        "sqlite://u:hunter2@h/d",
        "sqlite:d?PASSWORD=hunter2",
        "redis://:hunter2@h",
    ],
)
def test_mistake_in_a_configured_address_shows_no_password(tmp_path: Path, url: str) -> None:
    path = tmp_path / "bester.toml"
    path.write_text(f"[store]\nurl = '{url}'\n")
    with pytest.raises(ConfigError) as caught:
        config_file.load(path)
    assert ":2: [store] url: " in caught.value.text
    assert "hunter2" not in caught.value.text
