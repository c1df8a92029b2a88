"""`bester peers`: other servers as a running server sees them, and orders about the messages queued for them.

Text of strangers is never sent to a terminal unchanged: control characters are spelled out. `--json` shows all of it.
"""

from __future__ import annotations

import asyncio
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
from bester.cli.status import ask_value

Row = dict[str, Any]
COLUMNS = ("SERVER", "STATE", "SINCE", "ADDRESS", "QUEUED", "OLDEST", "NEXT", "LAST ERROR")
name_argument = click.argument("name", metavar="NAME", callback=as_text)


@click.group(invoke_without_command=True)
@config_option
@click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
@click.pass_context
def peers(context: click.Context, config_path: Path | None, json_lines: bool) -> None:
    """Show the other servers: state, address, and the messages queued for them by type.

    A server is up, down, held (by `bester peers hold`) or unknown (not tried yet).
    """
    if context.invoked_subcommand is not None:
        context.obj = config_path
        return
    rows: list[Row] = ask_value(config_path, "peers")
    if json_lines:
        for row in rows:
            out(json.dumps(row))
    elif not rows:
        err("no other servers; [servers.NAME] in the configuration lists them")
    else:
        cells = [line for row in rows for line in _lines(row)]
        tables.show(cells, COLUMNS)


@peers.command()
@config_option
@click.pass_context
@name_argument
def retry(context: click.Context, config_path: Path | None, name: str) -> None:
    """Try the messages queued for a server now, without waiting for the back-off."""
    answer = _order(config_path or context.obj, "peerRetry", name)
    done(f"trying {_messages(answer)} for {name} now{_but_held(answer)}")


@peers.command()
@config_option
@click.pass_context
@name_argument
def hold(context: click.Context, config_path: Path | None, name: str) -> None:
    """Send a server nothing until it is released, over restarts too: its messages are queued."""
    answer = _order(config_path or context.obj, "peerHold", name)
    done(f"holding messages to {name}, now {answer['messages']}; `bester peers release` sends them")


@peers.command()
@config_option
@click.pass_context
@name_argument
def release(context: click.Context, config_path: Path | None, name: str) -> None:
    """Send a server its messages again."""
    answer = _order(config_path or context.obj, "peerRelease", name)
    done(f"released {_messages(answer)} for {name}")


@peers.command()
@config_option
@click.option("--yes", is_flag=True, help="Drop without a question.")
@click.pass_context
@name_argument
def drop(context: click.Context, config_path: Path | None, yes: bool, name: str) -> None:
    """End the messages queued for a server: they become dead letters, and their senders get `unreachable`."""
    if not yes:
        if name not in (row["name"] for row in ask_value(config_path or context.obj, "peers")):
            raise _no_server(name)
        if not sys.stdin.isatty():
            raise click.UsageError("no terminal for a confirmation; --yes confirms")
        click.confirm(f"Drop all messages queued for {plain(name)}?", abort=True, err=True)
    answer = _order(config_path or context.obj, "peerDrop", name)
    done(f"dropping {_messages(answer)} for {name}; `bester dead list` shows them")


def _order(config_path: Path | None, question: str, name: str) -> Row:
    """Give a broker an order about a server, and name the brokers that have to be told, too. Raises BesterError."""
    config = load(config_path)
    from bester.cli.operate import ask_all, knock, others_of

    knock(config)
    answer, status = asyncio.run(ask_all(config, [(question, name), ("status", None)]))
    if answer.status != 0:
        raise _no_server(name)
    if others := others_of(status.value):
        own = f"broker {status.value['broker']} alone was told"
        err(f"bester: {own}; tell the others, too, each by its own file (-c): {', '.join(others)}")
    row: Row = answer.value
    return row


def _no_server(name: str) -> Exception:
    from bester.broker.wire.codes import BesterError

    return BesterError("unknown-token", f"no server {plain(name) or repr(name)}; `bester peers` shows those there are")


# --- display ---


def _lines(row: Row) -> list[tuple[str, ...]]:
    """Return the lines of a server: one for itself, and one for each type of its outbox."""
    ages = [each["oldest_s"] for each in row["outbox"] if each["oldest_s"] is not None]
    queued = sum(each["messages"] for each in row["outbox"]) + row["more_messages"]
    first = (
        plain(row["name"]),
        _state(row),
        _local(row["since_ms"]),
        plain(str(row["address"] or "not configured")),
        str(queued),
        _age(max(ages)) if ages else "",
        _local(row["next_attempt_ms"]),
        plain(row["error"] or ""),
    )
    types = [
        (f"  {plain(each['type'])}", "", "", "", str(each["messages"]), _age(each["oldest_s"]), "", "")
        for each in row["outbox"]
    ]
    more = (f"  {row['more_types']} more types", "", "", "", str(row["more_messages"]), "", "", "")
    return [first, *types, *([more] if row["more_types"] else [])]


def _state(row: Row) -> str:
    return f"held, {row['reachable']}" if row["state"] == "held" else str(row["state"])


def _messages(answer: Row) -> str:
    count = answer["messages"]
    return f"{count} message{'' if count == 1 else 's'}"


def _but_held(answer: Row) -> str:
    return "; it is held, and `bester peers release` sends them" if answer["held"] else ""


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _local(at_ms: float | None) -> str:
    return "" if at_ms is None else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at_ms / 1000))
