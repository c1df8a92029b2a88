"""Python handlers pass every case, and handlers that are broken in one way are caught by the case for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bester.conform.cases import load
from tests.conform.programs import BROKEN, CAUGHT_WITHIN_S, broken, failures, published, tried

SHOUT = """
from bester.handlers import App

app = App()


@app.handler("shout")
{kind} shout(message):
    return message.reply(message.data.upper())
"""


async def test_the_program_of_the_page_passes(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(published())
    results = await tried([sys.executable, str(tmp_path / "shout.py")])
    assert not failures(results)
    assert sum(result.state == "pass" for result in results) >= 60
    assert [result.case.number for result in results if result.state == "skip"] == [801]  # it knows no CURVE


async def test_an_app_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conform_shout.py").write_text(SHOUT.format(kind="def"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = await tried([sys.executable, "-m", "bester.handlers", "conform_shout:app"])
    assert not failures(results)
    assert sum(result.state == "pass" for result in results) >= 60


@pytest.mark.parametrize("how", BROKEN)
async def test_a_broken_handler_is_caught_by_its_number(how: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(broken(how))
    number = BROKEN[how][0]
    cases = [case for case in load("handler") if case.number in (101, 302, number)]
    results = await tried([sys.executable, str(tmp_path / "broken.py")], cases, CAUGHT_WITHIN_S)
    assert {result.case.number: result.state for result in results} == {101: "pass", 302: "pass", number: "fail"}
    assert all(result.detail for result in results if result.state == "fail")
