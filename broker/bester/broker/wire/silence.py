"""Silence of a party is judged up to the last reading of its socket: a party that spoke and was not read yet is not
silent. Pure.

A side that is busy, or was stopped, finds many messages waiting. Time in which nothing was read proves nothing.
"""

from __future__ import annotations


class ReadUntil:
    """The time up to which everything that had arrived at a socket was read: `until`.

    A socket without waiting input was read up to now. A socket with much input is never empty, but takes one message of
    each sender in turn: after as many messages as there are senders, what had arrived before was read.
    """

    __slots__ = ("_looked", "_read", "until")

    def __init__(self, now: float) -> None:
        self.until = now
        self._looked = now
        self._read = 0

    def look(self, now: float, *, waiting: bool, read: int, senders: int) -> None:
        """Look at the socket: whether input is `waiting`, how many messages were `read` in all, and how many `senders`
        there are at most."""
        if not waiting:
            self.until = now
        elif read - self._read >= senders:
            self.until = max(self.until, self._looked)
        else:
            return
        self._looked, self._read = now, read
