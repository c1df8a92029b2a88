"""The table of codes, and the errors that carry them."""

from __future__ import annotations

import re

import pytest

from bester.broker.wire.codes import CODES, BesterError, ConfigError, WireError, is_temporary

TEMPORARY = {
    "no-handler",
    "handler-lost",
    "timeout",
    "overloaded",
    "try-later",
    "mailbox-full",
    "storage-full",
    "storage-unavailable",
    "unreachable",
    "hello-first",
}


def test_which_codes_are_temporary() -> None:
    assert {code for code in CODES if is_temporary(code)} == TEMPORARY
    assert not is_temporary("no-such-code")


def test_codes_are_words_with_a_meaning() -> None:
    for code, row in CODES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
        assert row.meaning.strip() == row.meaning != ""


@pytest.mark.parametrize("code", CODES)
def test_error_has_the_meaning_of_its_code(code: str) -> None:
    assert BesterError(code).text == CODES[code].meaning
    assert str(WireError(code, "in frame 7")) == f"{code}: in frame 7"
    assert isinstance(WireError(code), BesterError)


def test_configuration_error_is_only_its_text() -> None:
    assert str(ConfigError("[native] tcp4: the port is a number")) == "[native] tcp4: the port is a number"
