"""`bester dead`: the messages a running server has given up, to be read, tried again or thrown away.

What others wrote is never sent to a terminal as it stands: control characters are spelled out. `--json` has it whole.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bester.cli.options import config_option, load
from bester.cli.output import done, err, out

Row = dict[str, Any]
Which = dict[str, str]
"""What an operator's question is about: `id`, `type`, or neither for all."""

COLUMNS = ("AT", "REASON", "TYPE", "BYTES", "TRIED", "ID")

json_option = click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
type_option = click.option("--type", "type_", metavar="TYPE", help="Those of one message type.")
all_option = click.option("--all", "all_", is_flag=True, help="All there are.")
id_argument = click.argument("id_", metavar="[ID]", required=False)


@click.group()
def dead() -> None:
    """Show, replay and drop the messages that were given up.

    A message becomes a dead letter when its handlers died or took too long over it, or when another server would not
    have it or could not be given it in time. Its sender was told.
    """


@dead.command("list")
@config_option
@type_option
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="So many at most.")
@json_option
def list_(config_path: Path | None, type_: str | None, limit: int, json_lines: bool) -> None:
    """Show the dead letters, latest first."""
    # One more than is shown tells whether there are more.
    rows: list[Row] = _asked(config_path, "deadList", {**({"type": type_} if type_ else {}), "limit": limit + 1})
    shown = rows[:limit]
    if json_lines:
        for row in shown:
            out(json.dumps(row))
    elif not shown:
        err(f"no dead letters{f' of type {_plain(type_)}' if type_ else ''}")
    else:
        for line in _table([_cells(row) for row in shown]):
            out(line)
    if len(rows) > limit:
        err(f"bester: there are more; --limit {10 * limit} shows more of them")


@dead.command()
@config_option
@json_option
@click.argument("id_", metavar="ID")
def show(config_path: Path | None, json_lines: bool, id_: str) -> None:
    """Show one dead letter: where it came from, why it was given up, and its body."""
    row: Row | None = _asked(config_path, "deadShow", id_, may_be_none=True)
    if row is None:
        raise _missing({"id": id_})
    if json_lines:
        out(json.dumps(row))
        return
    width = max(len(name) for name, _ in _facts(row))
    for name, value in _facts(row):
        out(f"{name:<{width}}  {value}")
    out("\n" + _plain(row["body"], kept="\n\t"))


@dead.command()
@config_option
@type_option
@all_option
@click.option("--as", "as_type", metavar="TYPE", help="Give it to the handlers of this type instead.")
@id_argument
def replay(config_path: Path | None, id_: str | None, type_: str | None, all_: bool, as_type: str | None) -> None:
    """Try again: ID, those of a type, or all. What ends well is a dead letter no more."""
    which = _which(id_, type_, all_)
    _check_type(as_type)
    count = _done(config_path, "deadReplay", which | ({"as": as_type} if as_type else {}), "replayed")
    if count == 0 and which:
        raise _missing(which, ", or it is being replayed already")
    _tell("replayed", count)
    if count:
        out("what fails again will be in `bester dead list`")


@dead.command()
@config_option
@type_option
@all_option
@click.option("--yes", is_flag=True, help="Don't ask.")
@id_argument
def drop(config_path: Path | None, id_: str | None, type_: str | None, all_: bool, yes: bool) -> None:
    """Throw away: ID, those of a type, or all. Nothing brings them back."""
    which = _which(id_, type_, all_)
    if not yes and not id_:
        if not sys.stdin.isatty():
            raise click.UsageError("no terminal to ask whether you mean it; --yes says so")
        click.confirm(
            f"Throw away all dead letters{f' of type {_plain(type_)}' if type_ else ''}?", abort=True, err=True
        )
    count = _done(config_path, "deadDrop", which, "dropped")
    if count == 0 and which:
        raise _missing(which)
    _tell("dropped", count)


