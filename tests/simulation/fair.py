"""Shares of the bridge's input: users flood a real bridge in virtual time, and each gets an equal share.

`python -m tests.simulation.fair --seeds 300` plays that many seeds; `--seed N` plays one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from random import Random
from unittest.mock import patch

from bester.bridge.frames import frame
from bester.bridge.session import Session, Step
from bester.broker.wire.messages import Report, Submit
from tests.unit.bridge_stand import ListConnection, Scene
from tests.world.clock import BrokenRuleError

TURN_S = 0.02
"""Virtual seconds of one turn of the loop."""
WINDOW_TURNS = 500
"""Turns over which shares are compared: 10 s."""
TURN_UNITS, QUANTUM = 64, 8
TOLERANCE = 0.1


class Flood:
    """Users with random numbers of connections, sizes and types who always have something to say, and one who comes
    and goes. `units` counts the units that the intake charged to each user.

    Each user has two connections at least. A connection that was parked is read from again in the next turn, which is
    a long time here: its user would have nothing to say at the end of a batch, and others work off their debts then."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.scene = Scene(turn_units=TURN_UNITS, turn_quantum=QUANTUM, max_connections=1_000_000)
        self.units: Counter[str] = Counter()
        self.most = 0
        self.users: dict[str, list[ListConnection]] = {}
        self.batches: dict[str, bytes] = {}
        for number in range(self.random.randint(2, 5)):
            user = f"u{number}"
            self.users[user] = [self.scene.log_in(user) for _ in range(self.random.choice((2, 3, 8)))]
            self.batches[user] = self._batch()
        self.guest = self.scene.log_in("guest")
        self.owner = {each.session.number: user for user, several in self.users.items() for each in several}

    def _batch(self) -> bytes:
        """Return frames of one user: far more than a turn handles."""
        size = self.random.choice((1, 100, 5_000, 60_000))
        text = "x" * size
        type_ = self.random.choice(("dummy", "nobody-serves"))
        body = f'{{"payload":{{"type":"{type_}","data":"{text}","id":"i"}}}}'
        return frame(body.encode()) * (400 // (1 + (size >> 12)))

    def play(self) -> None:
        """Play 10 s. Raises BrokenRuleError where a share is wrong or the guest waits for too long."""
        honest = Session.proceed

        def counting(session: Session, now: float, ration: int) -> Step:
            step = honest(session, now, ration)
            if session.number in self.owner:
                self.units[self.owner[session.number]] += session.spent
            self.most += session.spent
            return step

        with patch.object(Session, "proceed", counting):
            since: int | None = None
            for turn in range(WINDOW_TURNS):
                if since is None and self.random.random() < 0.1:
                    since = turn
                    self.guest.written = b""
                    self.scene.bridge.on_bytes(self.guest, frame(b'{"payload":{"type":"dummy","data":1,"id":"g"}}'))
                self._turn()
                if since is not None and self.guest.count("g"):
                    since = None
                self._look(since, turn)
        fair = sum(self.units.values()) / len(self.users)
        if any(abs(self.units[user] - fair) > TOLERANCE * fair for user in self.users):
            raise BrokenRuleError(f"shares differ: {dict(self.units)}")

    def _turn(self) -> None:
        for user, several in self.users.items():
            for connection in several:
                if connection.reading:
                    self.scene.bridge.on_bytes(connection, self.batches[user])
                connection.written = b""
        self.scene.now += TURN_S
        self.most = 0
        self.scene.one_turn()
        submits = self.scene.take(Submit)
        self.scene.bridge.receive([Report(each.token, 0, "unknown-type", f"s/{each.token}", {}) for each in submits])

    def _look(self, since: int | None, turn: int) -> None:
        """Check the bound of a turn, and that the guest has waited two rounds at most."""
        largest = 2 * max(len(batch) for batch in self.batches.values()) >> 12
        if self.most > TURN_UNITS + largest + QUANTUM:
            raise BrokenRuleError(f"{self.most} units in one turn")
        rounds = 2 * (len(self.users) + 1) * (QUANTUM + largest) // TURN_UNITS + 2
        if since is not None and turn - since > rounds:
            raise BrokenRuleError(f"the guest waits for {turn - since} turns")


def play_fair(seeds: Iterable[int]) -> str:
    """Play seeds up to the first that breaks a rule; return the failure's text, or nothing."""
    for seed in seeds:
        try:
            Flood(seed).play()
        except BrokenRuleError as error:
            return f"seed {seed}: {error}\nagain: python -m tests.simulation.fair --seed {seed}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.fair", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to play")
    parser.add_argument("--seed", type=int, help="play this one alone")
    options = parser.parse_args()
    failure = play_fair(range(options.seeds) if options.seed is None else [options.seed])
    print(failure or "shares held, 0 rules broken")
    return bool(failure)


if __name__ == "__main__":
    sys.exit(main())
