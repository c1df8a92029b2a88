"""How many connections to one address are opened at once: as many as get through. Pure.

A server accepts only so many connections at a time (besterd's backlog holds one or two), and the system of a server
that is asked for more lets the rest wait a second, then three, then seven. So one connection is opened first, and more
at once as they get through; after one that did not, or got through late, half as many, and from then on no more at once
than got through before, but for a try now and then. Nobody waits for the other system's seconds: what does not get
through in a few times the usual while is tried anew.
"""

from __future__ import annotations

FIRST_PATIENCE_S = 0.3
"""How long a connection may take before anything is known of the address; a packet is round the world in this time."""
LEAST_PATIENCE_S = 0.05
"""However near the address is: a process that is not scheduled for so long is no news."""
PATIENCE = 8
"""Times what a connection usually takes."""
TRY_EVERY = 50
"""Connections that got through before one more than was known to get through is opened at once."""
SMOOTHING = 0.2
"""The part of the latest one in what a connection usually takes."""


class Openings:
    """Connections to one address: `opening` ones are not through yet; `open` counts those and the others. `most` bounds
    both. `patience_s` is how long one may take to get through; with each that takes longer it doubles."""

    __slots__ = ("_known", "_most", "_usual_s", "_window", "open", "opening", "patience_s")

    def __init__(self, most: int) -> None:
        self.open = 0
        self.opening = 0
        self.patience_s = FIRST_PATIENCE_S
        self._most = most
        self._window = 1.0
        self._known = float(most)  # so many at once were not known to fail
        self._usual_s: float | None = None

    def may_open(self) -> bool:
        """Return whether one more may be opened now."""
        return self.open < self._most and self.opening < int(self._window)

    def begin(self) -> None:
        """Count a connection that is opened now."""
        self.open += 1
        self.opening += 1

    def through(self, took_s: float) -> None:
        """Count an opening connection as through: the other end has taken in what was sent. It took so many seconds."""
        self.opening -= 1
        late = took_s > self.patience_s
        usual_s = took_s if self._usual_s is None else self._usual_s + SMOOTHING * (took_s - self._usual_s)
        self._usual_s = usual_s
        self.patience_s = max(LEAST_PATIENCE_S, PATIENCE * usual_s)
        if late:
            self._narrow()
        elif self._window < self._known:
            self._window = min(self._window + 1 / int(self._window), self._known)
        elif self._window < self._most:
            self._window += 1 / TRY_EVERY
            self._known = self._window

    def failed(self) -> None:
        """Count an opening connection as failed."""
        self.opening -= 1
        self.patience_s *= 2
        self._narrow()

    def end(self) -> None:
        """Count a connection, through or failed, as closed."""
        self.open -= 1

    def _narrow(self) -> None:
        self._known = max(1.0, int(self._window) - 1.0)
        self._window = max(1.0, self._window / 2)
