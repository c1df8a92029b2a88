"""`bester types`: message types of a running server, with their workers, versions and contracts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bester.broker.streams import plain
from bester.cli import tables
from bester.cli.options import config_option, load
from bester.cli.output import err, out

if TYPE_CHECKING:
    from bester.broker.config import Config

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
    from bester.broker.wire.type_names import is_reserved
    from bester.cli.operate import knock

    knock(config)
    server, rows, left = asyncio.run(_asked(config))
    if asyncapi:
        from bester.cli.asyncapi import document

        public = [row for row in rows if not is_reserved(row["type"])]  # clients send no others
        out(json.dumps(document(server, public), indent=2))
    elif json_lines:
        for row in rows:
            out(json.dumps(row))
    elif not rows:
        err("no handler serves any type now")
    else:
        tables.show([_cells(row) for row in rows], COLUMNS)
    if left:
        err(f"bester: {left} more types are not shown")


async def _asked(config: Config) -> tuple[str, list[dict[str, Any]], int]:
    """Return the server's name, the rows of all types, asked for page by page, and the number of those that an older
    server keeps back. Raises BesterError."""
    from bester.broker.wire.codes import BesterError
    from bester.cli.operate import Session

    rows: list[dict[str, Any]] = []
    start: str | None = None
    async with Session(config) as session:
        while True:
            (answer,) = await session.ask(("types", None if start is None else {"from": start}))
            if answer.status != 0:
                raise BesterError("unknown-op", f"{session.server} does not know this question; is this program newer?")
            rows += answer.value["types"]
            start = answer.value.get("next")
            if start is None:
                return session.server, rows, int(answer.value["left"])


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
