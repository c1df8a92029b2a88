"""Read the cases: TOML files, each with several `[[case]]` tables. Pure, except for reading the files.

A case quotes the sentence of the protocol's page that it tests (`rule`) and lists `steps`; `handler_steps` and
`native_steps` define the verbs of the steps.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDES = ("handler", "native")
SEVERITIES = ("required", "recommended")
Step = Mapping[str, Any]

_TEXTS = ("title", "why", "rule", "seen")
_KEYS = frozenset({"number", "severity", "needs", "start", "users", "steps", *_TEXTS})


class CaseError(ValueError):
    """Raised for a case file that is not well-formed."""


@dataclass(frozen=True, slots=True)
class Case:
    """A case. `rule` is a sentence of the protocol's page, word for word; `seen` describes the expected behaviour.
    `needs` lists prerequisites (such as `chat`); `users` is how many users a native case logs in. `start` of a
    handler case is `welcomed` (any program that has been welcomed), `new` (a program that was just started) or
    `none` (the script starts the program).
    """

    side: str
    number: int
    title: str
    why: str
    rule: str
    seen: str
    severity: str
    needs: frozenset[str]
    start: str
    users: int
    steps: tuple[Step, ...]

    @property
    def required(self) -> bool:
        """Return whether a failure makes the whole run fail."""
        return self.severity == "required"


def one_verb(step: Step, verbs: Collection[str], options: Collection[str]) -> str:
    """Return the verb of a step. Raises ValueError for a step with no verb, with several, or with an unknown key."""
    found = [key for key in step if key in verbs]
    if len(found) != 1 or any(key not in verbs and key not in options for key in step):
        raise ValueError(f"a step has one verb and known options: {dict(step)}")
    return found[0]


def directory(side: str) -> Path:
    """Return the directory of a side's cases: in the installed package, else in the checkout beside the package."""
    here = Path(__file__).parent
    installed = here / "cases" / side
    return installed if installed.is_dir() else here.parents[1] / side


def load(side: str) -> list[Case]:
    """Return all cases of a side, by number. Raises CaseError."""
    found = [case for path in sorted(directory(side).glob("*.toml")) for case in read(path, side)]
    if not found:
        raise CaseError(f"{directory(side)} holds no cases; install Bester again")
    found.sort(key=lambda case: case.number)
    for one, other in itertools.pairwise(found):
        if one.number == other.number:
            raise CaseError(f"two {side} cases have the number {one.number}: {one.title!r} and {other.title!r}")
    return found


def read(path: Path, side: str) -> list[Case]:
    """Return the cases of one file. Raises CaseError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CaseError(f"{path}: {error}") from None
    if set(tables) != {"case"}:
        raise CaseError(f"{path}: a file of cases holds [[case]] tables and nothing else")
    return [_case(table, side, path) for table in tables["case"]]


def _case(table: Mapping[str, Any], side: str, path: Path) -> Case:
    where = f"{path.name}, case {table.get('number', '?')}"
    wrong = sorted(set(table) - _KEYS) + sorted(key for key in _TEXTS if not isinstance(table.get(key), str))
    if wrong:
        raise CaseError(f"{where}: {', '.join(wrong)}: unknown, missing or no text")
    number, severity, steps = table.get("number"), table.get("severity", "required"), table.get("steps")
    if type(number) is not int or number < 1:
        raise CaseError(f"{where}: number is a positive integer")
    if severity not in SEVERITIES:
        raise CaseError(f"{where}: severity is one of {', '.join(SEVERITIES)}")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) and step for step in steps):
        raise CaseError(f"{where}: steps is an array of tables")
    return Case(
        side, number, table["title"], table["why"], " ".join(table["rule"].split()), table["seen"], severity,
        frozenset(table.get("needs", ())), table.get("start", "welcomed"), table.get("users", 1), tuple(steps),
    )  # fmt: skip
