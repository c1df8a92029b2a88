"""The memory that each hostile party may make the server hold: the sum of the bounds that stand in its way.

The bounds are the server's own (docs/bounds.md). Overheads of Python and the allocator are not counted.
"""

from __future__ import annotations

from typing import NamedTuple

from bester.bridge.limits import Limits as BridgeLimits
from bester.broker.core.settings import Limits as BrokerLimits
from bester.broker.full_links import MOST_BYTES as FULL_BYTES
from bester.broker.slices import MOST_BYTES as AHEAD_BYTES
from bester.broker.unread import MOST_BYTES

BRIDGE, BROKER = BridgeLimits(), BrokerLimits()
MIB = 1 << 20


class Bound(NamedTuple):
    """A bound by its name, and the bytes that one party can hold below the bound."""

    name: str
    size_bytes: int


REMEMBERED_BYTES = 800
"""Bytes of a message that is remembered to recognize duplicates: 262,144 of them are some 200 MiB."""
MESSAGE_BYTES = 4096
"""Bytes of a short message with its case, job and submission."""

_KEPT = (
    Bound("max_remembered_of_one", BROKER.max_remembered_of_one * REMEMBERED_BYTES),
    Bound("out_total", BRIDGE.out_total),
)
BOUNDS: dict[str, tuple[Bound, ...]] = {
    "user": (
        Bound("half of held_bytes", BRIDGE.held_bytes // 2),
        Bound("held_messages", BRIDGE.held_messages * MESSAGE_BYTES),
        Bound("unfinished_bytes", BRIDGE.unfinished_bytes),
        *_KEPT,
    ),
    "handler": (
        Bound("max_waiting_bytes", BROKER.max_waiting_bytes),
        Bound("max_waiting", BROKER.max_waiting * MESSAGE_BYTES),
        Bound("bytes that were not read", MOST_BYTES),
        Bound("messages read ahead", AHEAD_BYTES),
        Bound("messages without room", FULL_BYTES),
        Bound("half of held_bytes", BRIDGE.held_bytes // 2),
        *_KEPT,
    ),
    "server": (
        Bound("max_waiting_bytes", BROKER.max_waiting_bytes),
        Bound("max_relayed", BROKER.max_relayed * REMEMBERED_BYTES),
        Bound("bytes that were not read", MOST_BYTES),
        Bound("messages read ahead", AHEAD_BYTES),
        Bound("messages without room", FULL_BYTES),
        *_KEPT,
    ),
}
"""Bounds on the memory that a party can fill, by party."""


def bound_bytes(party: str) -> int:
    """Return the memory that a party may make the server hold, in bytes; for all parties at once the sum."""
    return sum(bound.size_bytes for bound in bounds_of(party))


def names_of(party: str) -> str:
    """Return the names of the bounds, for people."""
    return " + ".join(bound.name for bound in bounds_of(party))


def bounds_of(party: str) -> tuple[Bound, ...]:
    """Return the bounds of a party, or those of all, each once."""
    return BOUNDS.get(party) or tuple({bound: None for bounds in BOUNDS.values() for bound in bounds})
