"""Runs: consecutive messages of one kind in the batch of a link, which are handled together. Pure.

What a run has in common (the peer, its user, the type, the worker) is looked up once a run, and counts change once a
run. The effects of a run are those of its messages one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from bester.broker.core.peer import Peer

Run = tuple[type[Any], Sequence[Any]]
"""(kind, messages): messages of one class, in order."""
CarryOut = Callable[[Peer, Sequence[Any], float], None]
"""Function that carries out a run of a peer, given the time."""


def runs(messages: Sequence[Any]) -> Iterable[Run]:
    """Return the runs of a batch, in order. Most batches are one run, and are not copied."""
    if not messages:
        return ()
    first = type(messages[0])
    if len(messages) == 1 or list(map(type, messages)).count(first) == len(messages):
        return ((first, messages),)
    return [(kind, list(run)) for kind, run in groupby(messages, type)]


def one_by_one(carry_out: Callable[[Peer, Any, float], None]) -> CarryOut:
    """Return the function that carries out a run message by message: for kinds that seldom stand in runs."""

    def each(peer: Peer, messages: Sequence[Any], now: float) -> None:
        for message in messages:
            carry_out(peer, message, now)

    return each
