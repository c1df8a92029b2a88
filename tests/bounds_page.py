"""The page of bounds, made from the code that holds them: `python -m tests.bounds_page` writes docs/bounds.md anew."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

from bester.bridge.limits import ALSO_COUNTED
from bester.bridge.limits import COUNTED as BRIDGE_COUNTED
from bester.bridge.limits import Limits as BridgeLimits
from bester.broker.core.settings import COUNTED as BROKER_COUNTED
from bester.broker.core.settings import Limits as BrokerLimits
from bester.broker.store_requests import Bounds

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bounds.md"
KIB, MIB = 1024, 1024 * 1024
BEGIN = """# Bounds

Everything that a party can make Bester keep, or do in one turn, has a bound. Those of bridge, broker and store are
listed here with their reasons and with what happens at each. `.venv/bin/python -m tests.bounds_page` writes this page
from the code, and a test compares the two. Others stand beside what they bound: one message of the
[native](native-protocol.md#limits) or the [fabric protocol](fabric-protocol.md#rules), the schemas of a handler's
[contracts](fabric-protocol.md#contracts), [password checks](configuration.md#notes) (`bester_logins_total` counts their
refusals), and the [operator's page](operating.md#page-metrics-api).

At a bound one of three things happens. **Waiting** comes first: a connection above its share is not read from, so
that TCP tells its program to slow down. A **refusal** is a report with a temporary reason (`overloaded`,
`mailbox-full`, `storage-full`), of what cannot be held. A **cut** ends a connection that takes nothing, or never
finishes what it began.

Of what several senders share, a sender (a user with all connections, or a native server's host) gets no more than
what is left by all: one alone half, two a third each, and so on. A sender that has little is served in any case.

Refusals, drops and cuts are counted from the start of the process on. The counter of a bridge's bound stands in the
last column: it is among the figures of the bridge in `bester status --json`, and the metric
`bester_bridge_bound_reached_total{bridge,bound}`, or `bester_bridge_FIGURE{bridge}` where the figure has another name.
The bounds of broker and store with `reached` there are in the table `reached` of the
status, and are the metric `bester_bound_reached_total{bound}`. `bester status` names those that are not 0. Messages
that a broker refuses are also counted by type and code. The other bounds make somebody wait, or are times after which
the broker tries something else.

"""
PARTS: tuple[tuple[str, str, type[Any], Path, str], ...] = (
    ("The bridge", "Sizes in bytes, times in seconds; `bridge/bester/bridge/limits.py`.", BridgeLimits,
     ROOT / "bridge/bester/bridge/limits.py", "Limits"),
    ("The broker", "Times in seconds; `broker/bester/broker/core/settings.py`.", BrokerLimits,
     ROOT / "broker/bester/broker/core/settings.py", "Limits"),
    ("The store", "Set under `[store]`, see the [configuration](configuration.md).", Bounds,
     ROOT / "broker/bester/broker/store_requests.py", "Bounds"),
)  # fmt: skip


def page() -> str:
    """Return the whole page."""
    parts = [BEGIN]
    for title, about, limits, source, name in PARTS:
        parts += [
            f"## {title}\n\n{about}\n\n| bound | value | reason, and what happens | counted |\n|---|---|---|---|\n"
        ]
        texts, values = texts_of(source, name), limits()
        fields = getattr(limits, "_fields", None) or list(limits.__dataclass_fields__)
        for field in fields:
            row = (f"`{field}`", shown(getattr(values, field)), texts.get(field, ""), counter(limits, field))
            parts += [f"| {' | '.join(row)} |\n"]
        parts += ["\n"]
    return "".join(parts).rstrip() + "\n"


def counter(limits: type[Any], field: str) -> str:
    """Return the figure that counts what happened at a bound; empty where nothing is refused, dropped or cut, or the
    figures of message types count it by the code of the failure."""
    if limits is BridgeLimits:
        name = f"reached_{field}" if field in BRIDGE_COUNTED else ALSO_COUNTED.get(field)
        return "" if name is None else f"`{name}`"
    return "reached" if field in BROKER_COUNTED else ""


def texts_of(source: Path, name: str) -> dict[str, str]:
    """Return the texts behind the fields of a class. A field without a text shares that of the next one that has it."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    texts: dict[str, str] = {}
    waiting: list[str] = []
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and waiting:
            text = " ".join(textwrap.dedent(str(node.value.value)).split()).replace("|", "\\|")
            texts |= dict.fromkeys(waiting, text)
            waiting = []
    return texts


def shown(value: Any) -> str:
    """Return a value as a person writes it."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= KIB and value % KIB == 0:
        exact = f"{value:,}"
        return f"{exact} ({value // MIB} Mi)" if value % MIB == 0 else f"{exact} ({value // KIB} Ki)"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
