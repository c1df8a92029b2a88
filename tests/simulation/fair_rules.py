"""Rules of fair shares: equal ones over any 10 s, and no party with work waits longer than two rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from bester.bridge.session import UNIT_BYTES_LOG2
from tests.world.clock import BrokenRuleError

TURN_S = 0.02
"""Virtual seconds of one turn of the loop."""
WINDOW_TURNS, STEP_TURNS = 500, 20
"""Turns over which shares are compared (10 s), and turns between the beginnings of two such windows."""
TURN_UNITS, QUANTUM = 32, 4
"""Budget of a bridge's turn, and a sender's part of a round."""
READ_BYTES = 64 * 1024
"""Bytes that a loop reads from a socket at once."""
READ_UNITS = READ_BYTES >> UNIT_BYTES_LOG2
TOLERANCE = 0.1
ROUNDS = 2
"""Rounds that a party with work may wait; a party that has used up more than a quantum waits longer for its next."""
GUEST = "guest"
"""A user who asks a question now and then."""


class Stream:
    """Endless repetition of one frame, read in pieces that end anywhere."""

    def __init__(self, content: bytes) -> None:
        self._block = content * (READ_BYTES // len(content) + 2)
        self._length = len(content)
        self._place = 0

    def read(self) -> bytes:
        """Return the next READ_BYTES."""
        begin = self._place
        self._place = (begin + READ_BYTES) % self._length
        return self._block[begin : begin + READ_BYTES]


def check_shares(totals: Sequence[Mapping[str, int]], parties: Iterable[str]) -> None:
    """Check each party's share of every 10 s. `totals` are what each party has had by each turn.

    Raises BrokenRuleError where a share is more than TOLERANCE away from an equal one.
    """
    for first in range(0, len(totals) - WINDOW_TURNS, STEP_TURNS):
        before, after = totals[first], totals[first + WINDOW_TURNS]
        had = {party: after[party] - before[party] for party in parties}
        fair = sum(had.values()) / len(had)
        if any(abs(each - fair) > TOLERANCE * fair for each in had.values()):
            raise BrokenRuleError(f"shares differ in the 10 s from turn {first}: {had}")


class Waits:
    """Count what the others have had since each party was last served: a party with work waits no longer than ROUNDS,
    after the turn that has begun. `most` is the largest part of a round that each party may take."""

    def __init__(self, most: Mapping[str, int], own_rounds: Callable[[str], int] = lambda party: 0) -> None:
        self._waits: Counter[str] = Counter()
        self._idle: set[str] = set()
        self._bounds = {
            party: max(most.values())
            + (ROUNDS + own_rounds(party)) * sum(most[other] for other in most if other != party)
            for party in most
        }

    def serve(self, party: str, units: int) -> None:
        """Note that a party was served. Raises BrokenRuleError where another one has waited for too long."""
        waits = self._waits
        for other, bound in self._bounds.items():
            if other != party and other not in self._idle:
                waits[other] += units
                if waits[other] > bound:
                    raise BrokenRuleError(f"{other} waits while the others have {waits[other]}, more than {bound}")
        waits[party] = 0

    def begin(self, party: str) -> None:
        """Note that a party has work again."""
        self._idle.discard(party)
        self._waits[party] = 0

    def rest(self, party: str) -> None:
        """Note that a party has no work."""
        self._idle.add(party)
