"""Tables of the command line: folded on a terminal, plain on any other output."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.cells import cell_len

from bester.cli import tables

ID = "s1/bridge-1.1/4711.0.0"
ROWS = [("expired", "a reason of several words, to be folded", ID), ("no-handler", "漢字", "s1/b/8")]
HEADER = ("REASON", "NOTE", "ID")


class Output(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, **environment: str) -> str:
    output = Output(terminal)
    monkeypatch.setattr(sys, "stdout", output)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "24", **environment}.items():
        monkeypatch.setenv(name, value)
    tables.show(ROWS, HEADER)
    return output.getvalue()


def plain(text: str) -> list[str]:
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"COLUMNS": "10"}, {"TERM": "dumb"}])
def test_other_output_has_one_plain_line_a_row(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    assert shown(monkeypatch, terminal=False, **environment).splitlines() == [
        "REASON      NOTE                                     ID",
        f"expired     a reason of several words, to be folded  {ID}",
        "no-handler  漢字                                     s1/b/8",
    ]


def test_terminal_folds_words_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = plain(shown(monkeypatch, terminal=True))
    assert max(map(cell_len, lines)) <= 60
    assert len(lines) > 3
    assert any(line.endswith(ID) for line in lines)


def test_narrow_terminal_cuts_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(plain(shown(monkeypatch, terminal=True, COLUMNS="10")))
    assert ID in text
    assert "…" not in text


@pytest.mark.parametrize("columns", [1, 20, 40, 60, 70, 80])
def test_header_of_two_words_costs_no_column_its_end(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    output = Output(terminal=True)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("COLUMNS", str(columns))
    header, row = ("TYPE", "HANDLERS", "IN FLIGHT", "RECEIVED", "LAST ERROR"), ("echo", "1", "漢字", "unknown", "")
    tables.show([row], header)
    assert plain(output.getvalue()) == tables.aligned([header, row])


def test_long_list_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FOLDED_ROWS", len(ROWS) - 1)
    assert len(shown(monkeypatch, terminal=True).splitlines()) == len(ROWS) + 1


def test_terminal_shows_a_bold_header(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[1mREASON" in shown(monkeypatch, terminal=True)


def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = re.findall(r"\x1b\[([\d;]*)m", shown(monkeypatch, terminal=True, NO_COLOR="1"))
    assert set(codes) <= {"0", "1"}


def test_dumb_terminal_gets_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in shown(monkeypatch, terminal=True, TERM="dumb")


def test_rows_without_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(terminal=False)
    monkeypatch.setattr(sys, "stdout", output)
    tables.show([("id", "s1/b/7"), ("on its way to", "s2")])
    assert output.getvalue() == "id             s1/b/7\non its way to  s2\n"
