"""`bester trace`: the way of a message over handlers and servers, as a waterfall of what took how long."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bester.broker.streams import plain
from bester.cli import tables
from bester.cli.options import as_text, config_option
from bester.cli.output import err, out
from bester.cli.status import ask_value

WIDTH = 30
"""Characters of the bars."""
BARS = {"wait": "░", "queued": "░", "handler": "█", "server": "━", "delivery": "▓", "emitted": "█"}
"""Character of a bar by the kind of its span."""
HEADER = ("AFTER MS", "TOOK MS", "", "WHAT", "WHERE", "OUTCOME", "MESSAGE")
WHY = {
    "not-allowed": "its operator does not allow it ([servers.NAME] trace = true there)",
    "unknown-op": "it speaks the native protocol, or is an older version",
    "unreachable": "there is no link to it",
    "timeout": "it did not answer in time",
    "too-many-hops": "it is too far away",
    "overloaded": "it is asked too often",
}
"""Sentences about a server that has told nothing, by the code of the reason."""


@click.command()
@config_option
@click.option("--last", is_flag=True, help="Show the latest message.")
@click.option("--json", "as_json", is_flag=True, help="Print steps, spans and servers as one object.")
@click.argument("message", required=False, callback=as_text)
def trace(config_path: Path | None, last: bool, as_json: bool, message: str | None) -> None:
    """Show the way of a message, by its id as a report names it: over this server, and over those that allow it.

    Each server remembers the latest steps in memory, without bodies. Exit status 1 means that none is remembered.
    """
    if (message is None) is not last:
        raise click.UsageError("give the id of a message, or --last")
    found: dict[str, Any] = ask_value(config_path, "follow", message)
    if as_json:
        out(json.dumps(found))
    else:
        if found["spans"]:
            tables.show(rows(found["spans"]), HEADER)
        for server, why in found["servers"].items():
            err(f"bester: {server} tells nothing of it: {WHY.get(why, why)}")
    if not found["spans"]:
        raise _unknown(message)


def _unknown(message: str | None) -> Exception:
    from bester.broker.wire.codes import BesterError

    if message is None:
        return BesterError("unknown-token", "no message has come since the server's start; `bester send` sends one")
    why = "the server remembers the latest steps alone, and none over a restart"
    return BesterError("unknown-token", f"no step of message {plain(message) or repr('')} is remembered; {why}")


def rows(spans: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of a waterfall, a row for each span; all times are counted from the first."""
    first = min(span["from_ms"] for span in spans)
    last = max(first + 1e-3, *(span["from_ms"] if span["to_ms"] is None else span["to_ms"] for span in spans))
    return [_row(span, first, last) for span in spans]


def _row(span: Mapping[str, Any], first: float, last: float) -> tuple[str, ...]:
    end = last if span["to_ms"] is None else span["to_ms"]
    begin, stop = ((at - first) / (last - first) * WIDTH for at in (span["from_ms"], end))
    skipped = min(WIDTH - 1, int(begin))
    length = max(1, min(WIDTH - skipped, round(stop) - skipped))
    bar = "·" * skipped + BARS.get(span["kind"], "█") * length
    return (
        f"{span['from_ms'] - first:.1f}",
        "…" if span["to_ms"] is None else f"{end - span['from_ms']:.1f}",
        bar,
        plain(span["kind"]),
        plain(f"{span['server']}/{span['where']}"),
        plain(span["outcome"] or ""),
        plain(span["id"]),
    )
