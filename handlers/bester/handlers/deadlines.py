"""Time limits of requests: the broker's limit of each type, and the request's own deadline. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bester.broker.wire.messages import Meta
from bester.broker.wire.runs import Received

GRACE_S = 0.5
"""Delay of a worker's deadline after the broker's. By then the broker has ended the request as `timeout`, and the
handler's own time limits have fired."""
USELESS_S = 10.0
"""Time after the limit from which a running request counts as hanging, not as slow."""


class Deadlines:
    """Limits of one worker's types. Times are monotonic seconds; an unknown limit is infinite. `own_s` are the limits
    that the worker itself has set, by type."""

    def __init__(self, own_s: Mapping[str, float]) -> None:
        self._own_s = dict(own_s)
        self._usual_s = math.inf
        self._of_type: dict[str, float] = {}

    def set_limits(self, options: Meta) -> None:
        """Read the limits in a WELCOME: `request_ms` for all types, `timeouts_ms` for types with their own."""
        self._usual_s = _seconds(options.get("request_ms"))
        timeouts = options.get("timeouts_ms")
        self._of_type = {
            type_: limit_s
            for type_, value in (timeouts.items() if type(timeouts) is dict else ())
            if math.isfinite(limit_s := _seconds(value))
        }

    @property
    def usual_s(self) -> float:
        """Seconds that a message may take whose type has no limit of its own."""
        return self._usual_s

    def limit_s(self, type_: str) -> float:
        """Return the seconds that a message of this type may take."""
        return min(self._of_type.get(type_, self._usual_s), self._own_s.get(type_, math.inf))

    def due(self, request: Received, came: float) -> float:
        """Return the deadline of a request received at `came`: its sender may have set a shorter limit."""
        limit_s = self._of_type.get(request.type, self._usual_s)
        sender = request.meta.get("deadline_ms")
        due = came + (limit_s if sender is None else min(_seconds(sender), limit_s)) + GRACE_S
        own_s = self._own_s.get(request.type)
        return due if own_s is None else min(due, came + own_s)


def _seconds(value: Any) -> float:
    return value / 1000 if type(value) in (int, float) and value >= 0 else math.inf
