"""Notes: short texts from one peer that another peer shows to people. Pure.

Every note is short, on one line, can be encoded, and holds no control sequence of a terminal.
"""

from __future__ import annotations

import re

NOTE_CHARACTERS = 500
"""Longest note, a sentence or two; a longer text is cut."""

_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
"""Line breaks and control characters, with the white space around them."""
_HALVES = re.compile(r"[\ud800-\udfff]")
"""Halves of surrogate pairs, which UTF-8 does not have."""
_DIRECTIONS = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
"""Characters that change the direction of text, by which a note could make a log line read as another one."""


def describe(error: BaseException) -> str:
    """Return an exception's class and text as a note, whatever its `str()` does."""
    name = class_name(error)
    try:
        text = _beginning(str(error))
    except BaseException as broken:  # noqa: BLE001 (the exception's own code must not end this program)
        text = f"its text cannot be had: str() raised {class_name(broken)}"
    return safe_note(f"{name}: {text}" if text else name)


def class_name(value: object) -> str:
    """Return the name of a value's class, whatever its metaclass makes of `__name__`."""
    name: str = _NAME.__get__(type(value))
    return _beginning(name)


_NAME = type.__dict__["__name__"]


def _beginning(text: str) -> str:
    """Return as much of a text as a note is made of, as a plain `str`: a subclass may have methods of its own."""
    return str.__getitem__(text, slice(4 * NOTE_CHARACTERS + 1))


def safe_note(text: str) -> str:
    """Return a text as a note: one line of at most NOTE_CHARACTERS, fit to be sent and shown."""
    text = _beginning(text)  # first of all, as the text may be megabytes long
    short = text[: 4 * NOTE_CHARACTERS]
    short = _DIRECTIONS.sub("", _HALVES.sub("\ufffd", _BREAKS.sub(" ", short))).strip()
    if len(short) <= NOTE_CHARACTERS and len(text) <= 4 * NOTE_CHARACTERS:
        return short
    return short[: NOTE_CHARACTERS - 1].rstrip() + "…"
