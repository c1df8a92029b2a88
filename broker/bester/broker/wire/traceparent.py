"""The header `traceparent` of W3C Trace Context: which trace a message belongs to, and which span it comes from."""

from __future__ import annotations

import re
from hashlib import blake2b

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LENGTH = 55
MAX_LENGTH = 512
"""Characters that are looked at: later versions may add fields."""
SAMPLED = 0x01


def sound(value: object) -> str | None:
    """Return a traceparent as this version writes it; None for any value that is none, which is to be ignored. Of a
    later version the known fields are taken."""
    if type(value) is not str or len(value) > MAX_LENGTH or _FORM.match(value) is None:
        return None
    if len(value) == _LENGTH:
        return f"00{value[2:]}"
    return f"00{value[2:_LENGTH]}" if value[:2] != "00" and value[_LENGTH] == "-" else None


def is_sampled(parent: str) -> bool:
    """Return whether the sender of a sound traceparent records its spans, and wants those of others."""
    return bool(int(parent[-2:], 16) & SAMPLED)


def span_id(name: str) -> str:
    """Return the id of the span of this name: 16 hexadecimal digits, the same each time, and not all of them 0."""
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return digest if digest.strip("0") else "1".rjust(16, "0")


def child(parent: str, id_: str) -> str:
    """Return the traceparent for what follows from a span with this id, in the same trace."""
    return f"{parent[:36]}{id_}{parent[52:]}"
