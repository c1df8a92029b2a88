"""The commands of `bester`, found when they are asked for.

Their modules import what they need inside the command, so that help and mistakes
answer at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import click

from bester.cli.errors import report

COMMANDS = {
    "up": "bester.cli.serve",
    "broker": "bester.cli.serve",
    "bridge": "bester.cli.serve",
    "handler": "bester.cli.handler",
    "user": "bester.cli.user",
    "send": "bester.cli.client",
    "listen": "bester.cli.client",
    "outcome": "bester.cli.client",
    "dead": "bester.cli.dead",
    "backup": "bester.cli.backup",
    "demo": "bester.cli.demo",
    "conform": "bester.cli.conform",
}
"""Each command's module; the command is the attribute of the same name."""


class Commands(click.Group):
    """Finds a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command, or None where there is none of this name."""
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[name]), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command the words begin with. Raises UsageError that names the nearest."""
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "`bester --help` lists them"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bester", message="bester %(version)s")
def bester() -> None:
    """Bester exchanges messages between clients, handlers and other servers."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    try:
        status = bester.main(arguments, prog_name="bester", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (whatever it is becomes one line)
        return report(error)
