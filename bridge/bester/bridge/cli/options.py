"""Options that several commands share; and passwords: from the environment, a terminal or a pipe, never argv."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bester.broker.config import Config

PASSWORD_VARIABLE = "BESTER_PASSWORD"  # noqa: S105 (the name of a variable)

config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, readable=False),  # whether it can be read is said by whoever reads it
    metavar="FILE",
    help="Configuration; ./bester.toml by default, if there is one.",
)
log_option = click.option(
    "--log",
    "log_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of log lines.",
)
log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Least urgent lines to log.",
)


def load(config_path: Path | None) -> Config:
    """Return the configuration that a command asks for. Raises ConfigError."""
    from bester.broker.config_file import load as load_file

    return load_file(config_path)


def client_password(user: str) -> str:
    """Return the password to log in with: BESTER_PASSWORD, else asked for on the terminal."""
    password = os.environ.get(PASSWORD_VARIABLE)
    if password:
        return password
    if not sys.stdin.isatty():
        raise click.UsageError(f"no terminal to ask for a password; put it into {PASSWORD_VARIABLE}")
    return str(click.prompt(f"Password of {user}", hide_input=True, err=True))


def new_password(user: str, from_stdin: bool) -> str:
    """Return a password for an account: the first line of standard input, or asked for twice on the terminal."""
    if from_stdin:
        password = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
        if not password:
            raise click.UsageError("no password on standard input; write it there as one line")
        return password
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for a password; use --password-stdin")
    return str(click.prompt(f"Password for {user}", hide_input=True, confirmation_prompt="Once more", err=True))
