"""`bester types`: message types of a running server, with their workers, versions and contracts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bester.broker.streams import plain
from bester.cli import tables
from bester.cli.options import config_option, load
from bester.cli.output import err, out

COLUMNS = ("TYPE", "WORKERS", "WAITING", "VERSIONS", "CONTRACT")


@click.command()
@config_option
@click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
@click.option("--asyncapi", is_flag=True, help="Print an AsyncAPI 3 document.")
def types(config_path: Path | None, json_lines: bool, asyncapi: bool) -> None:
    """Show the message types that are served, their workers, versions and contracts."""
    if json_lines and asyncapi:
        raise click.UsageError("--json and --asyncapi print different things; give one of them")
    config = load(config_path)
    from bester.broker.wire.codes import BesterError
    from bester.broker.wire.type_names import is_reserved
    from bester.cli.operate import ask

    answer = ask(config, "types")
    if answer.status != 0:
        raise BesterError("unknown-op", f"{config.server.name} does not know this question; is this program newer?")
    rows: list[dict[str, Any]] = answer.value["types"]
    if asyncapi:
        from bester.cli.asyncapi import document

        public = [row for row in rows if not is_reserved(row["type"])]  # clients send no others
        out(json.dumps(document(config.server.name, public), indent=2))
    elif json_lines:
        for row in rows:
            out(json.dumps(row))
    elif not rows:
        err("no handler serves any type now")
    else:
        tables.show([_cells(row) for row in rows], COLUMNS)
    if answer.value["left"]:
        err(f"bester: {answer.value['left']} more types are not shown")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    workers = row["workers"]
    programs = [*workers, *row.get("shadows", ())]
    versions = sorted({str(program["version"]) for program in programs if program["version"]})
    contract = "differ" if row["differ"] else "yes" if row["contracts"] else "no"
    return (
        plain(row["type"]),
        ", ".join([*map(_worker, workers), *map(_shadow, row.get("shadows", ()))]),
        str(row["waiting"]),
        plain(", ".join(versions)),
        contract,
    )


def _worker(worker: dict[str, Any]) -> str:
    return plain(worker["name"]) + (" (leaving)" if worker["leaving"] else "")


def _shadow(shadow: dict[str, Any]) -> str:
    """Return the cell of a shadow: how many of the answers that it has given in time differ, and what it missed."""
    missed = "".join(f", {shadow[key]} {key}" for key in ("late", "dropped") if shadow[key])
    answered = shadow["same"] + shadow["different"]
    return f"{plain(shadow['name'])} (shadow: {shadow['different']} of {answered} differ{missed})"
