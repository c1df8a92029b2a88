"""How long a request may take: what the broker says of its type, and the request's own deadline. Pure."""

from __future__ import annotations

import math
from typing import Any

from bester.broker.wire.messages import Meta, Request

GRACE_S = 0.5
"""So much later than the broker a worker gives a request up. By then the broker has ended it as `timeout`, and whatever
limit of its own the handler has has fired."""
USELESS_S = 10.0
"""What is still not done so long after its time counts as hanging, not as slow."""


class Deadlines:
    """The limits of one worker's types. Times are monotonic seconds; a limit that nobody has said is infinite."""

    def __init__(self) -> None:
        self._usual_s = math.inf
        self._of_type: dict[str, float] = {}

    def learn(self, options: Meta) -> None:
        """Take in what a WELCOME says: `request_ms` for all types, `timeouts_ms` for those that have their own."""
        self._usual_s = _seconds(options.get("request_ms"))
        timeouts = options.get("timeouts_ms")
        self._of_type = {
            type_: limit_s
            for type_, value in (timeouts.items() if type(timeouts) is dict else ())
            if math.isfinite(limit_s := _seconds(value))
        }

    @property
    def usual_s(self) -> float:
        """How long a message may take whose type has no limit of its own."""
        return self._usual_s

    def limit_s(self, type_: str) -> float:
        """Return how long a message of this type may take."""
        return self._of_type.get(type_, self._usual_s)

    def due(self, request: Request, came: float) -> float:
        """Return when a request that came at this time is given up: its sender may have named a shorter time."""
        limit_s = self._of_type.get(request.type, self._usual_s)
        own = request.meta.get("deadline_ms")
        return came + (limit_s if own is None else min(_seconds(own), limit_s)) + GRACE_S


def _seconds(value: Any) -> float:
    return value / 1000 if type(value) in (int, float) and value >= 0 else math.inf
