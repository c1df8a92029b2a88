"""Is this JSON text? Checked once, where a body enters; never interpreted, never written anew.

JSON is taken as RFC 8259 has it, in UTF-8, nested at most DEPTH_LIMIT deep, with
surrogate escapes in pairs. The depth is that of the body alone: what an envelope
around it adds does not count.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

DEPTH_LIMIT = 64
"""Deeper nesting costs a parser stack; no protocol for people needs it."""

TOO_DEEP = f"nested deeper than {DEPTH_LIMIT}"
UNPAIRED = "a surrogate escape (\\ud800 to \\udfff) without the other half of its pair"
_skip = msgspec.json.Decoder(msgspec.Raw).decode
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or the unfinished rest of the text: were that no match, each quote in it would be tried, in square time."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")


def too_deep(text: bytes, limit: int = DEPTH_LIMIT) -> bool:
    """Say whether brackets nest deeper than `limit` in JSON text; strings don't count.

    Linear and without recursion; cheap where there are few brackets, and where they nest too deep early.
    """
    if text.count(b"{") + text.count(b"[") <= limit:
        return False
    depth = 0
    for byte in _STRING.sub(b"", text).translate(None, _NOT_BRACKET):
        if byte in b"[{":
            depth += 1
            if depth > limit:
                return True
        else:
            depth -= 1
    return False


def with_unpaired(text: bytes) -> Any:
    """Return the value of JSON text whose only fault is a surrogate escape without the other half of its pair.

    The grammar of RFC 8259 allows those; many parsers do not, msgspec's among them, so Bester takes no such text. This
    tells it from text that is no JSON at all. Numbers are left out of the value. Slow: for text that was found wrong.
    Raises ValueError, RecursionError.
    """
    if not _SURROGATE.search(text):
        raise ValueError("there is no surrogate escape in it")
    return json.loads(text.decode(), parse_constant=_no_constant, parse_int=_number, parse_float=_number)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _number(_: str) -> int:
    return 0


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
        return TOO_DEEP
    try:
        _skip(text)
    except RecursionError:  # out of step with `too_deep` only where the caller's own stack is nearly used up
        return TOO_DEEP
    except msgspec.DecodeError as error:
        return UNPAIRED if _is_unpaired(text) else str(error)
    return None


def _is_unpaired(text: bytes) -> bool:
    try:
        with_unpaired(text)
    except (ValueError, RecursionError):
        return False
    return True
