"""Notes of messages that are queued at other servers, counted by server: no server makes this one keep more than a
bound of them. Pure.

The store purges the notes of expired messages by itself: a count may be too high, never too low. Above the bound the
store is told how many to keep, and counts exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

from bester.broker.core.effects import Effects
from bester.broker.store_requests import ForgetRemote

SLACK = 16
"""Part of the bound (a sixteenth) that is forgotten at once: deleting one note for each new one would cost more."""


class RemoteNotes:
    """Counts by server. `counts` are those of the store at the start, `most` is the bound for one server."""

    def __init__(self, out: Effects, counts: Mapping[str, int], most: int) -> None:
        self._out = out
        self._most = most
        self.counts = dict(counts)
        self.forgotten = 0

    def add(self, server: str) -> None:
        """Count a note; above the bound have the oldest forgotten."""
        count = self.counts.get(server, 0) + 1
        if count > self._most:
            keep = self._most - self._most // SLACK
            self.forgotten += count - keep
            self._out.reached["server_outcomes"] += count - keep
            count = keep
            self._out.writes.append(ForgetRemote(server, keep))
        self.counts[server] = count

    def adopt(self, counts: Mapping[str, int]) -> None:
        """Count notes that were moved here from another broker of this server; the next one of a server that has more
        than the bound has the oldest forgotten."""
        for server, count in counts.items():
            self.counts[server] = self.counts.get(server, 0) + count

    def remove(self, server: str) -> None:
        """Count a note less: its message has ended over there."""
        count = self.counts.get(server, 0) - 1
        if count > 0:
            self.counts[server] = count
        else:
            self.counts.pop(server, None)
