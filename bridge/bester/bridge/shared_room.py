"""Room that the addresses of other servers share, in connections or in waiting messages. Pure.

Another server may hold what it gets for as long as the wait for a report lasts. So an address has no more than what is
left by all: one alone half, two a third each, and so on. Servers that are not configured, of which a user may name
any number, have half of the room together. A configured server that has nothing always gets one, so that the room is
exceeded by one for each of them at most.
"""

from __future__ import annotations


class SharedRoom:
    """Room for `most`; `used` is what all addresses have of it."""

    __slots__ = ("_most", "_strangers", "used")

    def __init__(self, most: int) -> None:
        self._most = most
        self._strangers = 0
        self.used = 0

    def has_room(self, own: int, *, stranger: bool) -> bool:
        """Return whether an address that has `own` may have one more."""
        left = self._most - self.used
        if not stranger:
            return own < left or not own
        return own < min(left, max(1, self._most // 2) - self._strangers)

    def count(self, change: int, *, stranger: bool) -> None:
        """Count what addresses have more, or less, than before."""
        self.used += change
        self._strangers += change if stranger else 0
