"""The page of bounds says what the code says."""

from __future__ import annotations

import re

import pytest

from tests.bounds_page import PAGE, PARTS, page
from tests.unit.core_office import Office


def test_page_is_that_of_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.bounds_page writes it anew"


def test_every_bound_has_a_reason() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (.*) \|$", page(), re.MULTILINE)
    assert len(rows) > 80
    assert [name for name, _, reason in rows if len(reason) < 10] == []
    assert len(PARTS) == 3


@pytest.mark.parametrize("bound", ["server_messages", "messages"])
def test_code_that_the_page_names_is_the_one_at_the_bound(bound: str) -> None:
    office = Office(None, **{bound: 1})
    office.queues(b"1")
    office.sends("s2")
    (outcome,) = office.outcomes().values()
    (row,) = re.findall(rf"^\| `{bound}` .*$", page(), re.MULTILINE)
    assert f"`{outcome.removeprefix('failed:')}`" in row
