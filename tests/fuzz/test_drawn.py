"""A short form of what hypothesis and atheris draw, for every run of the tests; `make fuzz MINUTES=10` is the long."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bester.broker.wire import readers
from bester.broker.zap import zap_reply
from tests.fuzz.drawn import atheris_draws, hypothesis_draws
from tests.fuzz.targets import TARGETS, cut, joined

EXAMPLES = 80
LONGEST_S = 30.0
"""For a fault that was put in; it is found in the first second."""


@pytest.mark.parametrize("name", TARGETS)
def test_no_drawn_bytes_break_a_target(name: str) -> None:
    tried, wrong = hypothesis_draws(name, 0.0, 1, EXAMPLES)
    assert not wrong, wrong
    assert tried >= EXAMPLES // 2  # hypothesis ends early where it knows all inputs


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (bester[fuzz])")
def test_atheris_runs_on_a_target() -> None:
    assert not atheris_draws("zap", 1.0)


def test_joined_frames_are_cut_again() -> None:
    for pieces in ([], [b""], [b"a", b"", b"x" * 300]):
        assert cut(joined(pieces)) == pieces
    assert cut(b"\xff\xffab") == [b"ab"]
    assert cut(b"\0") == []


class TestFaultsAreFound:
    """Faults that are put in, one at a time."""

    def test_a_reader_that_trusts_what_it_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def trusting(row: Any, frames: Sequence[bytes]) -> Any:
            return len(row[2])  # the fault of this mutant

        monkeypatch.setitem(readers.READERS, 30, trusting)
        assert "fabric, hypothesis" in hypothesis_draws("fabric", LONGEST_S, 1, shrink=False)[1]

    def test_a_key_that_is_let_in_without_encryption(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def trusting(frames: Sequence[bytes], known: Any) -> Any:
            return zap_reply([*frames[:5], b"CURVE", *frames[6:]] if len(frames) > 6 else frames, known)

        monkeypatch.setattr("tests.fuzz.targets.zap_reply", trusting)
        assert "a known key is let in, and nobody else" in hypothesis_draws("zap", LONGEST_S, 1, shrink=False)[1]


@pytest.mark.parametrize("argv", [["--minutes", "0"], ["--minutes", "x"], ["--only", "nobody"]])
def test_command_reports_an_error_in_one_line(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.drawn", *argv],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
