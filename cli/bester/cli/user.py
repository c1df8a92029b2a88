"""`bester user`: accounts, changed in the server's own database; a running server sees each change at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bester.cli import tables
from bester.cli.options import config_option, load, new_password
from bester.cli.output import done, err, out

if TYPE_CHECKING:
    from bester.broker.accounts import Accounts
    from bester.broker.accounts_postgres import PostgresAccounts
    from bester.broker.config import Config

COLUMNS = ("NAME", "SINCE", "STATE")

password_option = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")


@click.group()
def user() -> None:
    """Add, change, disable, remove and list accounts."""


@user.command()
@config_option
@password_option
@click.argument("name")
def add(config_path: Path | None, password_stdin: bool, name: str) -> None:
    """Make an account."""
    _check_name(name)
    config = load(config_path)
    _are_there(config)  # raises before the password is asked for
    password = _checked(new_password(name, password_stdin))
    directory = config.server.data_dir
    is_new = config.store.database is None and not directory.exists()
    with _accounts(config) as accounts:
        if is_new:
            err(f"made the data directory {directory}; if the server is elsewhere, name its file with -c")
        accounts.add(name, password)
    _warn_of_deciders(config)
    done(f"user {name} added")


@user.command()
@config_option
@password_option
@click.argument("name")
def passwd(config_path: Path | None, password_stdin: bool, name: str) -> None:
    """Change a password."""
    config = load(config_path)
    password = _checked(new_password(name, password_stdin))
    _must_be_there(config, name)
    with _accounts(config) as accounts:
        accounts.passwd(name, password)
    _warn_of_deciders(config)
    done(f"password of {name} changed")


@user.command()
@config_option
@click.argument("name")
def remove(config_path: Path | None, name: str) -> None:
    """Remove an account."""
    config = load(config_path)
    _must_be_there(config, name)
    with _accounts(config) as accounts:
        accounts.remove(name)
    done(f"user {name} removed")


@user.command()
@config_option
@click.argument("name")
def disable(config_path: Path | None, name: str) -> None:
    """Let nobody log in as NAME. Connections end at once; messages for NAME go on being queued."""
    config = load(config_path)
    _must_be_there(config, name)
    with _accounts(config) as accounts:
        accounts.disable(name)
    done(f"user {name} disabled")


@user.command()
@config_option
@click.argument("name")
def enable(config_path: Path | None, name: str) -> None:
    """Let NAME log in again."""
    config = load(config_path)
    _must_be_there(config, name)
    with _accounts(config) as accounts:
        accounts.enable(name)
    done(f"user {name} enabled")


@user.command("list")
@config_option
def list_(config_path: Path | None) -> None:
    """Show all accounts."""
    config = load(config_path)
    rows = []
    if _are_there(config):
        with _accounts(config) as accounts:
            rows = accounts.list()
    if not rows:
        err(f"no users in {_where(config)}; if the server is elsewhere, name its file with -c")
    cells = [
        (row.name, time.strftime("%Y-%m-%d", time.localtime(row.created_s)), "disabled" if row.disabled else "")
        for row in rows
    ]
    if cells and sys.stdout.isatty():
        any_disabled = any(row.disabled for row in rows)
        tables.show(cells if any_disabled else [cell[:2] for cell in cells], COLUMNS if any_disabled else COLUMNS[:2])
    else:
        for name, since, state in cells:
            out(f"{name}\t{since}" + (f"\t{state}" if state else ""))  # a script cuts at the tabs


@contextmanager
def _accounts(config: Config) -> Iterator[Accounts | PostgresAccounts]:
    from bester.broker.logins import open_accounts

    if config.auth == "open":
        err('the configuration says auth = "open": accounts are kept, but logins are not checked')
    with closing(open_accounts(config)) as accounts:
        yield accounts


def _warn_of_deciders(config: Config) -> None:
    """Say that a password counts for nothing where a handler decides logins."""
    if config.login_deciders:
        decider = config.login_deciders[0]
        err(f"a handler decides logins ([{decider}]): the passwords of accounts count for nothing while it does")


def _are_there(config: Config) -> bool:
    """Return whether there are accounts, without creating any; True for a database, where looking is changing. Raises
    ConfigError where there can be none."""
    if config.store.database is not None:
        return True
    from bester.broker.accounts import FILE
    from bester.broker.accounts_file import is_there
    from bester.broker.data_dir import prepare

    directory = config.server.data_dir
    if not directory.exists():
        return False
    prepare(directory)
    return is_there(directory / FILE)


def _where(config: Config) -> str:
    database = config.store.database
    return str(config.server.data_dir) if database is None else database.where


def _must_be_there(config: Config, name: str) -> None:
    from bester.broker.wire.codes import BesterError

    if not _are_there(config):
        where = f"{config.server.data_dir} holds no accounts; if the server is elsewhere, name its file with -c"
        raise BesterError("unknown-user", f"there is no user {name!r}: {where}")


def _checked(password: str) -> str:
    from bester.broker.users import password_fault

    fault = password_fault(password)
    if fault:
        raise click.UsageError(f"{fault}; choose another one")
    return password


def _check_name(name: str) -> None:
    from bester.broker.users import new_name_fault

    fault = new_name_fault(name)
    if fault:
        raise click.UsageError(f"{name!r}: {fault}")
