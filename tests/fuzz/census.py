"""Census of an object's contents: the entries of every container that can be reached from the object, by path.

A table without a bound is found wherever the table is, and a new one as well.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

CONTAINERS = (dict, list, set, frozenset, tuple, deque)
ATOMS = (int, float, bool, type(None), type)
TEXTS = (str, bytes, bytearray)
LENGTH = " (length)"
"""Behind the way to a text or to bytes."""
OURS = ("bester.", "tests.")


def census(root: object, passed_over: Collection[type] = ()) -> dict[str, int]:
    """Return the number of entries of the containers below `root`, and the length of its texts: the largest of each
    path.

    A path names attributes, and `[]` for an entry of a container: `_dispatcher.workers._queues[]`. Objects of the types
    `passed_over`, and of types from outside Bester, are not entered.
    """
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    waiting: deque[tuple[str, Any]] = deque([("", root)])
    while waiting:
        way, value = waiting.popleft()
        if isinstance(value, TEXTS):
            sizes[way + LENGTH] = max(sizes.get(way + LENGTH, 0), len(value))
        if isinstance(value, (*ATOMS, *TEXTS, *passed_over)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, CONTAINERS):
            if not hasattr(value, "_fields"):
                sizes[way] = max(sizes.get(way, 0), len(value))
            inside = f"{way}[]"
            waiting.extend((inside, each) for each in _entries(value))
        elif type(value).__module__.startswith(OURS):
            waiting.extend((f"{way}.{name}" if way else name, each) for name, each in _attributes(value))
    return sizes


def _entries(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    else:
        yield from value


def _attributes(value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, msgspec.Struct):
        yield from ((name, getattr(value, name)) for name in value.__struct_fields__)
        return
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield name, getattr(value, name)


def grown(before: Mapping[str, int], after: Mapping[str, int], by: int) -> dict[str, int]:
    """Return the ways below which more than `by` entries have come."""
    more = Counter(after)
    more.subtract(before)
    return {way: count for way, count in sorted(more.items()) if count > by}
