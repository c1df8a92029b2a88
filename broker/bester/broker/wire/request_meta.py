"""The meta of a REQUEST that a server makes: a Struct in place of a map, as every message of a client has one.

A RequestMeta is made and dropped in a third of the time of a map, and encoded in C. A reader sees the map that it
becomes on the wire, in which keys without a value are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct


class RequestMeta(Struct, omit_defaults=True, eq=False, gc=False):
    """Facts on a message for its handler, in the order of the wire; nobody may change the `path`, which is shared."""

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
        value = getattr(self, key) if key in self.__struct_fields__ else None
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return (key for key in self.__struct_fields__ if getattr(self, key) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    get, keys, items, values = Mapping.get, Mapping.keys, Mapping.items, Mapping.values
    __contains__, __eq__ = Mapping.__contains__, Mapping.__eq__


Mapping.register(RequestMeta)
