"""`bester status`, `sessions` and `top`: what a running server does now, as its metrics and its page show it.

Text of strangers is never sent to a terminal unchanged: control characters are spelled out. `--json` shows all of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bester.cli import tables
from bester.cli.options import config_option, load
from bester.cli.output import err, out

Status = Mapping[str, Any]
TYPES = ("TYPE", "HANDLERS", "WAIT", "IN FLIGHT", "RECEIVED", "ANSWERED", "AGAIN", "DEAD", "FAILED")
RATES = ("TYPE", "HANDLERS", "WAIT", "IN FLIGHT", "RECEIVED/S", "ANSWERED/S", "HANDLER MS", "WHOLE MS")
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
    _show_head(found)
    if found["types"]:
        out("")
        tables.show([_type_cells(type_, row) for type_, row in sorted(found["types"].items())], TYPES)
    _show_servers(found)
    if reached := reached_bounds(found):
        out("")
        out(f"Refused or dropped at a bound: {reached}")
    for line in [*worries(found), *_dead_brokers(config_path)]:
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


@click.command()
@config_option
@click.option("--once", is_flag=True, help="Print one table and end.")
@click.option("--every", default=1.0, type=click.FloatRange(0.2, 3600.0), help="Seconds between two looks.")
@click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
def top(config_path: Path | None, once: bool, every: float, json_lines: bool) -> None:
    """Show rates by message type, again and again until Ctrl-C."""
    before = ask_status(config_path)
    while True:
        time.sleep(every)
        now = ask_status(config_path)
        rows = [_rates(type_, row, before["types"].get(type_), now, before) for type_, row in now["types"].items()]
        rows.sort(key=lambda row: -float(row["received_per_s"]))
        if json_lines:
            for row in rows:
                out(json.dumps({"server": now["server"], "up_s": now["up_s"]} | row))
            sys.stdout.flush()
        else:
            if not once and sys.stdout.isatty():
                click.clear()
            _show_head(now)
            tables.show([_rate_cells(row) for row in rows], RATES)
            _show_servers(now)
        if once:
            return
        before = now


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


def _dead_brokers(config_path: Path | None) -> list[str]:
    """Return a sentence for each other broker of the server that is dead."""
    config = load(config_path)
    if config.store.database is None:
        return []
    from bester.broker.doctor.local import Local, brokers
    from bester.cli.doctor.gather import brokers_of

    return [
        f"{text}; {remedy}" for level, text, remedy in brokers(Local("", brokers=brokers_of(config))) if level != "ok"
    ]


def reached_bounds(found: Status) -> str:
    """Return the bounds at which something was refused, dropped or cut since the start, with the counts."""
    rows = [(name, count) for name, count in found.get("reached", {}).items() if count]
    for bridge in found["bridges"]:
        for name, count in bridge["figures"].items():
            if name.startswith("reached_") and count:
                rows.append((f"{plain(name.removeprefix('reached_'))} of {plain(bridge['name'])}", count))
    return ", ".join(f"{name} ({count})" for name, count in rows)


def plain(text: str) -> str:
    """Return the text with control and invisible characters spelled out as JSON does."""
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


# --- display ---


def _show_head(found: Status) -> None:
    queued, store = found["queued"], found["store"]
    size = "in memory" if store["bytes"] is None else f"{store['bytes'] / 1024**2:.1f} MiB"
    logins = ", ".join(f"{count} {plain(result)}" for result, count in found["logins"].items()) or "none"
    broker = f", broker {plain(found['broker'])}" if found.get("broker") else ""
    head = f"{plain(found['server'])}{broker}, up {_span(found['up_s'])}"
    out(f"{head}: {found['users']} users, {found['sessions']} sessions")
    out(f"unreported {found['cases']}, queued {queued['messages']} ({queued['mailboxes']} mailboxes), store {size}")
    lockouts = f"; {found['lockouts']} lockouts" if found["lockouts"] else ""
    out(f"logins: {logins}{lockouts}")


def _type_cells(type_: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    failed = ", ".join(f"{count} {plain(code)}" for code, count in row["failed"].items())
    counts = (row[key] for key in ("workers", "waiting", "inflight", "received", "answered", "again", "dead"))
    return (plain(type_), *map(str, counts), failed)


def _rates(
    type_: str, row: Mapping[str, Any], old: Mapping[str, Any] | None, now: Status, before: Status
) -> dict[str, Any]:
    """Return the figures of a type between two looks."""
    if old is None or now["up_s"] < before["up_s"]:  # a new type, or a server that was started again
        old = {"received": 0, "answered": 0, "took_s": 0.0, "reported": 0, "whole_s": 0.0}
    seconds = max(1e-3, now["up_s"] - before["up_s"]) if now["up_s"] >= before["up_s"] else now["up_s"]
    answered, reported = row["answered"] - old["answered"], row["reported"] - old["reported"]
    handler_ms = (row["took_s"] - old["took_s"]) / answered * 1000 if answered > 0 else 0.0
    whole_ms = (row["whole_s"] - old["whole_s"]) / reported * 1000 if reported > 0 else 0.0
    return {
        "type": type_, "workers": row["workers"], "waiting": row["waiting"], "inflight": row["inflight"],
        "received_per_s": round((row["received"] - old["received"]) / seconds, 3),
        "answered_per_s": round(answered / seconds, 3),
        "handler_ms": round(handler_ms, 3), "whole_ms": round(whole_ms, 3),
    }  # fmt: skip


def _rate_cells(rates: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(rates[name]) for name in ("workers", "waiting", "inflight"))
    per_s = (f"{rates[name]:.1f}" for name in ("received_per_s", "answered_per_s"))
    return (plain(rates["type"]), *counts, *per_s, f"{rates['handler_ms']:.2f}", f"{rates['whole_ms']:.2f}")


def _show_servers(found: Status) -> None:
    if not found["servers"]:
        return
    out("")
    tables.show(
        [
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
        ],
        SERVERS,
    )


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
