"""How kept values look inside a store: text as bytes, maps packed; and how the outcomes of one message are summed up.

Names come from strangers: text is written so that any `str` can be written, one with half a surrogate pair too, and
reads back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

QUEUED = "queued"
_BADNESS = {"delivered": 0, QUEUED: 1, "sent": 2}
_FAILED = 3


def text(value: str) -> bytes:
    """Return what stands for a text."""
    return value.encode("utf-8", "surrogatepass")


def read_text(raw: bytes) -> str:
    """Return the text that `text` was given."""
    return raw.decode("utf-8", "surrogatepass")


_packer = msgpack.Packer(unicode_errors="surrogatepass", autoreset=True)


def pack(value: Any) -> bytes:
    """Return what stands for a map of plain values; a tuple in it comes back as a list."""
    packed: bytes = _packer.pack(value)
    return packed


def unpack(raw: bytes) -> Any:
    """Return what `pack` was given. Raises ValueError for what it has not made."""
    return msgpack.unpackb(raw, unicode_errors="surrogatepass", strict_map_key=False)


def summed_up(outcomes: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return the outcome of each target, the worst of several; None is that of what waits."""
    found: dict[str, str] = {}
    for target, outcome in outcomes:
        said = outcome or QUEUED
        before = found.get(target)
        if before is None or _BADNESS.get(said, _FAILED) > _BADNESS.get(before, _FAILED):
            found[target] = said
    return found
