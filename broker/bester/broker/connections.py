"""Connections of the encrypted doors: whose each one is, and a number that no other connection has. Pure.

A descriptor passes on to the next connection once its own has ended, and a message may be read later than that: by the
descriptor alone, what a party that has left said last would count as said by whoever has the descriptor now. So ZAP
numbers the connections that it lets in, and each message comes with the number of its connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

KEY_CHARACTERS = 40
"""Length of a key in the name of a connection."""


class Connection(NamedTuple):
    """Connection over which messages have come. `name` is the one that ZAP gave it, of its party's key and a number."""

    name: str
    identity: bytes
    descriptor: int

    @property
    def key(self) -> bytes:
        """Key of the party."""
        return self.name[:KEY_CHARACTERS].encode()

    @property
    def number(self) -> int:
        """Number of the connection: one that was let in later has a higher one."""
        return int(self.name[KEY_CHARACTERS:])


class ConnectionNumbers:
    """Numbers of the connections of all doors of a server, in the order in which ZAP lets them in.

    Before a number is given, each of `looks` is called: a door takes in there which connections it has accepted. So a
    connection has a higher number than `last` was when its door took it in, and every earlier connection with its
    descriptor has none.
    """

    def __init__(self) -> None:
        self.last = 0
        self.looks: list[Callable[[], None]] = []

    def next_name(self, key: bytes) -> bytes:
        """Return the name of a connection that is let in."""
        for look in self.looks:
            look()
        self.last += 1
        return b"%b%d" % (key, self.last)
