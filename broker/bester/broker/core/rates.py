"""Rates of senders, estimated without any work on a message. Pure.

A flood whose messages are handled at once waits nowhere, and no count of waiting messages shows the sender. Once a
second the messages that handlers hold are looked at: the part of them that is of one sender is, type by type, that
sender's part of the messages that came. How many came is counted anyway.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

LOOKS = 11
"""Looks that are remembered: a flood is one that lasts for ten seconds, and a burst is none."""
HELD = 512
"""Messages of one look: enough for the part of a sender, and some ten microseconds."""
SHOWN = 10
"""Rows of the list: a person reads no more."""


class Look(NamedTuple):
    """Counts at one time: `received` messages by type since the start, and messages that handlers `held` by (type,
    sender)."""

    at: float
    received: dict[str, int]
    held: Counter[tuple[str, Hashable]]


class Rates:
    """The latest looks, one a second."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque(maxlen=LOOKS)

    def look(self, received: Mapping[str, int], held: Iterable[tuple[str, Hashable]], now: float) -> None:
        """Take in how many messages of each type have come, and type and sender of messages that handlers hold."""
        self._looks.append(Look(now, dict(received), Counter(islice(held, HELD))))

    def latest(self) -> float:
        """Return the messages a second between the latest two looks, 0 where there are fewer."""
        if len(self._looks) < 2:
            return 0.0
        before, last = self._looks[-2], self._looks[-1]
        return sum(last.received.values(), -sum(before.received.values())) / max(last.at - before.at, 1e-9)

    def as_map(self) -> dict[str, Any]:
        """Return the messages a second of all senders, `per_s`, and of the `fastest` users and servers, over `window_s`
        seconds: 0 and nobody until so much time has passed."""
        if len(self._looks) < LOOKS:
            return {"window_s": 0.0, "per_s": 0.0, "fastest": []}
        first, last = self._looks[0], self._looks[-1]
        window_s = max(last.at - first.at, 1e-9)
        came = {type_: count - first.received.get(type_, 0) for type_, count in last.received.items()}
        held: Counter[tuple[str, Hashable]] = Counter()
        for look in self._looks:
            held.update(look.held)
        of_type: Counter[str] = Counter()
        for (type_, _), count in held.items():
            of_type[type_] += count
        rates: dict[Hashable, float] = {}
        for (type_, sender), count in held.items():
            rates[sender] = rates.get(sender, 0.0) + came.get(type_, 0) * count / of_type[type_] / window_s
        fastest = heapq.nlargest(SHOWN, rates.items(), key=lambda each: each[1])
        return {
            "window_s": round(window_s, 3),
            "per_s": round(sum(came.values()) / window_s, 3),
            "fastest": [
                {"kind": kind, "sender": name, "per_s": round(per_s, 3)}
                for (kind, name), per_s in ((_named(sender), per_s) for sender, per_s in fastest)
            ],
        }


def _named(sender: Hashable) -> tuple[str, str]:
    """Return whether a sender is a user or a server, and the name."""
    return ("server", str(sender[1])) if isinstance(sender, tuple) else ("user", str(sender))
