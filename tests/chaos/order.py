"""Order in a chaos run: messages come in order, where order was asked for. Pure.

Two orders are promised: the messages of type `line` from one user, to each of its recipients; and a native server's
lane whose `order` is "type". Marked messages are left out: a message that may have arrived comes again once known to be
missing, and others have come meanwhile. Of a server with several brokers order is promised among the messages that one
broker took: a sender moves when a broker dies, and moves back later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.chaos.entries import Entry
from tests.chaos.happened import CLUSTER_BROKERS
from tests.chaos.journal import Got

ORDERED_TYPE = "line"
ORDERED_LANES = frozenset({("s1", "n1")})
"""Servers, and the native servers to which they keep the order of each type."""

MOVES_BACK_S = 15.0
"""Seconds after a broker is there again within which senders move back to it: it starts slowly beside others."""


def faults(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield the messages that have overtaken another."""
    sequences: dict[tuple[object, ...], list[tuple[float, int, Entry]]] = defaultdict(list)
    for entry in entries:
        for user, receipts in entry.got.items():
            first: dict[str | None, Got] = {}
            for got in sorted(receipts, key=lambda got: got.at_s):
                first.setdefault(got.id, got)
            for got in first.values():
                key = _sequence(entry, user, got)
                if key is not None and not got.marked:
                    number = entry.sent.number if got.place is None else got.place[3]
                    sequences[key].append((got.at_s, number, entry))
    for key, sequence in sequences.items():
        yield from _overtaken(key, sequence)


def _sequence(entry: Entry, user: str, got: Got) -> tuple[object, ...] | None:
    """Return the key of the sequence that a receipt belongs to, None where the receipt has no order."""
    if got.place is not None:
        server, type_, epoch, _ = got.place
        return (user, server, type_, epoch) if (server, user) in ORDERED_LANES else None
    return (user, entry.journal) if entry.sent.type == ORDERED_TYPE else None


def _overtaken(key: tuple[object, ...], sequence: list[tuple[float, int, Entry]]) -> Iterator[str]:
    last: tuple[int, Entry] | None = None
    for _, number, entry in sorted(sequence, key=lambda each: each[:2]):
        if last is not None and number < last[0]:
            if not _may_have_moved(entry, last[1]):
                yield f"received by {key[0]} after what came later: {entry.story()}\nand that: {last[1].story()}"
        elif last is None or number > last[0]:
            last = number, entry


def _may_have_moved(earlier: Entry, later: Entry) -> bool:
    """Return whether different brokers of a cluster may have taken two messages: one of the brokers has ended, or was
    silent for so long that bridges took it for dead."""
    return earlier.happened.deaths(CLUSTER_BROKERS, earlier.sent.at_s - MOVES_BACK_S, later.sent.at_s) > 0
