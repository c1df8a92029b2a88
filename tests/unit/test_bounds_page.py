"""The page of bounds says what the code says."""

from __future__ import annotations

import re

from tests.bounds_page import PAGE, PARTS, page


def test_page_is_that_of_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.bounds_page writes it anew"


def test_every_bound_has_a_reason() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (.*) \|$", page(), re.MULTILINE)
    assert len(rows) > 80
    assert [name for name, _, reason in rows if len(reason) < 10] == []
    assert len(PARTS) == 3
