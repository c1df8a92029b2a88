"""Ctrl-C while `bester` is still importing its modules."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from bester.cli import main

STOPPED = """
class Field:
    def __set_name__(self, owner, name):
        raise KeyboardInterrupt

class Record:
    field = Field()
"""


@pytest.mark.parametrize("module", ["bester.cli.commands", "bester.cli.doctor"])
def test_ctrl_c_while_a_class_is_made_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    """Python 3.11 wraps what is raised there, and the line spoke of an internal error."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    monkeypatch.delitem(sys.modules, module, raising=False)
    find = PathFinder.find_spec
    stopped = importlib.util.spec_from_file_location(module, tmp_path / "stopped.py")
    monkeypatch.setattr(PathFinder, "find_spec", lambda name, *more: stopped if name == module else find(name, *more))
    assert main(["check"]) == 130
    assert capsys.readouterr() == ("", "")
