"""Is this JSON text? Checked once, where a body enters; never interpreted, never written anew.

JSON is taken as RFC 8259 has it, in UTF-8, nested at most DEPTH_LIMIT deep, with
surrogate escapes in pairs.
"""

from __future__ import annotations

import re

import msgspec

DEPTH_LIMIT = 64
"""Deeper nesting costs a parser stack; no protocol for people needs it."""

_TOO_DEEP = f"nested deeper than {DEPTH_LIMIT}"
_skip = msgspec.json.Decoder(msgspec.Raw).decode
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or the unfinished rest of the text: were that no match, each quote in it would be tried, in square time."""
_NOT_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")


def nesting(text: bytes) -> int:
    """Return how deep brackets nest in JSON text; strings don't count. Linear, without recursion."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", text).translate(None, _NOT_BRACKET):
        if byte in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
        else:
            depth -= 1
    return deepest


def too_deep(text: bytes, limit: int = DEPTH_LIMIT) -> bool:
    """Say whether brackets nest deeper than `limit`; cheap where there are few brackets at all."""
    return text.count(b"{") + text.count(b"[") > limit and nesting(text) > limit


def is_utf8(text: bytes) -> bool:
    """Say whether the bytes are UTF-8."""
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def fault(text: bytes) -> str | None:
    """Return what is wrong with `text` as a JSON body, or None."""
    if not text.isascii() and not is_utf8(text):
        return "not UTF-8"
    if text.count(b"{") + text.count(b"[") > DEPTH_LIMIT and too_deep(text):
        return _TOO_DEEP
    try:
        _skip(text)
    except RecursionError:  # out of step with `nesting` only where the caller's own stack is nearly used up
        return _TOO_DEEP
    except msgspec.DecodeError as error:
        return str(error)
    return None
