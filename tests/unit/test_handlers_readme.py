"""Runs the handler and the test printed in handlers/README.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "handlers" / "README.md"


def test_handler_and_test_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, test = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "letters.py").write_text(handler)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        exec(compile(test, str(README), "exec"), {})  # noqa: S102 (our own page)
    finally:
        sys.modules.pop("letters", None)
