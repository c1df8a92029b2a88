"""How kept values look inside a store: text that can be written, maps packed; and how the outcomes of one message are
summed up.

Names come from strangers: any `str` can be written, one with half a surrogate pair too, and reads back as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.outcomes import QUEUED, severity

_MARK = "\ufdd0"
"""No character, and never to be one; it stands before the digits of what UTF-8 has no bytes for, and of itself."""
_UNWRITABLE = re.compile(f"[\ud800-\udfff{_MARK}]")
_MARKED = re.compile(f"{_MARK}([0-9a-f]{{4}})")


def text(value: str) -> str:
    """Return what stands for a text. The beginning of a text stands for the beginning of what it stands for."""
    if value.isascii():
        return value
    return _UNWRITABLE.sub(lambda match: f"{_MARK}{ord(match[0]):04x}", value)


def read_text(written: str) -> str:
    """Return the text that `text` was given."""
    if written.isascii():
        return written
    return _MARKED.sub(lambda match: chr(int(match[1], 16)), written)


_packer = msgpack.Packer(unicode_errors="surrogatepass", autoreset=True)


def blob(value: bytes) -> bytearray:
    """Return bytes as Python's SQLite takes them at once: an argument of type `bytes` costs it a microsecond more."""
    return bytearray(value)


def pack(value: Any) -> bytearray:
    """Return what stands for a map of plain values; a tuple in it comes back as a list."""
    return blob(_packer.pack(value))


def unpack(raw: bytes | bytearray) -> dict[Any, Any]:
    """Return what `pack` was given. Raises ValueError for what it has not made."""
    try:
        value = msgpack.unpackb(raw, unicode_errors="surrogatepass", strict_map_key=False)
    except TypeError as error:  # a map with a key that no map can have
        raise ValueError(str(error)) from None
    if type(value) is not dict:
        raise ValueError("no map")
    return value


def summed_up(outcomes: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return the outcome of each target, the worst of several; None is that of what waits."""
    found: dict[str, str] = {}
    for target, outcome in outcomes:
        said = outcome or QUEUED
        before = found.get(target)
        if before is None or severity(said) > severity(before):
            found[target] = said
    return found
