"""`bester dead`: dead letters of a running server, to be read, replayed or dropped.

Text of strangers is never sent to a terminal unchanged: control characters are spelled out. `--json` shows all of it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from bester.broker.streams import plain
from bester.cli import tables
from bester.cli.options import as_text, config_option, load
from bester.cli.output import done, err, out

Row = dict[str, Any]
Selection = dict[str, str]
"""Selection of dead letters in an operator's question: `id`, `type`, or neither for all."""

COLUMNS = ("AT", "REASON", "TYPE", "BYTES", "TRIED", "ID")

MOST = 1_000_000
"""Most rows of `bester dead list`: more than anybody reads, and few enough for a terminal's memory."""

json_option = click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
type_option = click.option(
    "--type", "type_", metavar="TYPE", callback=as_text, help="All dead letters of one message type."
)
all_option = click.option("--all", "all_", is_flag=True, help="All dead letters.")
id_argument = click.argument("id_", metavar="[ID]", required=False, callback=as_text)


@click.group()
def dead() -> None:
    """Show, replay and drop the messages that were given up.

    A message becomes a dead letter when its handlers died or took too long over it, or when another server refused it
    or could not be reached in time. Its sender got a report.
    """


@dead.command("list")
@config_option
@type_option
@click.option(
    "--limit", type=click.IntRange(1, MOST), default=100, show_default=True, metavar="N", help="Most rows to show."
)
@json_option
def list_(config_path: Path | None, type_: str | None, limit: int, json_lines: bool) -> None:
    """Show the dead letters, latest first."""
    # Ask for one row more than shown, which tells whether there are more.
    rows: list[Row] = _asked(config_path, "deadList", {**({"type": type_} if type_ else {}), "limit": limit + 1})
    shown = rows[:limit]
    if json_lines:
        for row in shown:
            out(json.dumps(row))
    elif not shown:
        err(f"no dead letters{f' of type {type_}' if type_ else ''}")
    else:
        tables.show([_cells(row) for row in shown], COLUMNS)
    if len(rows) > limit:
        err(f"bester: there are more; --limit {10 * limit} shows more of them")
    _name_other_brokers(config_path)


@dead.command()
@config_option
@json_option
@click.argument("id_", metavar="ID", callback=as_text)
def show(config_path: Path | None, json_lines: bool, id_: str) -> None:
    """Show one dead letter: its origin, the reason, and its body."""
    row: Row | None = _asked(config_path, "deadShow", id_, may_be_none=True)
    if row is None:
        _name_other_brokers(config_path)
        raise _missing({"id": id_})
    if json_lines:
        out(json.dumps(row))
        return
    tables.show(_facts(row))
    out("\n" + plain(row["body"], kept="\n\t"))


@dead.command()
@config_option
@type_option
@all_option
@click.option(
    "--as", "as_type", metavar="TYPE", callback=as_text, help="Replay it to the handlers of this type instead."
)
@id_argument
def replay(config_path: Path | None, id_: str | None, type_: str | None, all_: bool, as_type: str | None) -> None:
    """Replay: ID, those of a --type, or --all of them. A dead letter whose replay ends well is removed."""
    selected = _selected(id_, type_, all_)
    _check_type(as_type)
    count = _done(config_path, "deadReplay", selected | ({"as": as_type} if as_type else {}), "replayed")
    if count == 0 and selected:
        raise _missing(selected, ", or it is being replayed already")
    _print_count("replayed", count)
    if count:
        out("a letter that fails again will be in `bester dead list`")


