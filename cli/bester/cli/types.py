"""`bester types`: message types of a running server, with their workers, versions and contracts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

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
    from bester.cli.operate import ask

    answer = ask(config, "types")
    if answer.status != 0:
        raise BesterError("unknown-op", f"{config.server.name} does not know this question; is this program newer?")
    rows: list[dict[str, Any]] = answer.value["types"]
    if asyncapi:
        from bester.cli.asyncapi import document

        out(json.dumps(document(config.server.name, rows), indent=2))
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
    versions = sorted({str(worker["version"]) for worker in workers if worker["version"]})
    contract = "differ" if row["differ"] else "yes" if row["contracts"] else "no"
    return (
        _plain(row["type"]),
        ", ".join(_plain(worker["name"]) + (" (leaving)" if worker["leaving"] else "") for worker in workers),
        str(row["waiting"]),
        _plain(", ".join(versions)),
        contract,
    )


def _plain(text: str) -> str:
    """Return the text with control and invisible characters spelled out as JSON does."""
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
