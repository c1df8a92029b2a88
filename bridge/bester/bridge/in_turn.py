"""Connections in turn: one of each sender, then the next one of each. Pure.

A user may have a thousand connections, each with much to write: a user with one waits for one of them, not for all.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from bester.bridge.ports import ClientConnection
from bester.bridge.senders import Sender


class InTurn:
    """Queue of connections, with the names of a deque; each connection is in the queue once at most. `by_sender` is
    empty where the queue is: a look that costs no call."""

    __slots__ = ("by_sender",)

    def __init__(self) -> None:
        self.by_sender: OrderedDict[Sender, deque[ClientConnection]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self.by_sender)

    def append(self, connection: ClientConnection) -> None:
        """Add a connection behind those of its sender."""
        sender = connection.session.window.sender
        connections = self.by_sender.get(sender)
        if connections is None:
            self.by_sender[sender] = deque((connection,))
        else:
            connections.append(connection)

    def extend(self, connections: Iterable[ClientConnection]) -> None:
        """Add connections in their order."""
        for connection in connections:
            self.append(connection)

    def popleft(self) -> ClientConnection:
        """Take the next connection. Raises KeyError where there is none."""
        sender, connections = self.by_sender.popitem(last=False)
        connection = connections.popleft()
        if connections:
            self.by_sender[sender] = connections
        return connection
