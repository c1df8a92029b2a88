"""Senders: the parties among whom the bridge shares its input and the room for unreported messages. Pure.

A user is one sender, with however many connections; so is a native server's host. All strangers together are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bester.bridge.ports import ClientConnection
    from bester.bridge.submissions import Submissions

Key = tuple[str, ...]
"""Key of a sender: ("user", name), ("host", address) of a native server, or STRANGERS."""
STRANGERS: Key = ("strangers",)
"""Key of the one sender that all strangers are."""

FAN_LEFT = 0.99
"""Part of a sender's `fan` that is left after another message with fewer copies."""
MOST_FAN = 64
"""Bound of a sender's `fan` for each copy of a message."""
FREE_COPIES = 8 * 1024
"""Bytes that the copies of one body may cost beside the body itself, uncharged: of small bodies the number of messages
is the bound. With their copies charged, a user with 80 connections had room for one batch at a time, and the server
waited for the handler between any two."""
MOST_CHARGED = 1024 * 1024
"""Bound in bytes of what a body counts by its sender's `fan`: one message must not fill the room of all."""


class Sender:
    """Party with a share. `count` and `size_bytes` are its unreported messages and questions, over all connections.

    `fan` is about what a byte of its latest messages has cost the bridge, in bytes: the copies that were made, and more
    where its own connections had no room for them. `ready` are its connections with frames that may be handled now, in
    turn; `blocked` those whose frames wait until the sender has fewer unreported messages. `units` orders the turns of
    senders: what it has had of the input, see `intake`. `submissions` are the messages at the broker to which this
    sender's go; whoever adds the sender to a bridge sets them.
    """

    __slots__ = ("blocked", "connections", "count", "fan", "key", "ready", "size_bytes", "submissions", "units")

    submissions: Submissions

    def __init__(self, key: Key) -> None:
        self.key = key
        self.connections = 0
        self.count = 0
        self.size_bytes = 0
        self.fan = 1.0
        self.units = -inf
        self.ready: dict[ClientConnection, None] = {}
        self.blocked: dict[ClientConnection, None] = {}

    def on_copies(self, copies: int, messages: int = 1) -> None:
        """Note how many copies of each of some messages of this sender are made, one for each connection that gets the
        message."""
        if copies == self.fan:
            return
        for _ in range(messages):
            left = self.fan * FAN_LEFT
            if left <= copies:
                self.fan = max(copies, 1.0)
                return
            self.fan = max(left, 1.0)

    def on_refused(self, copies: int) -> None:
        """Note that a connection had no room for its copy: fewer messages may be on their way at once."""
        self.fan = min(self.fan * 2, copies * MOST_FAN)


class Senders:
    """The senders of all connections. A sender without a connection is forgotten, so that their number is bounded as
    the connections are."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Sender] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Sender]:
        return iter(self._by_key.values())

    def find(self, key: Key) -> Sender | None:
        """Return the sender with a key, None where it has no connection."""
        return self._by_key.get(key)

    def join(self, key: Key) -> Sender:
        """Return the sender of another connection."""
        sender = self._by_key.get(key)
        if sender is None:
            sender = self._by_key[key] = Sender(key)
        sender.connections += 1
        return sender

    def leave(self, sender: Sender) -> None:
        """Count a connection out."""
        sender.connections -= 1
        if not sender.connections:
            del self._by_key[sender.key]
