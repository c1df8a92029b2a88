"""Notes: any text becomes one short line that can be sent and shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.wire.notes import NOTE_CHARACTERS, describe, safe_note

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
"""Half surrogate pairs and control characters too."""


@given(ANY_TEXT, st.integers(1, 200))
def test_any_text_becomes_a_line_that_can_be_sent(text: str, times: int) -> None:
    note = safe_note(text * times)
    assert len(note) <= NOTE_CHARACTERS
    assert len(note.splitlines()) <= 1
    assert note.encode() is not None
    assert not {"\x1b", "\x00", "\r", "\x9b", "\u202e"} & set(note)
    assert safe_note(note) == note


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("too many", "too many"),
        ("", ""),
        ("no such file: \udcff.txt", "no such file: \ufffd.txt"),
        ("one\r\n  two\n\nthree\n", "one two three"),
        ("\x1b]0;title\x07 \x1b[31mred", "]0;title [31mred"),
        ("zürich 中 😀 👨\u200d👩\u200d👧 نمی\u200cشود", "zürich 中 😀 👨\u200d👩\u200d👧 نمی\u200cشود"),
        ("a\u202ecba", "acba"),
        ("x" * NOTE_CHARACTERS, "x" * NOTE_CHARACTERS),
        ("x" * (NOTE_CHARACTERS + 1), "x" * (NOTE_CHARACTERS - 1) + "…"),
        ("x" * 1_000_000, "x" * (NOTE_CHARACTERS - 1) + "…"),
        ("a" + " " * 1_000_000 + "b", "a…"),
    ],
)
def test_notes_of_texts(text: str, note: str) -> None:
    assert safe_note(text) == note


class NoTextError(Exception):
    def __init__(self, raised: object) -> None:
        self.raised = raised

    def __str__(self) -> str:
        if isinstance(self.raised, BaseException):
            raise self.raised
        return self.raised  # type: ignore[return-value]  # the point of the test


class NamelessType(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]  # the point of the test
        raise KeyError("no name")


class NamelessError(Exception, metaclass=NamelessType):
    pass


class OddText(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __getitem__(self, key: object) -> str:
        raise RuntimeError("no parts")

    def __format__(self, spec: str) -> str:
        raise RuntimeError("no form")


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (ValueError("bad\nnews"), "ValueError: bad news"),
        (TimeoutError(), "TimeoutError"),
        (KeyError("to"), "KeyError: 'to'"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), "UnicodeEncodeError: 'utf-8' codec can't encode character"),
        (NoTextError(AttributeError("no text")), "NoTextError: its text cannot be had: str() raised AttributeError"),
        (NoTextError(SystemExit(1)), "NoTextError: its text cannot be had: str() raised SystemExit"),
        (NoTextError(None), "NoTextError: its text cannot be had: str() raised TypeError"),
        (NamelessError("x"), "NamelessError: x"),
        (NoTextError(NamelessError("x")), "NoTextError: its text cannot be had: str() raised NamelessError"),
        (NoTextError(OddText("odd")), "NoTextError: odd"),
        (ExceptionGroup("several", [ValueError("x")]), "ExceptionGroup: several (1 sub-exception)"),
    ],
    ids=lambda each: each[:60] if isinstance(each, str) else "error",
)
def test_notes_of_exceptions(error: BaseException, note: str) -> None:
    assert describe(error).startswith(note)


def test_a_text_with_methods_of_its_own_becomes_a_plain_note() -> None:
    assert type(safe_note(OddText("odd"))) is str
    assert safe_note(OddText("o\nd")) == "o d"
