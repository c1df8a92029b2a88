"""Compare a value with a pattern: JSON in which some strings stand for kinds of values. Pure.

`"<any>"` is anything, `"<text>"` a string that is not empty, `"<int>"` an integer, `"<list>"`, `"<map>"`; `"<absent>"`
as a value in an object requires that the key is absent; a text that begins with `<has>` is somewhere in the string. An
object matches where each of the pattern's keys does: further keys are allowed, as later versions add them. Arrays match
whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KINDS: dict[str, Callable[[Any], bool]] = {
    "<any>": lambda value: True,
    "<text>": lambda value: isinstance(value, str) and value != "",
    "<int>": lambda value: type(value) is int,
    "<list>": lambda value: isinstance(value, list),
    "<map>": lambda value: isinstance(value, dict),
}
_MISSING = object()
SHOWN = 160
"""Characters of a value that are shown in a report."""


def fault(pattern: Any, value: Any, where: str = "") -> str | None:
    """Return the fault of a value, as `path: sentence`; None where the value matches."""
    if isinstance(pattern, dict) and isinstance(value, dict):
        for key, wanted in pattern.items():
            path, got = f"{where}.{key}" if where else key, value.get(key, _MISSING)
            if wanted == "<absent>":
                wrong = None if got is _MISSING else f"{path}: should not be there"
            elif got is _MISSING:
                wrong = f"{path}: is missing"
            else:
                wrong = fault(wanted, got, path)
            if wrong is not None:
                return wrong
        return None
    if isinstance(pattern, list) and isinstance(value, list):
        if len(pattern) != len(value):
            return f"{where or 'it'}: {len(value)} elements, expected {len(pattern)}"
        wrongs = (fault(one, other, f"{where}[{n}]") for n, (one, other) in enumerate(zip(pattern, value, strict=True)))
        return next((wrong for wrong in wrongs if wrong is not None), None)
    return None if _fits(pattern, value) else f"{where or 'it'}: {shown(value)}, expected {shown(pattern)}"


def _fits(pattern: Any, value: Any) -> bool:
    if isinstance(pattern, str):
        if pattern in KINDS:
            return KINDS[pattern](value)
        if pattern.startswith("<has>"):
            return isinstance(value, str) and pattern.removeprefix("<has>") in value
    return type(pattern) is type(value) and bool(pattern == value)


def shown(value: Any) -> str:
    """Return a value as a report shows it: short, on one line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"


def packed(value: Any) -> str:
    """Return what to add to the fault of a value that should be, or hold, texts: the remedy where some are bytes."""
    texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return "; pack texts as str, not as bytes" if any(isinstance(text, bytes) for text in texts) else ""
