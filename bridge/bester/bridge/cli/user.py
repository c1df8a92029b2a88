"""`bester user`: accounts, changed in the database that the server reads; a running server knows at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bester.bridge.cli.options import config_option, load, new_password

if TYPE_CHECKING:
    from bester.broker.accounts import Accounts

password_option = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")


@click.group()
def user() -> None:
    """Add, change, remove and list accounts."""


@user.command()
@config_option
@password_option
@click.argument("name")
def add(config_path: Path | None, password_stdin: bool, name: str) -> None:
    """Make an account."""
    with _accounts(config_path) as accounts:
        _check_name(name)
        accounts.add(name, new_password(name, password_stdin))
    click.echo(f"user {name} added")


@user.command()
@config_option
@password_option
@click.argument("name")
def passwd(config_path: Path | None, password_stdin: bool, name: str) -> None:
    """Change a password."""
    with _accounts(config_path) as accounts:
        accounts.passwd(name, new_password(name, password_stdin))
    click.echo(f"password of {name} changed")


@user.command()
@config_option
@click.argument("name")
def remove(config_path: Path | None, name: str) -> None:
    """Remove an account."""
    with _accounts(config_path) as accounts:
        accounts.remove(name)
    click.echo(f"user {name} removed")


@user.command("list")
@config_option
def list_(config_path: Path | None) -> None:
    """Show all accounts."""
    with _accounts(config_path) as accounts:
        rows = accounts.list()
    for row in rows:
        click.echo(f"{row.name}\t{time.strftime('%Y-%m-%d', time.localtime(row.created_s))}")


@contextmanager
def _accounts(config_path: Path | None) -> Iterator[Accounts]:
    config = load(config_path)
    from bester.broker.accounts import Accounts

    if config.auth == "open":
        click.echo('the configuration says auth = "open": accounts are kept, but nobody is asked for one', err=True)
    with closing(Accounts(config.server.data_dir)) as accounts:
        yield accounts


def _check_name(name: str) -> None:
    from bester.broker.accounts import name_fault

    fault = name_fault(name)
    if fault:
        raise click.UsageError(f"{name!r}: {fault}")
