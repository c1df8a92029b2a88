"""Trace of the last steps that messages took: bounded, the oldest forgotten first."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container
from typing import Any

from bester.broker.core.clock import Clock
from bester.broker.wire.messages import HOP_LIMIT

StepTaken = tuple[float, str, str, str, str, float]
"""(at, root, id, what, where, since): at `at` seconds of the core's `now`, message `id` of `root` was `what` at `where`
(a type, a user, a server), for which it had waited since `since` (0.0: it had not).."""
HANDLER, CONSUMED, ENTERED, EMITTED, SERVER, QUEUED = "handler", "consumed", "entered", "emitted", "server", "queued"
"""Steps: given to a handler; answered by a handler without any result; taken in from a server; made by a handler on its
own initiative; sent on to a server; queued for a user who is away. Any other is how a result, or the message, ended: an
outcome, or the code of a failure."""

ALL_BELOW = 2_000
"""Messages a second of which every one is traced: two steps of each, so that the ring holds two seconds."""
BLOCK = 32
"""Of a sample, so many messages in succession are traced: of types and users that take turns, all have a part in it."""
MAX_PARTS = 2 * HOP_LIMIT + 4
"""Parts by which the id of a result can be longer than its root's: two for each handler on its way, and that of a
target."""


MAX_WHERE = 256
"""Characters of a name in a step: whoever is reached has a shorter one, and a reply may name anything."""


def shortened(name: str) -> str:
    """Return a name of a reply as a step holds the name: there are thousands of steps, and a name may be a megabyte."""
    return name if len(name) <= MAX_WHERE else f"{name[: MAX_WHERE - 1]}…"


class Trace:
    """Ring of steps at `server`, which never holds bodies.

    Under load the usual steps (given to a handler, delivered) are added for a sample of the messages alone: for one of
    `one_of`, which `takes` chooses.
    """

    def __init__(self, size: int, clock: Clock, server: str) -> None:
        self._steps: deque[StepTaken] = deque(maxlen=size)
        self._clock = clock
        self._server = server
        self.add, self.extend = self._steps.append, self._steps.extend
        self.one_of = 1
        self._taking = True
        self._due = 0  # messages to be left out until the sample is as small as it should be

    def sample(self, per_s: float) -> None:
        """Choose how many messages are traced where so many come in a second: all of them, or one of 2, 4, 8, …"""
        self.one_of = 1 << int(per_s / ALL_BELOW).bit_length()

    def takes(self, count: int) -> bool:
        """Return whether a run of so many messages, which enter together, is in the sample."""
        rest = self.one_of - 1
        if not self._taking:
            self._due -= count
            self._taking = self._due <= 0
            return False
        self._due += count * rest
        self._taking = self._due < BLOCK * rest
        return True

    def latest(self) -> str | None:
        """Return the root of the latest step, None where there is none."""
        return self._steps[-1][1] if self._steps else None

    def root_of(self, id_: str) -> str:
        """Return the root of a message by its id or that of a result; the id itself where no step has it."""
        return next((step[1] for step in reversed(self._steps) if step[2] == id_), id_)

    def of(
        self, root: str, under: Container[str] | None = None, *, after: float = -math.inf
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return the steps of one root in order, with times in milliseconds of the wall clock: of the messages `under`
        and what they led to, None: of all. No step before `after` is looked at."""
        found = []
        for at, step_root, id_, what, where, since in reversed(self._steps):
            if at < after:
                break
            if step_root == root and (under is None or _is_under(id_, under)):
                step = {"at_ms": self.wall_ms(at), "id": id_, "what": what, "where": f"{self._server}/{where}"}
                found.append(step | {"since_ms": self.wall_ms(since)} if since else step)
        found.reverse()
        return found

    def entered_from(self, root: str, server: str) -> set[str]:
        """Return the ids of the messages of one root that a server sent here."""
        return {id_ for _, of, id_, what, where, _ in self._steps if of == root and (what, where) == (ENTERED, server)}

    def wall_ms(self, at: float) -> float:
        """Return a time in milliseconds of the wall clock."""
        return round(self._clock.wall(at) * 1000, 3)


def _is_under(id_: str, ids: Container[str]) -> bool:
    """Return whether an id is one of these, or that of a result of one: each result's id is longer by a part."""
    for _ in range(MAX_PARTS):
        if id_ in ids:
            return True
        id_ = id_.rpartition(".")[0]
    return False
