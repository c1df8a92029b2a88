"""Rows: the form of values inside a store (text, packed maps), and sums over rows: shares, counts, outcomes.

Names come from strangers: any `str` can be written, one with half a surrogate pair too, and reads back unchanged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.store_requests import LaneOutcomes, owner_of, sharer_of
from bester.broker.wire.outcomes import DELIVERED, QUEUED, SENT, severity, worst

_MARK = "\ufdd0"
"""A code point that never is a character: precedes the digits of a code that UTF-8 cannot write, and of itself."""
_UNWRITABLE = re.compile(f"[\ud800-\udfff{_MARK}]")
_MARKED = re.compile(f"{_MARK}([0-9a-f]{{4}})")


def text(value: str) -> str:
    """Return the written form of a text. The form of a beginning is the beginning of the form."""
    if value.isascii():
        return value
    return _UNWRITABLE.sub(lambda match: f"{_MARK}{ord(match[0]):04x}", value)


def read_text(written: str) -> str:
    """Return the text of a written form, the inverse of `text`."""
    if written.isascii():
        return written
    return _MARKED.sub(lambda match: chr(int(match[1], 16)), written)


_packer = msgpack.Packer(unicode_errors="surrogatepass", autoreset=True)


def blob(value: bytes) -> bytearray:
    """Return bytes as a bytearray: Python's SQLite takes a microsecond longer over an argument of type `bytes`."""
    return bytearray(value)


def pack(value: Any) -> bytearray:
    """Return the packed form of a map of plain values; a tuple in the map reads back as a list."""
    return blob(_packer.pack(value))


def pack_lane(outcomes: Mapping[int, str], others: Mapping[str, LaneOutcomes]) -> bytearray:
    """Return the packed form of an inbound lane: outcomes by number, and (floor, outcomes) by the other epochs."""
    return pack({**outcomes, **{epoch: (floor, dict(each)) for epoch, (floor, each) in others.items()}})


def unpack_lane(raw: bytes | bytearray) -> tuple[dict[int, str], dict[str, LaneOutcomes]]:
    """Return the outcomes and the other epochs of an inbound lane. Raises ValueError for bytes that no store has
    written."""
    values = unpack(raw)
    outcomes = {number: outcome for number, outcome in values.items() if type(number) is int}
    others: dict[str, LaneOutcomes] = {}
    for epoch, value in values.items():
        if type(epoch) is str:
            if type(value) is not list or len(value) != 2 or type(value[0]) is not int or type(value[1]) is not dict:
                raise ValueError("no lane of another epoch")
            others[epoch] = LaneOutcomes(*value)
    if len(outcomes) + len(others) != len(values):
        raise ValueError("no outcomes by number")
    for each in (outcomes, *(other.outcomes for other in others.values())):
        if not all(type(number) is int and type(outcome) is str for number, outcome in each.items()):
            raise ValueError("no outcomes by number")
    return outcomes, others


def unpack(raw: bytes | bytearray) -> dict[Any, Any]:
    """Return the map of a packed form. Raises ValueError for bytes that `pack` has not made."""
    try:
        value = msgpack.unpackb(raw, unicode_errors="surrogatepass", strict_map_key=False)
    except TypeError as error:  # a map with a key that no map can have
        raise ValueError(str(error)) from None
    if type(value) is not dict:
        raise ValueError("no map")
    return value


def summed_shares(
    rows: Iterable[tuple[str, str | None, bytes | bytearray | None, int, int]],
) -> dict[str, dict[str, tuple[int, int]]]:
    """Return messages and bytes by queue and sender (see `sharer_of`), of rows of queue, sender, packed meta, messages
    and bytes, without late outcomes. The meta counts where there is no sender; with a damaged one a message counts as
    one of the handlers."""
    shares: dict[str, dict[str, tuple[int, int]]] = {}
    for queue, sender, meta, messages, size_bytes in rows:
        sharer = sharer_of(queue, sender, _peer_of(meta) if sender is None else None)
        if sharer is not None:
            senders = shares.setdefault(queue, {})
            before = senders.get(sharer, (0, 0))
            senders[sharer] = before[0] + messages, before[1] + size_bytes
    return shares


def _peer_of(meta: bytes | bytearray | None) -> object:
    try:
        return None if meta is None else unpack(meta).get("peer")
    except ValueError:  # the reader of the message reports the damage
        return None


def counts_by_server(rows: Iterable[Sequence[Any]]) -> dict[str, int]:
    """Return counts by server, of rows of lane and count."""
    counts: Counter[str] = Counter()
    for queue, count in rows:
        counts[owner_of(read_text(queue))] += count
    return dict(counts)


def summed_up(outcomes: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return the outcome of each target, the worst of several; None counts as `queued`."""
    found: dict[str, str] = {}
    for target, known in outcomes:
        outcome = known or QUEUED
        before = found.get(target)
        if before is None or severity(outcome) > severity(before):
            found[target] = outcome
    return found


def of_all_brokers(outcomes: Iterable[tuple[str, str, str | None]]) -> dict[str, str]:
    """Return the outcome of each target, of (id, target, outcome) in several namespaces.

    A message that was submitted at two brokers is in both. The message is delivered where one has delivered it, and
    waits where it waits at one; an outcome stands before a note that the message is queued at another server."""
    found: dict[str, tuple[str, str | None]] = {}
    for id_, target, outcome in outcomes:
        if id_ not in found or _standing(outcome) < _standing(found[id_][1]):
            found[id_] = target, outcome
    return summed_up(found.values())


def _standing(outcome: str | None) -> int:
    """Return the rank of one of several copies of a message: that of the lowest rank stands for all."""
    if outcome in (DELIVERED, SENT):
        return 0
    return 1 if outcome is None else 3 if outcome == QUEUED else 2


def united_notes(
    mine: tuple[str, Mapping[str, Any]], theirs: tuple[str, Mapping[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Return the outcome and meta of one note for two notes of one message, which was submitted at two brokers.

    An ended note stands before a `queued` one. Of two `queued` ones the note that has counted an outcome stands: the
    other server sends each outcome once, to whichever broker. Where neither has counted, the larger count stands: the
    smaller one is from a later answer, and the outcomes between the two answers are still to come."""
    (outcome, meta), (other, others) = mine, theirs
    if outcome == other == QUEUED:
        counts = [each["left"] for each in (meta, others) if type(each.get("left")) is int]
        began = [each for each in (meta, others) if "worst" in each]
        if len(began) == 1:
            counted = {key: began[0][key] for key in ("left", "worst") if key in began[0]}
        else:
            counted = {"left": (min if began else max)(counts)} if counts else {}
            counted |= {"worst": worst(*(each["worst"] for each in began))} if began else {}
    else:
        stands, outcome = (meta, outcome) if outcome != QUEUED else (others, other)
        counted = {key: stands[key] for key in ("left", "worst") if key in stands}
    return outcome, {key: meta[key] for key in meta if key not in ("left", "worst")} | counted
