"""The number of connections to one address that are opened at once: as many as get through. Pure.

A server accepts only so many connections at a time (besterd's backlog holds one or two), and the system of a server
that is asked for more delays the others by one second, then three, then seven. So one connection is opened first, and
more at once as they get through; after a failed or late one half as many, and from then on no more at once than got
through before, but for a try now and then. The other system's delays are not waited for: a connection that does not get
through in a few times the usual time is tried again.
"""

from __future__ import annotations

FIRST_PATIENCE_S = 0.3
"""Patience before anything is known of the address; a packet is round the world in this time."""
LEAST_PATIENCE_S = 0.05
"""Patience however near the address is: a process may not be scheduled for so long."""
PATIENCE = 8
"""Patience in multiples of the usual time."""
TRY_EVERY = 50
"""Connections that got through before one more than ever before is opened at once."""
SMOOTHING = 0.2
"""Weight of the latest connection in the usual time."""


class Openings:
    """Connections to one address: `opening` ones are not through yet; `open` counts those and the others. `most` bounds
    both. `patience_s` is the time for one to get through; each late one doubles the time."""

    __slots__ = ("_known", "_most", "_usual_s", "_window", "open", "opening", "patience_s")

    def __init__(self, most: int) -> None:
        self.open = 0
        self.opening = 0
        self.patience_s = FIRST_PATIENCE_S
        self._most = most
        self._window = 1.0
        self._known = float(most)  # greatest number at once that is not known to fail
        self._usual_s: float | None = None

    def may_open(self) -> bool:
        """Return whether another connection may be opened now."""
        return self.open < self._most and self.opening < int(self._window)

    def begin(self) -> None:
        """Count a connection that is opened now."""
        self.open += 1
        self.opening += 1

    def through(self, took_s: float) -> None:
        """Count an opening connection as through after `took_s` seconds: the other end has taken in the frame."""
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
