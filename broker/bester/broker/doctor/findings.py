"""Findings: the values that checks return, and words that checks share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
"""Levels, the worst last."""
F = TypeVar("F")


class Finding(NamedTuple):
    """Finding of the check `check`: the cause in `text`, and the `remedy`, empty where all is well."""

    check: str
    level: Level
    text: str
    remedy: str = ""

    def as_map(self) -> dict[str, str]:
        """Return the finding as a map of texts."""
        return dict(self._asdict())


Found = tuple[Level, str, str]
"""Level, text and remedy of a finding."""


class Check(NamedTuple, Generic[F]):
    """A check: `find` yields the findings on facts. `cause` and `remedy` are for the documentation, `alert` is the
    alert of deploy/alerts.yml about the same fault, empty where there is none."""

    name: str
    cause: str
    remedy: str
    alert: str
    find: Callable[[F], Iterator[Found]]


def found(checks: Iterable[Check[F]], facts: F) -> list[Finding]:
    """Return the findings of all checks, in the order of the checks."""
    return [Finding(check.name, *each) for check in checks for each in check.find(facts)]


def rank(finding: Finding) -> int:
    """Return how bad a finding is: 0 for ok."""
    return LEVELS.index(finding.level)


def merged(first: list[Finding], second: list[Finding]) -> list[Finding]:
    """Return findings of two sources: of a check that both have, those of the source that found worse, and those of the
    first where both found the same."""
    worst: list[dict[str, int]] = [{}, {}]
    for table, findings in zip(worst, (first, second), strict=True):
        for each in findings:
            table[each.check] = max(table.get(each.check, 0), rank(each))
    shown = [each for each in first if worst[0][each.check] >= worst[1].get(each.check, 0)]
    return shown + [each for each in second if worst[1][each.check] > worst[0].get(each.check, -1)]


def span(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if round(abs(seconds) / length, 1) >= 2:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, length in (("GiB", 1024.0**3), ("MiB", 1024.0**2), ("KiB", 1024.0)):
        if round(count / length, 1) >= 1:
            return f"{count / length:.1f} {unit}"
    return f"{count:.0f} bytes"


def several(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun; `plural` is for a noun that does not end in -s then."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def certificate(end_s: float, now_s: float, name: str) -> Found:
    """Return the finding on a certificate that ends at `end_s`, both in seconds since 1970."""
    left_s = end_s - now_s
    until = f"{datetime.fromtimestamp(min(max(end_s, 0.0), LAST_S), UTC):%Y-%m-%d %H:%M} UTC"
    remedy = "renew it: docs/tls.md has the commands, and a new file is read within a minute, without a restart"
    if left_s <= 0:
        return "error", f"{name} has expired on {until}", remedy
    if left_s < CERTIFICATE_S:
        return "warning", f"{name} expires in {span(left_s)}, on {until}", remedy
    return "ok", f"{name} is valid for {span(left_s)}", ""


def disk(room_bytes: float, where: str) -> Found:
    """Return the finding on the room of the store's disk."""
    if room_bytes < ROOM_BYTES:
        return (
            "error",
            f"{where} has {size(room_bytes)} left",
            f"make room, {size(ROOM_BYTES)} or more: without it messages are refused as storage-full",
        )
    return "ok", f"{where} has {size(room_bytes)} left", ""


LAST_S = 253402300799.0
"""Latest time that has a date of four digits."""
CERTIFICATE_S = 14 * 86400.0
"""Time before the end of a certificate from which a warning is given: programs that renew do so a month before."""
ROOM_BYTES = 256 * 1024 * 1024
"""Room on a disk below which the disk is nearly full: minutes of messages, and a SQLite log besides."""


def text_of(value: Any) -> str:
    """Return a text of a stranger in one line, quoted where it holds anything but printable characters."""
    text = str(value)
    return text if text.isprintable() else ascii(text)
