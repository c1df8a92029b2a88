"""Names of users: no two accounts look the same."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from bester.broker.users import name_fault


@pytest.mark.parametrize("name", ["alice", "josé", "Ann Lee", "李雷", "😀", "שרה", "नेहा", "가나다"])
def test_names_that_people_have(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize(
    "unseen", ["\u200b", "\u202e", "\ufeff", "\u00ad", "\u034f", "\u3164", "\u2800", "\ufe0f", "\U000e0101"]
)
def test_what_shows_nothing_is_in_no_name(unseen: str) -> None:
    assert name_fault(f"alice{unseen}")
    assert name_fault(f"al{unseen}ice")


def test_name_has_one_spelling() -> None:
    """`bester user disable` shuts out one of them."""
    for char in map(chr, range(0xA0, sys.maxunicode + 1)):
        spellings = {form: unicodedata.normalize(form, char) for form in ("NFC", "NFD")}
        if spellings["NFC"] != spellings["NFD"]:
            assert name_fault(f"a{spellings['NFD']}b")
