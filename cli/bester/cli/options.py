"""Options that several commands share; and passwords: from the environment, a terminal or a pipe, never argv."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from bester.broker.streams import is_missing
from bester.broker.wire.messages import MAX_BODY_BYTES

if TYPE_CHECKING:
    from bester.broker.config import Config

LINE_BYTES = 64 * 1024
"""Bytes read for a password on standard input: longer than any password, since other input may have no end."""
PASSWORD_VARIABLE = "BESTER_PASSWORD"  # noqa: S105 (the name of a variable)

config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, readable=False),  # an unreadable file is reported by its reader
    metavar="FILE",
    help="Configuration; ./bester.toml by default, if there is one.",
)
key_option = click.option(
    "--key", metavar="FILE", help="File of the secret key, for an encrypted link; by default BESTER_KEY."
)
server_key_option = click.option(
    "--server-key", metavar="KEY", help="Public key of the server; by default BESTER_SERVER_KEY."
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


class Seconds(click.FloatRange):
    """A number of seconds: no loop can wait for one that is not finite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises BadParameter."""
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


def load(config_path: Path | None) -> Config:
    """Return the configuration of a command. Raises ConfigError."""
    from bester.broker.config_file import load as load_file

    return load_file(config_path)


def as_text(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Return the value of an option or argument for a server. Raises UsageError for a value that is not UTF-8."""
    if value is not None and not is_text(value):
        name = option.opts[0] if isinstance(option, click.Option) else option.human_readable_name.strip("[]")
        raise click.UsageError(f"{name}: {value!a} is not UTF-8; write it so", context)
    return value


def is_text(value: str) -> bool:
    """Return whether a text can be encoded; bytes that were not UTF-8 are surrogates in it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def client_password(user: str) -> str:
    """Return the password to log in with: BESTER_PASSWORD, else asked for on the terminal."""
    password = os.environ.get(PASSWORD_VARIABLE)
    if password:
        if not is_text(password):
            raise click.UsageError(f"{PASSWORD_VARIABLE} is not UTF-8; put the password into it as UTF-8")
        return password
    if not sys.stdin.isatty():
        raise click.UsageError(f"no terminal to ask for a password; put it into {PASSWORD_VARIABLE}")
    return _prompt(f"Password of {user}")


def new_password(user: str, from_stdin: bool) -> str:
    """Return a password for an account: the first line of standard input, or asked for twice on the terminal."""
    if from_stdin:
        line = _read_stdin(lambda source: source.readline(LINE_BYTES))
        try:
            password = line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise click.UsageError("the password on standard input is not UTF-8; write it there as UTF-8") from None
        if not password:
            raise click.UsageError("no password on standard input; write it there as one line")
        return password
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for a password; use --password-stdin")
    return _prompt(f"Password for {user}", "Once more")


def given_json() -> bytes:
    """Return standard input. Raises UsageError for empty input, and for more than any message may hold."""
    text = _read_stdin(lambda source: source.read(MAX_BODY_BYTES + 1))
    if len(text) > MAX_BODY_BYTES:
        raise click.UsageError(f"more than {MAX_BODY_BYTES} bytes on standard input; no message is so long")
    if not text.strip():
        raise click.UsageError("nothing on standard input; write the message's JSON there")
    return text


def _read_stdin(read: Callable[[BinaryIO], bytes]) -> bytes:
    if is_missing(0):
        raise click.UsageError("standard input is closed; give it a file or a pipe")
    try:
        return read(sys.stdin.buffer)
    except OSError as error:
        raise click.UsageError(f"standard input: {error.strerror}; give it a file or a pipe") from None


def _prompt(prompt: str, once_more: str | None = None) -> str:
    try:
        return str(click.prompt(prompt, hide_input=True, confirmation_prompt=once_more or False, err=True))
    except UnicodeDecodeError:
        raise click.UsageError("the typed password is not UTF-8; set the terminal to UTF-8") from None
