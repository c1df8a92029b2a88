"""`bester trace`: the steps of a message through a running server, with the time between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bester.cli import tables
from bester.cli.options import config_option
from bester.cli.output import err, out
from bester.cli.status import ask_value, plain

WIDTH = 30
"""Characters of the bar that shows when a step was."""


@click.command()
@config_option
@click.option("--last", is_flag=True, help="Show the latest message.")
@click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
@click.argument("message", required=False)
def trace(config_path: Path | None, last: bool, json_lines: bool, message: str | None) -> None:
    """Show the steps of a message on this server, by its id as a report names it.

    The latest steps are remembered in memory; they hold no bodies.
    """
    if (message is None) is not last:
        raise click.UsageError("give the id of a message, or --last")
    steps: list[dict[str, Any]] = ask_value(config_path, "trace", message)
    if json_lines:
        for step in steps:
            out(json.dumps(step))
    elif not steps:
        err("no step of it is remembered; only the latest are")
    else:
        tables.show(_lines(steps), ("AFTER MS", "", "STEP", "WHERE", "MESSAGE"))


def _lines(steps: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    first = steps[0]["at_ms"]
    whole = max(1e-3, steps[-1]["at_ms"] - first)
    return [
        (
            f"{step['at_ms'] - first:.1f}",
            "·" * round((step["at_ms"] - first) / whole * WIDTH) + "█",
            plain(step["what"]),
            plain(step["where"]),
            plain(step["id"]),
        )
        for step in steps
    ]