@dead.command()
@config_option
@type_option
@all_option
@click.option("--yes", is_flag=True, help="Drop without a question.")
@id_argument
def drop(config_path: Path | None, id_: str | None, type_: str | None, all_: bool, yes: bool) -> None:
    """Drop: ID, those of a --type, or --all of them. A dropped dead letter is lost for good."""
    selected = _selected(id_, type_, all_)
    if not yes and not id_:
        if not sys.stdin.isatty():
            raise click.UsageError("no terminal for a confirmation; --yes confirms")
        click.confirm(f"Drop all dead letters{f' of type {plain(type_)}' if type_ else ''}?", abort=True, err=True)
    count = _done(config_path, "deadDrop", selected, "dropped")
    if count == 0 and selected:
        raise _missing(selected)
    _print_count("dropped", count)


def _selected(id_: str | None, type_: str | None, all_: bool) -> Selection:
    given = [name for name, value in (("ID", id_), ("--type", type_), ("--all", all_)) if value]
    if len(given) != 1:
        raise click.UsageError(
            f"{' and '.join(given)} select different letters; give one of them"
            if given
            else "no letters selected; give an ID, --type TYPE or --all"
        )
    return {"id": id_} if id_ else {"type": type_} if type_ else {}


def _asked(config_path: Path | None, question: str, argument: object, *, may_be_none: bool = False) -> Any:
    """Return a server's answer; None for a refusal where `may_be_none`. Raises BesterError."""
    config = load(config_path)
    from bester.broker.wire.codes import BesterError
    from bester.cli.operate import ask

    answer = ask(config, question, argument)
    if answer.status == 0:
        return answer.value
    if may_be_none:
        return None
    if isinstance(answer.value, str):  # the reason of the refusal
        raise BesterError("not-allowed", plain(answer.value))
    raise BesterError("unknown-op", f"{config.server.name} does not know {question}; is this program newer?")


def _done(config_path: Path | None, question: str, selected: Selection, key: str) -> int:
    """Act on all selected dead letters, oldest first, a part with each question; return their number."""
    count, start = 0, None
    while True:
        answer: Row = _asked(config_path, question, {**selected, **({"from": start} if start else {})})
        count += int(answer[key])
        start = answer.get("next")
        if start is None:
            _name_other_brokers(config_path)
            return count


def _name_other_brokers(config_path: Path | None) -> None:
    """Name the brokers of the same server that have dead letters of their own. Raises BesterError."""
    if load(config_path).store.database is None:  # a file beside the broker is no other broker's
        return
    from bester.cli.operate import others_of

    status: Row = _asked(config_path, "status", None)
    if others := others_of(status):
        own = f"broker {status['broker']} alone was asked"
        err(f"bester: {own}; ask the others, too, each by its own file (-c): {', '.join(others)}")


def _check_type(type_: str | None) -> None:
    from bester.broker.wire.type_names import type_fault

    fault = type_fault(type_) if type_ is not None else None
    if fault:
        raise click.UsageError(fault)


def _missing(selected: Selection, or_else: str = "") -> Exception:
    from bester.broker.wire.codes import BesterError

    missing = (
        f"no dead letter {plain(selected['id']) or repr('')}"
        if "id" in selected
        else f"no dead letter of type {plain(selected['type'])}"
    )
    return BesterError("unknown-token", f"{missing}{or_else}; `bester dead list` shows those there are")


def _print_count(done_: str, count: int) -> None:
    done(f"{done_} {count} dead letter{'' if count == 1 else 's'}")


# --- display ---


def _cells(row: Row) -> tuple[str, ...]:
    server = row.get("server")
    type_ = f"{row['type']} to {server}" if server else str(row["type"])
    return (
        _local(row["at_ms"]),
        plain(str(row["reason"])),
        plain(type_),
        str(row["bytes"]),
        str(row["attempts"]),
        plain(str(row["id"])),
    )


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
    return [(name, plain(str(value))) for name, value in facts if value not in (None, "")]


def _sender(row: Row) -> str | None:
    if row.get("user"):
        return f"user {row['user']}"
    if row.get("peer"):
        return f"server {row['peer']}"
    scope = row.get("scope")
    return None if scope is None else f"a {scope}"


def _local(at_ms: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at_ms / 1000))
