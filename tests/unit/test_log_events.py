"""`docs/log-events.md` has a row for each event that the code logs, and for no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from bester.broker.core.effects import NoticeEvent

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "log-events.md"
PROGRAMS = ("broker", "bridge", "handlers", "cli")
"""Programs with a log of their own; a client is a library, and its program decides about the log."""
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
PASSES_ON = {
    ("broker/bester/broker/logs.py", "bare_facts"),
    ("broker/bester/broker/server.py", "_write"),  # the core's, which NoticeEvent lists
    ("bridge/bester/bridge/children/output.py", "_log_record"),  # a child's, which has logged it by the same code
    ("cli/bester/cli/serve.py", "_print_note"),
    ("handlers/bester/handlers/runner.py", "_uncaught"),
}
"""Functions that log an event that another function names: (file, name)."""
NAMED = {"notice", "stock-handlers-off", "uncaught", "uncaught-in-thread"}
"""Events that are given to `_print_note` and `_uncaught`."""


def calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Yield each call, with the name of the function around it."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call):
            yield inner, node
        yield from calls(node, inner)


@cache
def sources() -> dict[str, list[tuple[str, ast.Call]]]:
    """Return the calls of each module, by the module's path."""
    paths = [path for program in PROGRAMS for path in sorted((ROOT / program / "bester").rglob("*.py"))]
    return {
        path.relative_to(ROOT).as_posix(): list(calls(ast.parse(path.read_text(encoding="utf-8"))))
        for path in paths
        if "templates" not in path.parts
    }


@pytest.fixture(scope="module")
def logged() -> set[str]:
    """The events in the code."""
    found: set[str] = set(get_args(NoticeEvent)) | NAMED
    for file, made in sources().items():
        for function, call in made:
            name = ast.unparse(call.func).rpartition(".")[2]
            if name not in ("facts", "bare_facts") or (file, function) in PASSES_ON:
                continue
            (event, *_) = call.args
            assert isinstance(event, ast.Constant) and isinstance(event.value, str), (
                f"{file}:{event.lineno}: the event is no plain text"
            )
            found.add(event.value)
    return found


def test_each_event_has_a_row_with_what_to_do(logged: set[str]) -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for name, *_ in rows]
    assert sorted(names) == sorted(set(names)), "an event has two rows"
    assert logged - set(names) == set(), "events without a row in docs/log-events.md"
    assert set(names) - logged == set(), "rows of events that nothing logs"


def test_each_record_names_its_event() -> None:
    bare = [
        f"{file}:{call.lineno}"
        for file, made in sources().items()
        for _, call in made
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LEVELS
        and re.fullmatch(r"_?log|logging\.getLogger\(.*\)", ast.unparse(call.func.value))
        and "extra" not in {keyword.arg for keyword in call.keywords}
    ]
    assert bare == [], "give it extra=facts(EVENT, …)"
