"""Check of JSON text, made once, where a body enters; the text is never interpreted or rewritten.

JSON is that of RFC 8259, in UTF-8, nested at most DEPTH_LIMIT deep, with surrogate escapes in pairs. The depth is that
of the body alone, without the envelope around the body.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from array import array
from itertools import accumulate
from operator import add
from typing import Any, NoReturn

import msgspec

DEPTH_LIMIT = 64
"""Deepest nesting: deeper text costs a parser stack, and no protocol for people needs more."""
SHALLOW_BYTES = 2 * DEPTH_LIMIT
"""JSON text that is no longer cannot nest deeper than DEPTH_LIMIT: every level has two brackets."""
TOO_DEEP = f"nested deeper than {DEPTH_LIMIT}"
LONG_BYTES = 64 * 1024
"""Faulty text above this is not made into values, only skipped: a megabyte of empty arrays takes a tenth of a
second."""
UNPAIRED = "a surrogate escape (\\ud800 to \\udfff) without the other half of its pair"
_skip = msgspec.json.Decoder(msgspec.Raw).decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_NOT_VALUES = bytes(byte for byte in range(256) if byte not in b'[{,"')
_BITS = bytes.maketrans(b"[]", b"10")
_WORD_BITS = 16
_SAMPLE_BYTES = 4096


def too_deep(text: bytes, limit: int = DEPTH_LIMIT) -> bool:
    """Return whether brackets in JSON text nest deeper than `limit`; brackets in strings do not count, and one that
    closes nothing, which is no JSON, makes what follows less deep.

    Linear and without recursion, and cheap for few brackets. Text of brackets alone is the dearest: everything is done
    by searches and tables in C, for a loop over a megabyte of brackets takes a tenth of a second, and anybody may send
    that.
    """
    if not _has_more_brackets(text, limit):
        return False
    rest = _without_strings(_without_escapes(text).translate(_SQUARE, _NOT_STRUCTURE))
    while limit and _has_many_leaves(rest):
        before = len(rest)
        rest = _without_leaves(rest + b"]" * limit)  # where each bracket is closed, the depth is one less
        limit -= 1
        if 3 * len(rest) > 2 * before:
            break  # only the begin was so: all that is left would be gone through for each level
    return _depth(rest) > limit


def _without_leaves(brackets: bytes) -> bytes:
    return brackets.replace(b"[]", b"")


def _has_many_leaves(brackets: bytes) -> bool:
    """Return whether a third, by a look at the begin, are pairs that hold no other: these cost more one by one."""
    sample = brackets[:_SAMPLE_BYTES]
    return 3 * len(_without_leaves(sample)) < 2 * len(sample)


def _depth(brackets: bytes) -> int:
    """Return the highest count of brackets that open, less those that close, from the begin on.

    Each bracket is a bit: a table has, for each word of bits, the count behind the word, and the highest one within.
    """
    behind, highest = _of_words()
    padding = -len(brackets) % _WORD_BITS
    bits = int(brackets.translate(_BITS) + b"0" * (padding + 1), 2) >> 1  # a digit at least
    words = array("H", bits.to_bytes((len(brackets) + padding) // 8, sys.byteorder))
    if sys.byteorder == "little":
        words.reverse()
    before = accumulate(map(behind.__getitem__, words), initial=0)
    return max(map(add, before, map(highest.__getitem__, words)), default=0)


@functools.cache
def _of_words() -> tuple[list[int], list[int]]:
    """Return two tables by word of bits: its count, and its highest count of some first bits. Made when needed,
    by translations in C: a loop over all words would take 30 ms."""
    less, more = bytes((count - 1) % 256 for count in range(256)), bytes((count + 1) % 256 for count in range(256))
    behind = highest = bytes(1)
    for _ in range(_WORD_BITS):  # one bit more, in front of the others
        behind = behind.translate(less) + behind.translate(more)
        highest = highest.translate(b"\0" + less[1:]) + highest.translate(more)
    return array("b", behind).tolist(), list(highest)


def _without_strings(text: bytes) -> bytes:
    """Return JSON text without escaped quotes, without its strings. The end of the text may stand for a quote."""
    return b"".join(text.replace(b'""', b"").split(b'"')[::2]) if b'"' in text else text


def _without_escapes(text: bytes) -> bytes:
    """Return JSON text without escaped quotes: each quote that is left begins or ends a string."""
    return text.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in text else text


def has_more_values(text: bytes, most: int, list_weight: int) -> bool:
    """Return whether JSON text has more values than `most`, where an array or object counts as `list_weight` more, and
    a field of an object once. Linear; text with few commas and brackets is not looked at twice."""
    if _values(text, list_weight) <= most:
        return False
    rest = _without_strings(_without_escapes(text).translate(None, _NOT_VALUES))
    return _values(rest, list_weight) > most


def _values(text: bytes, list_weight: int) -> int:
    return 1 + text.count(b",") + (1 + list_weight) * (text.count(b"[") + text.count(b"{"))


def _has_more_brackets(text: bytes, most: int) -> bool:
    """Return whether there are more opening brackets than `most`, in strings or not.

    A replacement searches with the machine's own instructions and stops after so many; `bytes.count` looks at each byte
    alone, and would take longer than all other checks of a large body together.
    """
    left = most + 1
    for bracket in (b"{", b"["):
        left -= len(text) - len(text.replace(bracket, b"", left))
        if not left:
            return True
    return False


def with_unpaired(text: bytes) -> Any:
    """Return the value of JSON text whose only fault is a surrogate escape without the other half of its pair.

    The grammar of RFC 8259 allows such escapes; many parsers, msgspec's among them, do not, so Bester refuses such
    text. This function distinguishes the fault from text that is no JSON. Numbers are read as 0. Slow: for faulty text
    only. Raises ValueError, RecursionError.
    """
    if not _SURROGATE.search(text):
        raise ValueError("there is no surrogate escape in it")
    return json.loads(text.decode(), parse_constant=_no_constant, parse_int=_number, parse_float=_number)


def without_surrogates(text: bytes) -> bytes | None:
    """Return JSON text with characters for private use in place of those from U+D000 to U+DFFF in escapes, of which
    most are halves of surrogate pairs; None where it has none of these. Replacements of equal length take a tenth of a
    pattern's time."""
    if not _SURROGATE.search(text):
        return None
    return text.replace(rb"\ud", rb"\ue").replace(rb"\uD", rb"\ue")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _number(_: str) -> int:
    return 0


def is_utf8(text: bytes) -> bool:
    """Return whether the bytes are UTF-8."""
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def fault(text: bytes) -> str | None:
    """Return the fault of `text` as a JSON body, or None."""
    if not text.isascii() and not is_utf8(text):
        return "not UTF-8"
    if len(text) > SHALLOW_BYTES and too_deep(text):
        return TOO_DEEP
    try:
        _skip(text)
    except RecursionError:  # differs from `too_deep` only if the caller's own stack is nearly used up
        return TOO_DEEP
    except msgspec.DecodeError as error:
        return UNPAIRED if _is_unpaired(text) else str(error)
    return None


def _is_unpaired(text: bytes) -> bool:
    try:
        if len(text) <= LONG_BYTES:
            with_unpaired(text)
        elif (other := without_surrogates(text)) is not None:
            _skip(other)
        else:
            return False
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True