def _which(id_: str | None, type_: str | None, all_: bool) -> Which:
    given = [name for name, value in (("ID", id_), ("--type", type_), ("--all", all_)) if value]
    if len(given) != 1:
        raise click.UsageError(
            f"{' and '.join(given)} name different letters; give one of them"
            if given
            else "which ones? give an ID, --type TYPE or --all"
        )
    return {"id": id_} if id_ else {"type": type_} if type_ else {}


def _asked(config_path: Path | None, question: str, argument: object, *, may_be_none: bool = False) -> Any:
    """Return what a server answers, None where it says no and may. Raises BesterError."""
    config = load(config_path)
    from bester.broker.wire.codes import BesterError
    from bester.cli.operate import ask

    answer = ask(config, question, argument)
    if answer.status == 0:
        return answer.value
    if may_be_none:
        return None
    if isinstance(answer.value, str):  # it says why it will not
        raise BesterError("not-allowed", _plain(answer.value))
    raise BesterError("unknown-op", f"{config.server.name} does not know {question}; is this program newer?")


def _done(config_path: Path | None, question: str, which: Which, key: str) -> int:
    """Have it done to all letters that are meant and there now, oldest first, a part with each question."""
    count, start = 0, None
    while True:
        answer: Row = _asked(config_path, question, {**which, **({"from": start} if start else {})})
        count += int(answer[key])
        start = answer.get("next")
        if start is None:
            return count


def _check_type(type_: str | None) -> None:
    from bester.broker.wire.messages import type_fault

    fault = type_fault(type_) if type_ is not None else None
    if fault:
        raise click.UsageError(fault)


def _missing(which: Which, or_else: str = "") -> Exception:
    from bester.broker.wire.codes import BesterError

    what = (
        f"no dead letter {_plain(which['id'])}" if "id" in which else f"no dead letter of type {_plain(which['type'])}"
    )
    return BesterError("unknown-token", f"{what}{or_else}; `bester dead list` shows those there are")


def _tell(what: str, count: int) -> None:
    done(f"{what} {count} dead letter{'' if count == 1 else 's'}")


# --- how it looks ---


def _cells(row: Row) -> tuple[str, ...]:
    server = row.get("server")
    type_ = f"{row['type']} to {server}" if server else str(row["type"])
    return (
        _local(row["at_ms"]),
        _plain(str(row["reason"])),
        _plain(type_),
        str(row["bytes"]),
        str(row["attempts"]),
        _plain(str(row["id"])),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines of columns that stand below each other; the last one, the longest, is not padded."""
    widths = [max(len(row[column]) for row in (COLUMNS, *rows)) for column in range(len(COLUMNS) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in (COLUMNS, *rows)
    ]


def _facts(row: Row) -> list[tuple[str, str]]:
    from bester.broker.wire.codes import CODES

    reason = str(row["reason"])
    meaning = f": {CODES[reason].meaning}" if reason in CODES else ""
    facts = [
        ("id", row["id"]),
        ("type", row["type"]),
        ("reason", reason + meaning),
        ("at", _local(row["at_ms"])),
        ("attempts", row["attempts"]),
        ("from", _sender(row)),
        ("on its way to", row.get("server")),
        ("entered at", row.get("origin")),
        ("root", row.get("root")),
        ("path", " > ".join(map(str, row.get("path") or ()))),
        ("bytes", row["bytes"]),
    ]
    return [(name, _plain(str(value))) for name, value in facts if value not in (None, "")]


def _sender(row: Row) -> str | None:
    if row.get("user"):
        return f"user {row['user']}"
    if row.get("peer"):
        return f"server {row['peer']}"
    scope = row.get("scope")
    return None if scope is None else f"a {scope}"


def _local(at_ms: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at_ms / 1000))


def _plain(text: str, kept: str = "") -> str:
    """Return the text with what would move a cursor, or hide something, spelled out as JSON does."""
    return "".join(char if char.isprintable() or char in kept else json.dumps(char)[1:-1] for char in text)
