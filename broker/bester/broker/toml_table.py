"""Table of a TOML file, read key by key; every mistake becomes one line that names file, line, key and remedy.

This module does not know the meaning of the keys, and never guesses: a value of the wrong type and an unknown key are
errors.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from bester.broker.wire.codes import ConfigError

T = TypeVar("T")
NO_HINTS: Mapping[str, str] = MappingProxyType({})

FILE_LIMIT_BYTES = 1024 * 1024
"""Longest configuration; a log or a core dump given by mistake is not read whole."""

NEAR = 0.6
"""Similarity of two names, from 0 to 1, that suggests a slip: `tpc4` for `tcp4`, not `retries` for `workers`."""

_HEADER = re.compile(r"^\s*\[+\s*(.+?)\s*\]+\s*(#.*)?$")
_ASSIGNED = re.compile(r"^\s*([^#=\[]+?)\s*=\s*(\{)?")


class Source:
    """Text of a configuration file, and the lines of its keys."""

    def __init__(self, path: Path, option: str = "-c") -> None:
        """Read the file, which an option of the command line names. Raises ConfigError if it cannot be read."""
        self.path = path
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_LIMIT_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{path}: cannot read it: {error.strerror}; name another file with {option}") from None
        if len(raw) > FILE_LIMIT_BYTES:
            raise ConfigError(f"{path}: longer than {FILE_LIMIT_BYTES} bytes; this is no configuration")
        try:
            self.text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None

    def tables(self) -> dict[str, Any]:
        """Parse the text as TOML. Raises ConfigError."""
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            hint = "strings stand in quotes, each key once"
            raise ConfigError(f"{self.path}: not TOML: {one_line(str(error))}; {hint}") from None
        except (ValueError, RecursionError) as error:
            what = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
            raise ConfigError(f"{self.path}: {what}; this is no configuration") from None

    def line(self, section: str, key: str | None) -> int | None:
        """Return the line (from 1) of a key, or of the section if `key` is None; None if the line is not found. Of what
        stands in an inline table that is the line of the table."""
        wanted = ".".join(part for part in (section, key) if part)
        inside, around = "", None
        for number, text in enumerate(self.text.split("\n"), 1):
            header, assigned = _HEADER.match(text), _ASSIGNED.match(text)
            if header:
                found = inside = _name(header[1])
            elif assigned:
                found = ".".join(part for part in (inside, _name(assigned[1])) if part)
                if assigned[2] and around is None and wanted.startswith(f"{found}."):
                    around = number
            else:
                continue
            if found == wanted or found.startswith(f"{wanted}."):
                return number
        return around

    def fail(self, section: str, key: str | None, problem: str) -> NoReturn:
        """Raise ConfigError for a key, or for the section if `key` is None."""
        line = self.line(section, key)
        position = f"{self.path}:{line}" if line else str(self.path)
        where = " ".join(part for part in (f"[{section}]" if section else "", key or "") if part)
        raise ConfigError(one_line(f"{position}: {where}: {problem}"))


def _name(written: str) -> str:
    """Return the name of a key or table as it is written, with its quotes and blanks, with dots in between."""
    try:
        value: Any = tomllib.loads(f"{written} = 0")
    except tomllib.TOMLDecodeError:  # a line within a text of several lines
        return ""
    parts = []
    while isinstance(value, dict) and len(value) == 1:  # any text may look like a table
        ((part, value),) = value.items()
        parts.append(part)
    return ".".join(parts)


def one_line(text: str) -> str:
    """Return the text with all control characters escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint: the known names nearest to `name`, or all known names if none is near."""
    names = sorted(known)
    if not names:
        return "none is known here"
    word = name.lower()
    near = {each: difflib.SequenceMatcher(None, word, each).ratio() for each in names}
    best = max(near.values())
    if best >= NEAR:
        return f"did you mean {' or '.join(each for each in names if best - near[each] < 0.01)}?"
    return f"known are {', '.join(names)}"


class Table:
    """Keys of one section. Every method raises ConfigError for an unusable value."""

    def __init__(
        self, source: Source, section: str, values: object, known: Iterable[str], hints: Mapping[str, str] = NO_HINTS
    ) -> None:
        """`hints` are the remedies for unknown keys that users expect."""
        self._source = source
        self.section = section
        if not isinstance(values, dict):
            outer, _, name = section.rpartition(".")
            source.fail(outer, name, f"is a table; write [{section}] and its keys below")
        self._values: dict[str, Any] = values
        known = tuple(known)
        for key in values:
            if key not in known:
                kind = "key" if section else "section"
                self.fail(key, f"unknown {kind}; {hints.get(key.lower()) or nearest(key, known)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def fail(self, key: str | None, problem: str) -> NoReturn:
        """Raise ConfigError for one key, or for the section if `key` is None."""
        self._source.fail(self.section, key, problem)

    def checked(self, key: str, check: Callable[[Any], T], value: object) -> T:
        """Return `check(value)`; the text of its ValueError becomes the error."""
        try:
            return check(value)
        except ValueError as error:
            self.fail(key, str(error))

    def names(self) -> list[str]:
        """Return the keys in the order of the file."""
        return list(self._values)

    def raw(self, key: str) -> object:
        """Return the value as parsed, or None for a missing key."""
        return self._values.get(key)

    def text(self, key: str) -> str | None:
        """Return a string that is not empty, or None for a missing key."""
        if key not in self._values:
            return None
        value = self._values[key]
        if not isinstance(value, str):
            self.fail(key, f'is text; write {key} = "…"')
        if not value:
            self.fail(key, "is empty; leave the key out or give it a value")
        if "\0" in value:
            self.fail(key, "holds a zero byte; remove it")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings that are not empty, or None for a missing key."""
        if key not in self._values:
            return None
        value = self._values[key]
        if not isinstance(value, list) or not all(
            isinstance(each, str) and each and "\0" not in each for each in value
        ):
            self.fail(key, f'is a list of texts; write {key} = ["…"]')
        return tuple(value)

    def number(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`."""
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(key, f"is a whole number from {low} to {high}")
        return value

    def decimal(self, key: str, default: float, low: float, high: float) -> float:
        """Return a number from `low` to `high`, whole or not, without TOML's nan and inf."""
        value = self._values.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            self.fail(key, f"is a number from {low:g} to {high:.0f}")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return a boolean, or `default` for a missing key."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, "is true or false, without quotes")
        return value

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """Return one of `choices`, or `default` for a missing key."""
        value = self.text(key) or default
        if value not in choices:
            self.fail(key, f"{value!r} is not one of {', '.join(choices)}")
        return value
