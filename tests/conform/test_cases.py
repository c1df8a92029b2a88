"""The cases are complete, well-formed and true to the pages; the page of cases shows them unchanged."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from bester.conform import handler_steps, native_steps
from bester.conform.cases import SIDES, CaseError, load, read
from bester.conform.table import PAGE, sentences, table, unseen

ROOT = Path(__file__).parents[2]
DOCS = {"handler": ROOT / "docs" / "fabric-protocol.md", "native": ROOT / "docs" / "native-protocol.md"}
LEAST = {"handler": 60, "native": 100}
VERBS = {"handler": handler_steps.verb_of, "native": native_steps.verb_of}


@pytest.mark.parametrize("side", SIDES)
def test_cases_are_complete_and_well_formed(side: str) -> None:
    cases = load(side)
    assert len(cases) >= LEAST[side]
    assert len({case.title for case in cases}) == len(cases)
    for case in cases:
        for step in case.steps:
            VERBS[side](step)


@pytest.mark.parametrize("side", SIDES)
def test_each_case_quotes_a_sentence_of_the_page(side: str) -> None:
    page = " ".join(DOCS[side].read_text().split())
    missing = [f"{case.number}: {case.rule}" for case in load(side) if case.rule not in page]
    assert not missing, f"{DOCS[side].name} does not say this (any more); quote what it says"


@pytest.mark.parametrize("side", SIDES)
def test_each_rule_of_the_page_has_a_number_or_a_reason(side: str) -> None:
    page = DOCS[side].read_text()
    rules = [case.rule for case in load(side)]
    known = unseen(side)
    open_ones = [
        sentence
        for sentence in sentences(page)
        if not any(rule in sentence or sentence in rule for rule in rules)
        and not any(quoted in sentence for quoted in known)
    ]
    assert not open_ones, "give each a case, or a reason in conformance/unseen.toml"
    whole = " ".join(page.split())
    assert not [quoted for quoted in known if quoted not in whole], "the page does not say this any more"


def test_the_page_shows_the_cases() -> None:
    page = (ROOT / "docs" / PAGE).read_text()
    for side in SIDES:
        shown = re.search(rf"<!-- {side}: .*? -->\n(.*?)<!-- end -->", page, re.DOTALL)
        assert shown is not None
        assert shown[1] == table(side), "python -m bester.conform.table docs/conformance-cases.md writes it anew"


def test_installed_wheel_has_the_cases() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for side in SIDES:
        assert build["force-include"][f"conformance/{side}"] == f"bester/conform/cases/{side}"
        assert list((ROOT / "conformance" / side).glob("*.toml"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense", "Expected"),
        ("[other]\nx = 1", "nothing else"),
        ('[[case]]\nnumber = 1\ntitle = "t"\nwhy = "w"\nrule = "r"\nsteps = [{x = 1}]', "seen"),
        ('[[case]]\nnumber = 0\ntitle = "t"\nwhy = "w"\nrule = "r"\nseen = "s"\nsteps = [{x = 1}]', "positive"),
        ('[[case]]\nnumber = 1\ntitle = "t"\nwhy = "w"\nrule = "r"\nseen = "s"\nsteps = []', "steps"),
        ('[[case]]\nnumber = 1\ntitle = "t"\nwhy = "w"\nrule = "r"\nseen = "s"\nsever = 1\nsteps = [{x = 1}]', "sever"),
    ],
)
def test_malformed_case_file_is_an_error(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(CaseError, match=why):
        read(tmp_path / "x.toml", "handler")
