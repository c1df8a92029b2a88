"""Differences between two answers of handlers to the same message: their status, commands, targets and bodies. Pure.

Bodies are compared as JSON values, so blanks and the order of keys count for nothing; nor does the order of a command's
targets. Ids and times that a handler makes anew for each message are told by their form, counted, and passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from bester.broker.core.commands import fault
from bester.broker.wire.messages import DONE, REFUSED, Command, Reply, reply_code
from bester.broker.wire.notes import safe_note

MAX_DIFFERENCES = 50
"""Differences listed for one message: more are no easier to read."""
MAX_ALIGNED = 200
"""Commands that are aligned; of longer replies each command is compared with that of the same number."""
MAX_SHOWN = 200
"""Characters of a value in a difference."""
MAX_DIGITS = 20
"""Characters of the longest integer that may be a time."""
DAY_S = 86_400.0
"""Seconds between a message's time and a number in it, up to which the number counts as a time."""
LEAST_TIME = 1e9
"""Seconds, of the year 2001: no smaller number is a time, whatever a wrong clock says."""
UNITS = (1.0, 1e3, 1e6, 1e9)
"""Times are numbers of seconds, or of thousandths, millionths or billionths of them."""

_VARIES = re.compile(
    r"(?P<uuid>[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})"
    r"|(?P<time>\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)"
    r"|(?P<ulid>(?<![0-9A-Za-z])[0-7][0-9A-HJKMNP-TV-Z]{25}(?![0-9A-Za-z]))"
    r"|(?P<hex>(?<![0-9A-Za-z])(?=[a-f]*\d)[0-9a-f]{16,}(?![0-9A-Za-z]))"
    r"|(?P<token>(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[A-Za-z0-9_-]{20,128}(?![\w-]))"
)
"""Parts of texts that handlers make at random or from the clock."""
_PLAIN = re.compile(r"[^\W\d]\w*")
MISSING: Any = object()
"""Marks a value that one of the two answers does not have."""


class Difference(NamedTuple):
    """A difference at `where`; `before` and `after` are values as short texts, None where there is no value."""

    where: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.where}: {self.after} is new"
        if self.after is None:
            return f"{self.where}: {self.before} is missing"
        return f"{self.where}: {self.before} became {self.after}"


class Comparison(NamedTuple):
    """Result of a comparison: the differences, MAX_DIFFERENCES at most, and the number of values that differ but look
    like ids or times."""

    differences: list[Difference]
    passed_over: int


class Answered(NamedTuple):
    """Answer of a handler to a message, given `at_s` seconds after 1970."""

    reply: Reply
    at_s: float


def compare(
    before: Answered,
    after: Answered,
    *,
    ignored: Sequence[str] = (),
    strict: bool = False,
    request: bytes | None = None,
) -> Comparison:
    """Compare two answers to one message. `ignored` are places, such as `body.id`, whose values are not compared;
    `strict`: ids and times are compared as well; `request`: the body of the message, which is known to be JSON."""
    if before.reply[1:] == after.reply[1:]:
        return Comparison([], 0)
    run = _Run(before.at_s, after.at_s, frozenset(ignored), strict)
    run.differences += _verdicts(before.reply, after.reply, request)
    old, new = _commands(before.reply, request), _commands(after.reply, request)
    for number, one, other in _aligned(old, new):
        if len(run.differences) >= MAX_DIFFERENCES:
            break
        run.commands(number, one, other)
    return Comparison(run.differences[:MAX_DIFFERENCES], run.passed_over)


def _outcome(reply: Reply, request: bytes | None) -> str:
    """Return the outcome of an answer in the words of a report, with the note of a refusal."""
    if reply.status == DONE:
        wrong = fault(reply.commands, request)
        return "done" if wrong is None else f"{wrong[0]}: {safe_note(wrong[1])}"
    code = reply_code(reply.status, reply.code)
    return f"{code}: {safe_note(reply.note)}" if reply.status == REFUSED and reply.note else code


def _verdicts(before: Reply, after: Reply, request: bytes | None) -> list[Difference]:
    old, new = _outcome(before, request), _outcome(after, request)
    return [] if old == new else [Difference("outcome", old, new)]


def _commands(reply: Reply, request: bytes | None) -> list[Command]:
    """Return the commands that would be carried out: none of a failure, and none of a reply that is not sound."""
    return reply.commands if reply.status == DONE and fault(reply.commands, request) is None else []


