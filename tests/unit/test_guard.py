"""The guard of the tests' own rules: each breach is named with its line, and all else is let through."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import guard

UNIT = "class Case:\n    def __init__(self):\n        self._owed = {}\n"


def breaches(root: Path, name: str, text: str) -> list[str]:
    """Put one file of tests beside one unit, bester.broker.core.cases; return the guard's breaches."""
    unit = root / "broker/bester/broker/core/cases.py"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)
    file = root / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return guard.check(root)


@pytest.mark.parametrize(
    "text",
    [
        "router._exchange.boxes\n",
        "def check(self):\n    assert self._owed\n",  # no method, even with an argument of that name
        "patch.setattr(Case, 'find', lambda self: self._owed)\n",
        "patch.setattr(case, '_owed', 1)\n",
        "getattr(case, '_owed')\n",
        "from bester.broker.core.cases import _owed\n",
        "vars(case)\n",
        "case.__dict__\n",
        "class Test:\n    def test(self):\n        self.case._owed\n",
    ],
)
def test_private_state_of_another_unit_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    (breach,) = breaches(tmp_path, "tests/unit/test_core_other.py", text)
    line = text.count("\n")  # the last
    assert breach.startswith(f"tests/unit/test_core_other.py:{line}: ")
    assert "is private to another unit" in breach


@pytest.mark.parametrize(
    "text",
    [
        "class Stand:\n    def __init__(self):\n        self._keys = 1\nStand()._keys\n",
        "class Stand:\n    def act(self):\n        return [lambda: self._keys]\n",
        "row._replace(a=1)._asdict()\n",
        "os._exit(0)\n",
        "object.__new__(Stand)\n",
    ],
)
def test_own_and_language_names_are_let_through(tmp_path: Path, text: str) -> None:
    assert breaches(tmp_path, "tests/unit/test_core_other.py", text) == []


@pytest.mark.parametrize("name", ["test_core_cases", "test_core_cases_races"])
def test_a_units_own_file_may_look_inside(tmp_path: Path, name: str) -> None:
    assert breaches(tmp_path, f"tests/unit/{name}.py", "assert not case._owed\n") == []


def test_a_units_own_file_may_not_look_inside_another(tmp_path: Path) -> None:
    assert len(breaches(tmp_path, "tests/unit/test_core_cases.py", "assert not case._owed and router._peers\n")) == 1


@pytest.mark.parametrize(("lines", "long"), [(guard.MAX_LINES, False), (guard.MAX_LINES + 1, True)])
def test_a_file_that_is_too_long_is_named_with_its_length(tmp_path: Path, lines: int, long: bool) -> None:
    found = breaches(tmp_path, "tests/unit/test_core_other.py", "1\n" * lines)
    assert found == [f"tests/unit/test_core_other.py: {lines} lines, at most 600 are allowed: split it by topic"][:long]


def test_the_tests_of_this_project_keep_both_rules() -> None:
    assert guard.check() == []
