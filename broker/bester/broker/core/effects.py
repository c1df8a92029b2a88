"""Links, and the effects that the core asks its shell to carry out: plain values."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from bester.broker.store_requests import Read, Write
from bester.broker.wire.messages import Message


class Link(NamedTuple):
    """Where a party is heard and answered.

    `door` is how it came in: `ipc` or `tcp` (a listener of the fabric), `direct` (a bridge in this process), `server`
    (a link this broker opened; `key` is then the server's name). `key` tells links of one door apart.
    """

    door: str
    key: bytes


class Send(NamedTuple):
    """Send a message on a link; where that cannot be done, tell the router `undeliverable`."""

    link: Link
    message: Message


class Verify(NamedTuple):
    """Check a password off the loop and tell the router `verified`."""

    link: Link
    session: int
    user: str
    password: str
    address: str


class Notice(NamedTuple):
    """Something an operator would want to read in the log."""

    event: str
    fields: dict[str, Any]


class LookUp(NamedTuple):
    """The hosts of these servers are in doubt: look their names up, and tell the router `hosts_changed`."""

    servers: frozenset[str]


class Restart(NamedTuple):
    """A handler's process is of no use any more: whoever started it is to end it and start it again.

    `process` is its number as the shell knows it, None where the shell does not know it.
    """

    process: int | None
    name: str
    why: str


Action = Send | Verify | Notice | LookUp | Restart | Write | Read


class Effects:
    """What is to be done, gathered: `messages` for each link in order, all `others`, what is to be written to the store
    before any of it is sent, and what is to be read from it afterwards."""

    __slots__ = ("messages", "others", "reads", "writes")

    def __init__(self) -> None:
        self.messages: defaultdict[Link, list[Message]] = defaultdict(list)
        self.others: list[Verify | Notice | LookUp | Restart] = []
        self.writes: list[Write] = []
        self.reads: list[Read] = []

    def send(self, link: Link, message: Message) -> None:
        """Send a message on a link."""
        self.messages[link].append(message)

    def take(self) -> Effects:
        """Return what was gathered, and begin anew."""
        taken = Effects()
        taken.messages, self.messages = self.messages, taken.messages
        taken.others, self.others = self.others, taken.others
        if self.writes or self.reads:
            taken.writes, self.writes = self.writes, taken.writes
            taken.reads, self.reads = self.reads, taken.reads
        return taken

    def actions(self) -> list[Action]:
        """Return the same one by one: writes, reads, messages, others."""
        sends = [Send(link, each) for link, waiting in self.messages.items() for each in waiting]
        return [*self.writes, *self.reads, *sends, *self.others]
