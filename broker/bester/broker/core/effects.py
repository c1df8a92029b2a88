"""Links, and the effects that the core asks its shell to carry out: plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from msgspec import Struct, field

from bester.broker.store_requests import Read, Write
from bester.broker.wire.messages import Message


class Link(NamedTuple):
    """A way to a peer.

    `door` is the kind of way: `ipc`, `tcp` or `curve` (a listener of the fabric), `direct` (a bridge in this process),
    `server` (a link that this broker opened; `key` is then the server's name). `key` tells links of one door apart.
    `party` is the public key that was let in by the door `curve`: the routing id in `key` may pass from one party to
    another, and a link may not.
    """

    door: str
    key: bytes
    party: str = ""


class Verify(NamedTuple):
    """Check a password off the loop, then call `Router.on_verified`."""

    link: Link
    session: int
    user: str
    password: str
    address: str


NoticeEvent = Literal[
    "adopted",
    "clock-jumped",
    "contracts-differ",
    "damaged",
    "dead-letter",
    "fabric-refused",
    "handler-failed",
    "handler-refused",
    "handler-stuck",
    "handler-unstuck",
    "hello-refused",
    "joined",
    "kept",
    "left",
    "login-failed",
    "login-slowed",
    "login-undecided",
    "lost",
    "message-refused",
    "password-changed",
    "recording-began",
    "recording-ended",
    "refused",
    "renamed",
    "reports-nothing",
    "send-refused",
    "server-held",
    "server-lost",
    "server-reached",
    "server-released",
    "shadow-differs",
    "shadow-drops",
    "storage-full",
    "storage-unavailable",
    "store-unreadable",
    "store-waits",
    "store-writable",
    "suspected",
]


class ChangePassword(NamedTuple):
    """Change a password off the loop, if the old one is right, then call `Router.on_password_changed`."""

    link: Link
    token: int
    user: str
    old: str
    new: str
    address: str


class LoginDecided(NamedTuple):
    """The handler's decision on the login with this number (see `Router.ask_login`): True or False, None where no
    handler has decided."""

    number: int
    good: bool | None


class Notice(NamedTuple):
    """An event that an operator wants to read in the log, with its facts."""

    event: NoticeEvent
    fields: dict[str, Any]


class LookUp(NamedTuple):
    """Look up the names of these servers, whose addresses are in doubt, then call `Router.on_hosts_changed`."""

    servers: frozenset[str]


class Reconnect(NamedTuple):
    """Try at once to open the link to a server of the fabric, where it is down."""

    server: str


class Restart(NamedTuple):
    """Have a useless handler process ended and started again by the program that started it.

    `process` is the number of the process, None where the shell does not know it.
    """

    process: int | None
    name: str
    why: str


class Spans(NamedTuple):
    """Export the spans of a message whose report is due, where an exporter is configured.

    `parent` is the traceparent that the message came with, `reason` the code of its failure. `spans` are those of the
    waterfall; times are in milliseconds of the wall clock.
    """

    parent: str
    id: str
    type: str
    from_ms: float
    to_ms: float
    reason: str | None
    spans: list[dict[str, Any]]


class StoreRead(NamedTuple):
    """A request for the store, and the continuation that takes its answer.

    `on_answer(answer, now)` belongs to the unit that wants to know; a store sees `request` alone. The answer's type
    stands at the request; of a question of somebody's (`FindOutcomes`, `FindDeadLetters`) it is None while the store
    cannot be read.
    """

    request: Read
    on_answer: Callable[[Any, float], None]


ShellCall = Verify | ChangePassword | LoginDecided | Notice | LookUp | Reconnect | Restart | Spans


class Effects(Struct, eq=False):  # a Struct, since every batch of a link has one
    """Effects of one call of the router, which its shell carries out in this order:

    `writes`  on disk as soon as the store can be written; then `Router.on_committed` has the messages that follow
    `reads`   answered afterwards, by `Router.on_reads`
    `messages`  that depend on none of the writes, by link, each link's in order; a message that cannot be sent is given
    to `Router.on_undeliverable`
    `calls`   passwords to check, logins that are decided, names to look up, processes to restart, lines for the log

    Beside these, `reached` counts how often something was refused, dropped or forgotten because a bound was reached, by
    the bound's name, from the broker's start on.
    """

    reached: Counter[str] = field(default_factory=Counter)
    messages: dict[Link, list[Message]] = {}
    calls: list[ShellCall] = []
    writes: list[Write] = []
    reads: list[StoreRead] = []

    def __bool__(self) -> bool:
        return bool(self.messages or self.calls or self.writes or self.reads)

    def send(self, link: Link, message: Message) -> None:
        """Send a message on a link."""
        self.messages_on(link).append(message)

    def messages_on(self, link: Link) -> list[Message]:
        """Return the messages of this call on a link, behind which others may be put."""
        return self.messages.setdefault(link, [])

    def read(self, request: Read, on_answer: Callable[[Any, float], None]) -> None:
        """Ask the store for something; `on_answer(answer, now)` is called with the answer, in a later turn."""
        self.reads.append(StoreRead(request, on_answer))

    def notice(self, event: NoticeEvent, /, **fields: Any) -> None:
        """Log an event that an operator wants to read, with its facts."""
        self.calls.append(Notice(event, fields))

    def take(self) -> Effects:
        """Return all effects collected so far, and start an empty collection."""
        taken = Effects(self.reached)
        if self.messages:
            taken.messages, self.messages = self.messages, taken.messages
        if self.calls:
            taken.calls, self.calls = self.calls, taken.calls
        if self.writes or self.reads:
            taken.writes, self.writes = self.writes, taken.writes
            taken.reads, self.reads = self.reads, taken.reads
        return taken
