"""`bester status` and `sessions`: what a running server does now, as its metrics and its page show it.

Text of strangers is never sent to a terminal unchanged: control characters are spelled out. `--json` shows all of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bester.broker.streams import plain
from bester.cli import tables
from bester.cli.options import config_option, load
from bester.cli.output import err, out

Status = Mapping[str, Any]
TYPES = ("TYPE", "HANDLERS", "WAIT", "IN FLIGHT", "RECEIVED", "ANSWERED", "AGAIN", "DEAD", "FAILED")
ADOPTIONS = ("BROKER", "ADOPTED BY", "AGO", "MESSAGES", "OUTCOMES", "DEAD LETTERS")
SERVERS = ("SERVER", "STATE", "QUEUED", "OLDEST", "RETRIES", "NEXT TRY", "LAST ERROR")


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole status as one object.")
def status(config_path: Path | None, as_json: bool) -> None:
    """Show who is connected, what waits, what failed and why."""
    found = ask_status(config_path)
    if as_json:
        out(json.dumps(found))
        return
    for line in head_lines(found):
        out(line)
    if found["types"]:
        out("")
        tables.show([_type_cells(type_, row) for type_, row in sorted(found["types"].items())], TYPES)
    if found["servers"]:
        out("")
        tables.show(server_rows(found), SERVERS)
    if rows := adoption_rows(found):
        out("")
        tables.show(rows, ADOPTIONS)
    if reached := reached_bounds(found):
        out("")
        out(f"Refused or dropped at a bound: {reached}")
    for line in worries(found):
        err(f"bester: {line}")


@click.command()
@config_option
@click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
def sessions(config_path: Path | None, json_lines: bool) -> None:
    """Show the users who are connected, with the number of their sessions."""
    found = ask_value(config_path, "sessions")
    if json_lines:
        for row in found["users"]:
            out(json.dumps(row))
    elif not found["users"]:
        err("nobody is connected")
    else:
        tables.show([(plain(row["user"]), str(row["sessions"])) for row in found["users"]], ("USER", "SESSIONS"))
    if found["left"]:
        err(f"bester: {found['left']} more users are not shown")


def ask_value(config_path: Path | None, question: str, argument: object = None) -> Any:
    """Return a running server's answer. Raises BesterError where there is none."""
    config = load(config_path)
    from bester.broker.wire.codes import BesterError
    from bester.cli.operate import ask

    answer = ask(config, question, argument)
    if answer.status != 0:
        raise BesterError("unknown-op", f"{config.server.name} does not know {question}; is this program newer?")
    return answer.value


def ask_status(config_path: Path | None) -> Status:
    """Return the status of a running server. Raises BesterError where there is none."""
    found: Status = ask_value(config_path, "status")
    return found


def worries(found: Status) -> list[str]:
    """Return a sentence for whatever needs somebody's attention, with its remedy."""
    from bester.broker.doctor.live import findings_of

    return [f"{each.text}; {each.remedy}" for each in findings_of(found)]


def reached_bounds(found: Status) -> str:
    """Return the bounds at which something was refused, dropped or cut since the start, with the counts."""
    rows = [(name, count) for name, count in found.get("reached", {}).items() if count]
    for bridge in found["bridges"]:
        for name, count in bridge["figures"].items():
            if name.startswith("reached_") and count:
                rows.append((f"{plain(name.removeprefix('reached_'))} of {plain(bridge['name'])}", count))
    return ", ".join(f"{name} ({count})" for name, count in rows)


# --- display ---


def head_lines(found: Status) -> list[str]:
    """Return the first lines about a server: who is connected, what waits, who came in."""
    queued, store = found["queued"], found["store"]
    size = "in memory" if store["bytes"] is None else f"{store['bytes'] / 1024**2:.1f} MiB"
    logins = ", ".join(f"{count} {plain(result)}" for result, count in found["logins"].items()) or "none"
    broker = f", broker {plain(found['broker'])}" if found.get("broker") else ""
    head = f"{plain(found['server'])}{broker}, up {_span(found['up_s'])}"
    lockouts = f"; {found['lockouts']} lockouts" if found["lockouts"] else ""
    brokers = ", ".join(map(_broker, found.get("brokers", ())))
    return [
        f"{head}: {found['users']} users, {found['sessions']} sessions",
        f"unreported {found['cases']}, queued {queued['messages']} ({queued['mailboxes']} mailboxes), store {size}",
        f"logins: {logins}{lockouts}",
        *([f"brokers: {brokers}"] if brokers else ()),
    ]


def _broker(row: Mapping[str, Any]) -> str:
    state = f"dead for {_span(row['gone_s'])}" if row["state"] == "dead" else row["state"]
    return f"{plain(row['name'])} {plain(state)}"


def adoption_rows(found: Status) -> list[tuple[str, ...]]:
    """Return the cells of the adoptions, the last one first, below ADOPTIONS."""
    return [
        (
            plain(row["broker"]), plain(row["adopter"]), _span(row["ago_s"]),
            *(str(row[count]) for count in ("messages", "outcomes", "dead_letters")),
        )
        for row in found.get("adoptions", ())
    ]  # fmt: skip


def _type_cells(type_: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    failed = ", ".join(f"{count} {plain(code)}" for code, count in row["failed"].items())
    counts = (row[key] for key in ("workers", "waiting", "inflight", "received", "answered", "again", "dead"))
    return (plain(type_), *map(str, counts), failed)


def server_rows(found: Status) -> list[tuple[str, ...]]:
    """Return the cells of the other servers, below SERVERS."""
    return [
        (
            plain(row["name"]),
            f"held, {row['state']}" if row["held"] else row["state"],
            str(row["queued"]),
            "" if row["oldest_s"] is None else _span(row["oldest_s"]),
            str(row["retries"]),
            "" if row["next_try_s"] is None else f"in {_span(row['next_try_s'])}",
            plain(row["error"] or ""),
        )
        for row in found["servers"]
    ]


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
