"""`bester top`: rates and mean times by type, drawn again and again, over restarts of the server too."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bester.broker.streams import plain
from bester.cli import tables
from bester.cli.options import Seconds, config_option
from bester.cli.output import out
from bester.cli.status import SERVERS, Status, ask_status, head_lines, server_rows

RATES = ("TYPE", "HANDLERS", "WAIT", "IN FLIGHT", "RECEIVED/S", "ANSWERED/S", "HANDLER MS", "WHOLE MS")
LONGEST_S = 120.0
"""Time to wait for an answer; longer than any question takes, with its refusal."""


@click.command()
@config_option
@click.option("--once", is_flag=True, help="Print one table and end.")
@click.option(
    "--every", default=1.0, show_default=True, type=Seconds(0.2, 3600.0), metavar="SECONDS",
    help="Seconds between two looks.",
)  # fmt: skip
@click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
def top(config_path: Path | None, once: bool, every: float, json_lines: bool) -> None:
    """Show rates by message type, again and again until q or Ctrl-C."""
    before = ask_status(config_path)
    if not (once or json_lines):
        from bester.cli import screen

        if screen.is_possible():
            _draw(config_path, every, before)
            return
    while True:
        time.sleep(every)
        now = ask_status(config_path)
        rows = _rows(now, before)
        if json_lines:
            for row in rows:
                out(json.dumps({"server": now["server"], "up_s": now["up_s"]} | row))
            sys.stdout.flush()
        else:
            for line in head_lines(now):
                out(line)
            tables.show([_cells(row) for row in rows], RATES)
            if now["servers"]:
                out("")
                tables.show(server_rows(now), SERVERS)
        if once:
            return
        before = now


# --- on the whole terminal ---


def _draw(config_path: Path | None, every: float, first: Status) -> None:
    """Draw until a key ends it. A server that is away is asked again and again."""
    from bester.cli import screen

    shown: dict[str, Any] = {"now": first, "before": first, "trouble": ""}

    def lines(height: int) -> list[tuple[str, str]]:
        return frame(shown["now"], shown["before"], shown["trouble"], height)

    with screen.drawn(lines) as drawn:
        while not drawn.quits(every):
            answers: queue.SimpleQueue[Status | str] = queue.SimpleQueue()
            threading.Thread(target=_ask, args=(config_path, answers), daemon=True).start()
            if drawn.quits(LONGEST_S, lambda: not answers.empty()):  # noqa: B023 (called before the next round)
                return
            found = answers.get() if not answers.empty() else "no answer"
            if isinstance(found, str):
                shown["trouble"] = found
            else:
                shown.update(now=found, before=shown["now"], trouble="")
            drawn.show()


def _ask(config_path: Path | None, answers: queue.SimpleQueue[Status | str]) -> None:
    """Put the status into the queue, or the reason why there is none."""
    from bester.broker.wire.codes import BesterError

    try:
        answers.put(ask_status(config_path))
    except BesterError as error:
        answers.put(error.text)
    except OSError as error:
        answers.put(str(error))


def frame(now: Status, before: Status, trouble: str, height: int) -> list[tuple[str, str]]:
    """Return the lines of a screen, each with its style; types that have no room are counted."""
    head = [(line, "") for line in head_lines(now)]
    servers = [("", ""), *_table(server_rows(now), SERVERS)] if now["servers"] else []
    last = (plain(trouble), "bold red") if trouble else ("q quits", "dim")
    rows = [_cells(row) for row in _rows(now, before)]
    room = height - len(head) - len(servers) - 3  # a blank line, a header, the last line
    shown = len(rows) if len(rows) <= room else max(0, room - 1)
    more = [(f"and {len(rows) - shown} more types", "dim")] if shown < len(rows) else []
    lines = [*head, ("", ""), *_table(rows[:shown], RATES), *more, *servers]
    return [*lines[: max(0, height - 1)], last]


def _table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> list[tuple[str, str]]:
    title, *lines = tables.aligned([header, *rows])
    return [(title, "bold"), *((line, "") for line in lines)]


# --- figures ---


def _rows(now: Status, before: Status) -> list[dict[str, Any]]:
    rows = [_rates(type_, row, before["types"].get(type_), now, before) for type_, row in now["types"].items()]
    return sorted(rows, key=lambda row: -float(row["received_per_s"]))


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


def _cells(rates: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(rates[name]) for name in ("workers", "waiting", "inflight"))
    per_s = (f"{rates[name]:.1f}" for name in ("received_per_s", "answered_per_s"))
    return (plain(rates["type"]), *counts, *per_s, f"{rates['handler_ms']:.2f}", f"{rates['whole_ms']:.2f}")
