"""Figures of a server against the ledger of a chaos run: each difference is found, and old counts are none."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.calm import Counts, differences
from tests.chaos.entries import Entry
from tests.chaos.journal import Sent, Told

BEFORE = Counts(Counter(pipe=7, talk=3), Counter(pipe=6), 2, frozenset("ab"))


def entry(number: int, type_: str, *, told: bool = True) -> Entry:
    made = Entry(Sent(number, type_, {}, 1.0), "sender-s1-5")
    made.told += [Told(number, False, "expired", {}, None, 2.0)] if told else []
    return made


ENTRIES = [entry(1, "pipe"), entry(2, "pipe", told=False), entry(3, "out"), entry(4, "talk")]
AFTER = Counts(Counter(pipe=9, talk=99, out=1), Counter(pipe=7, out=1), 3, frozenset("abc"))


def test_equal_growth_has_no_differences_and_types_of_handlers_are_not_compared() -> None:
    assert differences(BEFORE, AFTER, ENTRIES) == []


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (AFTER._replace(received=Counter(pipe=8, out=1)), "1 messages of type pipe are counted as entered, and the"),
        (AFTER._replace(received=Counter(pipe=9, out=1, far=1)), "1 messages of type far are counted as entered"),
        (AFTER._replace(reported=Counter(pipe=8, out=1)), "2 messages of type pipe are counted as reported on"),
        (AFTER._replace(dead=2), "0 dead letters are counted, and 1 are in the store"),
        (AFTER._replace(letters=frozenset("ab")), "1 dead letters are counted, and 0 are in the store"),
    ],
)
def test_difference_is_found(after: Counts, words: str) -> None:
    (found,) = differences(BEFORE, after, ENTRIES)
    assert words in found