def _aligned(before: list[Command], after: list[Command]) -> Iterator[tuple[int, Command | None, Command | None]]:
    """Yield the commands that belong together, with a number from 1; None stands for a missing one."""
    if len(before) == len(after) or max(len(before), len(after)) > MAX_ALIGNED:
        for number in range(max(len(before), len(after))):
            yield number + 1, _at(before, number), _at(after, number)
        return
    one_keys, other_keys = (
        [(each.command, each.type, tuple(sorted(each.targets))) for each in part] for part in (before, after)
    )
    for _, old, old_end, new, new_end in SequenceMatcher(None, one_keys, other_keys, autojunk=False).get_opcodes():
        for number in range(max(old_end - old, new_end - new)):
            one = before[old + number] if old + number < old_end else None
            other = after[new + number] if new + number < new_end else None
            yield (new if one is None else old) + number + 1, one, other


def _at(commands: list[Command], number: int) -> Command | None:
    return commands[number] if number < len(commands) else None


class _Run:
    """Comparison of two values; `differences` and `passed_over` grow with it."""

    def __init__(self, before_s: float, after_s: float, ignored: frozenset[str], strict: bool) -> None:
        self.differences: list[Difference] = []
        self.passed_over = 0
        self._before_s = before_s
        self._after_s = after_s
        self._ignored = ignored
        self._strict = strict

    def commands(self, number: int, before: Command | None, after: Command | None) -> None:
        """Compare two commands."""
        one = before or after
        assert one is not None
        where = f"command {number} {one.command}"
        if before is None or after is None:
            self._add(where, _shown_command(before), _shown_command(after))
            return
        if before.command != after.command:
            self._add(f"command {number}", _shown_command(before), _shown_command(after))
            return
        if before.type != after.type:
            self._add(f"{where}: as_type", _shown(before.type), _shown(after.type))
        old, new = sorted(before.targets), sorted(after.targets)
        if old != new:
            self._add(f"{where}: targets", _shown(old), _shown(new))
        if before.body != after.body:
            self._values(where, "body", _value(before.body), _value(after.body))

    def _add(self, where: str, before: str | None, after: str | None) -> None:
        self.differences.append(Difference(where, before, after))

    def _values(self, where: str, path: str, before: Any, after: Any) -> None:
        """Compare two values of JSON; they are nested at most as deep as a body may be."""
        if path in self._ignored or len(self.differences) >= MAX_DIFFERENCES:
            return
        if type(before) is dict and type(after) is dict:
            for key in dict.fromkeys((*before, *after)):
                step = f".{key}" if _PLAIN.fullmatch(key) else f"[{json.dumps(key, ensure_ascii=False)}]"
                self._values(where, path + step, before.get(key, MISSING), after.get(key, MISSING))
        elif type(before) is list and type(after) is list:
            for number in range(max(len(before), len(after))):
                old = before[number] if number < len(before) else MISSING
                new = after[number] if number < len(after) else MISSING
                self._values(where, f"{path}[{number}]", old, new)
        elif before is MISSING or after is MISSING or not _is_equal(before, after):
            if not self._strict and self._varies(before, after):
                self.passed_over += 1
            else:
                self._add(f"{where}: {safe_note(path)}", _shown(before), _shown(after))

    def _varies(self, before: Any, after: Any) -> bool:
        """Return whether two values look like ids or times of the same kind."""
        if type(before) is str and type(after) is str:
            old, found = _VARIES.subn(_kind, before)
            return found > 0 and old == _VARIES.sub(_kind, after)
        if _is_number(before) and _is_number(after) and min(before, after) >= LEAST_TIME:
            return any(
                abs(before / unit - self._before_s) < DAY_S and abs(after / unit - self._after_s) < DAY_S
                for unit in UNITS
            )
        return False


def _value(body: bytes) -> Any:
    """Return the value of a body that was found to be JSON."""
    return json.loads(body, parse_int=_integer)


def _integer(text: str) -> Any:
    """Return an integer, exact at any length: Python reads no `int` of thousands of digits, and makes no `float` of
    hundreds."""
    return int(text) if len(text) <= MAX_DIGITS else Decimal(text)


def _kind(found: re.Match[str]) -> str:
    """Return what stands for a part of a text that varies: its kind, and of an id its length."""
    kind = str(found.lastgroup)
    return f"\0{kind}\0" if kind == "time" else f"\0{kind}{len(found[0])}\0"


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def _is_equal(before: Any, after: Any) -> bool:
    """Return whether two values are equal; true is no number in JSON."""
    return bool(before == after) and (type(before) is bool) is (type(after) is bool)


def _shown_command(command: Command | None) -> str | None:
    if command is None:
        return None
    as_type = f" as {command.type}" if command.type else ""
    text = command.body.decode("utf-8", "replace")
    return safe_note(f"{command.command} to {', '.join(command.targets[:10])}{as_type} with {_cut(text)}")


def _shown(value: Any) -> str | None:
    return None if value is MISSING else safe_note(_cut(json.dumps(value, ensure_ascii=False, default=str)))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
