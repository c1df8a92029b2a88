"""The table of all checks, for the documentation."""

from __future__ import annotations

from bester.broker.doctor.live import LIVE
from bester.broker.doctor.local import LOCAL


def rows() -> list[tuple[str, str, str, str]]:
    """Return a row for each check: its name, the cause that it finds, the remedy, and the alert about the same."""
    merged: dict[str, tuple[str, str, str, str]] = {}
    for name, cause, remedy, alert, _ in (*LOCAL, *LIVE):
        if cause or name not in merged:
            merged[name] = (name, cause, remedy, alert)
    return list(merged.values())


def markdown() -> str:
    """Return the rows as a table of Markdown."""
    head = "| check | finds | remedy | alert |\n|---|---|---|---|\n"
    return head + "".join(f"| {name} | {cause} | {remedy} | {alert} |\n" for name, cause, remedy, alert in rows())
