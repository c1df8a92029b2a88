"""Names of users: no two accounts look the same."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from bester.broker.users import OpenAccounts, new_name_fault
from bester.broker.verifying import LET_IN


@pytest.mark.parametrize("name", ["alice", "josé", "Ann Lee", "李雷", "😀", "שרה", "नेहा", "가나다"])
def test_names_that_people_have(name: str) -> None:
    assert new_name_fault(name) is None


@pytest.mark.parametrize(
    "unseen", ["\u200b", "\u202e", "\ufeff", "\u00ad", "\u034f", "\u3164", "\u2800", "\ufe0f", "\U000e0101"]
)
def test_what_shows_nothing_is_in_no_name(unseen: str) -> None:
    assert new_name_fault(f"alice{unseen}")
    assert new_name_fault(f"al{unseen}ice")


def test_name_has_one_spelling() -> None:
    """`bester user disable` shuts out one of them."""
    for char in map(chr, range(0xA0, sys.maxunicode + 1)):
        spellings = {form: unicodedata.normalize(form, char) for form in ("NFC", "NFD")}
        if spellings["NFC"] != spellings["NFD"]:
            assert new_name_fault(f"a{spellings['NFD']}b")


async def test_where_there_are_no_accounts_any_name_is_let_in() -> None:
    assert await OpenAccounts().verify("jose\u0301", "x", "") == LET_IN
