"""Handler programs under test: the one printed in the protocol's page, and copies with one fault each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bester.conform.cases import Case, load
from bester.conform.handler_side import conform
from bester.conform.result import Result

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fabric-protocol.md"
WITHIN_S = 20.0
"""Deadline of each wait in a case: a machine under load may take long; on a fast machine each wait is short."""
JOBS = 24
"""Programs at once: most wait for a heartbeat, and a whole run is hardly longer than the longest case."""
CAUGHT_WITHIN_S = 3.0
"""Deadline of waits for an event that never comes."""


def published() -> str:
    """Return the program printed in the page."""
    printed = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert printed is not None
    return printed[1]


# Faults: the number of the case that finds the fault, the text of the program, and its faulty replacement.
BROKEN: dict[str, tuple[int, tuple[tuple[str, str], ...]]] = {
    "no heartbeat": (601, (("packb(said or [[3]])", "packb(said)) if said else (None"),)),
    "answers after reconnect with old tokens": (
        506,
        (
            ("stop = []\n", "stop, late = [], []\n"),
            ("    said = []\n", "    said, late = late, []\n"),
            ("said.append(reply(", "late.append(reply("),
        ),
    ),
    "ignores attachments": (303, (("attached[body - 1] if isinstance(body, int) else body", "body"),)),
    "breaks on trailing fields": (207, (("user, meta, *_]:", "user, meta]:"),)),
    "answers ERROR with ERROR": (501, (('print("refused:", code)', 'said.append([5, "malformed", "what?"])'),)),
    "loses a batch at GOODBYE": (702, (("user, meta, *_]:", "user, meta, *_] if not left:"),)),
    "truncates large integers": (401, (("[11, token, 0,", "[11, token & 0xFFFFFFFF, 0,"),)),
    "ends at what it cannot read": (508, (("Exception:\n        return []", "Exception:\n        raise"),)),
    "says nothing of a failure": (411, (("        return [11, token, 1, [], repr(error)]", "        return [3]"),)),
    "goes with the broker": (605, (("        socket, quiet = connect(), 0", "        over = True"),)),
}  # fmt: skip


def broken(how: str) -> str:
    """Return the program with this fault."""
    program = published()
    for old, new in BROKEN[how][1]:
        assert old in program, f"the page's program has no {old!r} any more"
        program = program.replace(old, new)
    return program


async def tried(
    argv: Sequence[str], cases: Sequence[Case] | None = None, within_s: float = WITHIN_S, curve: bool = False
) -> list[Result]:
    """Play all cases, or these, and return the results."""
    chosen = load("handler") if cases is None else cases
    return await conform(argv, chosen, lambda result: None, within_s=within_s, curve=curve, jobs=JOBS)


def failures(results: Sequence[Result]) -> list[str]:
    """Return a line for each case that failed."""
    return [f"{r.case.number} {r.case.title}: {r.detail} {r.output}" for r in results if r.state == "fail"]
