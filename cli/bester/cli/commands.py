"""Commands of `bester`, each loaded when it is called.

A command's module imports its needs inside the command, so that help and usage errors answer at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import click

from bester.cli.completion import install_option, show_option
from bester.cli.errors import report

COMMANDS = {
    "up": "bester.cli.serve",
    "broker": "bester.cli.serve",
    "bridge": "bester.cli.serve",
    "handler": "bester.cli.handler",
    "user": "bester.cli.user",
    "keys": "bester.cli.keys",
    "send": "bester.cli.client",
    "listen": "bester.cli.client",
    "outcome": "bester.cli.client",
    "dead": "bester.cli.dead",
    "peers": "bester.cli.peers",
    "backup": "bester.cli.backup",
    "demo": "bester.cli.demo",
    "conform": "bester.cli.conform",
    "new": "bester.cli.new",
    "types": "bester.cli.types",
    "check": "bester.cli.doctor",
    "status": "bester.cli.status",
    "sessions": "bester.cli.status",
    "top": "bester.cli.top",
    "trace": "bester.cli.trace",
    "record": "bester.cli.record",
    "replay": "bester.cli.replay",
}
"""Each command's module; the command is the attribute of the same name."""


class Commands(click.Group):
    """Loads a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command of this name, or None."""
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[name]), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name. Raises UsageError that names the nearest command."""
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "`bester --help` lists them"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bester", message="bester %(version)s")
@install_option
@show_option
def bester() -> None:
    """Bester exchanges messages between clients, handlers and other servers."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    try:
        status = bester.main(arguments, prog_name="bester", standalone_mode=False)
        if not sys.stdout.closed:  # as by a handler's own code
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (any error becomes one line)
        return report(error)
