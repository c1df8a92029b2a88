"""The meta of a REQUEST that a server makes: a Struct in place of a map, as every message of a client has one.

It is made and dropped in a third of the time of a map, and encoded in C in fewer steps. It reads as the map that it
becomes on the wire: keys without a value are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct


class RequestMeta(Struct, omit_defaults=True, eq=False, gc=False):
    """Facts on a message for its handler, in the order of the wire; `path` is shared, and nobody may change it."""

    id: str
    root: str
    origin: str
    scope: str
    attempt: int
    path: list[str]
    peer: str | None = None
    traceparent: str | None = None
    deadline_ms: int | None = None
    shadow: bool | None = None

    def __getitem__(self, key: str) -> Any:
        value = getattr(self, key, None) if key in _KEYS else None
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return (key for key in _KEYS if getattr(self, key) is not None)

    def __contains__(self, key: object) -> bool:
        return key in tuple(self)

    def __eq__(self, other: object) -> bool:
        return dict(self) == (dict(other) if isinstance(other, RequestMeta) else other)

    def __repr__(self) -> str:
        return repr(dict(self))

    def keys(self) -> tuple[str, ...]:
        """Return the keys, for `dict`."""
        return tuple(self)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, as `dict.get` does."""
        return getattr(self, key) if key in self else default

    __hash__ = None  # type: ignore[assignment]  # as a map's


_KEYS = RequestMeta.__struct_fields__
