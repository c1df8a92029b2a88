"""The writes and reads that the core asks of a store, as plain values. Pure: a store carries them out.

A kept message is in a *queue*: a user's mailbox, or a lane (the messages of one type to one server). Messages leave a
queue in the order of their numbers. The body of a message that has ended is deleted; its outcome can still be asked
for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

from bester.broker.wire.messages import Meta
from bester.broker.wire.outcomes import OUTCOME_TYPE

OUTCOME_KEPT_S = 7 * 24 * 3600
"""Time for which the outcome of a message can be asked for after the message's time to live."""
LETTER_BYTES = 1024 * 1024 * 1024
"""Bound on the bodies of all dead letters together."""
READ_BYTES = 64 * 1024 * 1024
"""Bound on the bodies of dead letters that are read at once."""
LETTER_PAGE_BYTES = 2 * 1024 * 1024
"""Bound on the bodies of the dead letters of a page, read or not: they are replayed, or dropped, in one turn."""
NAMES = 1_000
"""Names of the server that the store remembers: a container may have another name at every start, and outcomes under
any of them can be asked for."""
HANDLERS = "handlers"
"""Key of all handlers as one sender, see `sharer_of`."""
NUMBERS_A_LIFE = 2**32
"""First number of life n of a broker, divided by n: numbers rise for ever, and need no write of their own."""


def mailbox(user: str) -> str:
    """Return the key of a user's mailbox."""
    return f"user/{user}"


def lane(server: str, type_: str) -> str:
    """Return the key of the queue of one type of messages to one server. A server's name has no slash."""
    return f"lane/{server}/{type_}"


def owner_of(queue: str) -> str:
    """Return the user or server of a queue, by its key."""
    kind, _, rest = queue.partition("/")
    return rest if kind == "user" else rest.partition("/")[0]


def is_mailbox(queue: str) -> bool:
    """Return whether a queue is a user's mailbox, by its key."""
    return queue.startswith("user/")


def sharer_of(queue: str, sender: str | None, peer: object, type_: str = "") -> str | None:
    """Return the key of the sender of whose share a message takes room, by the message's queue, sender, `peer` and
    type.

    A server counts as one sender, for only the server itself is known and not what it says of its users; so do all
    handlers, with what they emit by themselves. None where no share is counted: in the sender's own mailbox, and for
    late outcomes.
    """
    if type_ == OUTCOME_TYPE or (not is_mailbox(queue) and queue == lane(owner_of(queue), OUTCOME_TYPE)):
        return None
    key = mailbox(sender) if sender is not None else f"server/{peer}" if type(peer) is str else HANDLERS
    return None if key == queue else key


class Entry(NamedTuple):
    """A kept message: one result of a command.

    `number` is unique and gives the order in the queue; `id` is the result's id, `target` the recipient as the handler
    named them, `sender` the user who may ask for the outcome (None: nobody may). `expires_s` is in the store's time.
    meta: `origin`, `root`, `path`, `message` (id of the message that led to the result), `peer` (the server that sent
    that message, and is to have the outcome), `push` (the sender is to have the outcome), `repeated` (the result may
    have been delivered before), `at_s` (in a lane: when the message was sent, in the store's time), `left` and `worst`
    (where the message is queued at another server: how many outcomes are still to come from there, and the worst so
    far).
    """

    number: int
    queue: str
    id: str
    target: str
    type: str
    body: bytes
    sender: str | None
    expires_s: float
    meta: Meta


DAMAGED = "damaged"
"""Key in the meta of an Entry or DeadLetter that the store could not read whole: its value says why. The other fields
are as far as they could be read."""


class DeadLetter(NamedTuple):
    """A dead letter: a message that was given up, with the reason, a code.

    `at_s` is the wall clock's time. meta: `root`, `origin`, `scope`, `user`, `peer`, `path`, `attempts`, `bytes` (of
    the body), and `server` where the message was for one."""

    id: str
    type: str
    body: bytes
    reason: str
    at_s: float
    meta: Meta


# --- writes ---------------------------------------------------------------------------------------------------------


class About(NamedTuple):
    """The message that a late outcome is about: its id, its queue, and whether it has `failed`."""

    id: str
    queue: str
    failed: bool


class Enqueue(NamedTuple):
    """Put a message into its queue. Where the queue has had one of the same id, in whatever state, the new one is a
    duplicate: nothing is written but its mark `repeated`, which a ready message takes over, and the answer says so.

    A late outcome is a duplicate, too, where another broker of the server has a copy of the message that it is `about`
    and tells the outcome: of a copy that was delivered, and of one that still waits, where this one has failed."""

    entry: Entry
    about: About | None = None


class RecordRemote(NamedTuple):
    """Record the `outcome` of a message that is queued at another server: it can be asked for, and nothing is delivered
    from here."""

    entry: Entry
    outcome: str


class End(NamedTuple):
    """End a kept message with an outcome, and delete its body; with `forget` all of it, where nobody may ask."""

    number: int
    outcome: str
    forget: bool = False


class Rewrite(NamedTuple):
    """Replace the meta of a kept message."""

    number: int
    meta: Meta


class MarkSent(NamedTuple):
    """Mark all messages of a queue up to number `upto` as sent: they may have been delivered."""

    queue: str
    upto: int


class LaneOutcomes(NamedTuple):
    """The outcomes of numbers from `floor` on, in an inbound lane of one epoch."""

    floor: int
    outcomes: Mapping[int, str]


class SaveLane(NamedTuple):
    """Save an inbound lane: the epoch of the other server's store, and the outcomes of numbers from `floor` on. A later
    one of the same peer and type replaces it. `others` are those of other epochs, the one used last at the end: each
    broker of a server has a store, and so an epoch, of its own."""

    peer: str
    type: str
    epoch: str
    floor: int
    outcomes: Mapping[int, str]
    others: Mapping[str, LaneOutcomes] = MappingProxyType({})

    def epochs(self) -> Iterator[tuple[str, int, Mapping[int, str]]]:
        """Yield epoch, floor and outcomes of each epoch, that of the one used last at the end."""
        for epoch, (floor, outcomes) in self.others.items():
            yield epoch, floor, outcomes
        yield self.epoch, self.floor, self.outcomes


class Bury(NamedTuple):
    """Add a dead letter, or replace the one of the same id."""

    letter: DeadLetter


class Unbury(NamedTuple):
    """Delete a dead letter: it was replayed, or dropped."""

    id: str


class RecordType(NamedTuple):
    """Record a message type that was seen for the first time."""

    type: str


class ClockState(NamedTuple):
    """State of the store's time, in which entries expire, in seconds: `stored_s` is the time itself, `skew_s` its
    distance from the wall clock, and `boot_s` its value when the machine's monotonic clock began, in the run of the
    machine that `boot` names (empty where the system gives no name)."""

    stored_s: float
    skew_s: float
    boot: str
    boot_s: float


class SaveClock(NamedTuple):
    """Save the state of the store's time. A later one replaces it."""

    state: ClockState


class SaveName(NamedTuple):
    """Record the server's name, with which ids of its messages begin. Above NAMES the oldest is forgotten."""

    name: str


class SavePeer(NamedTuple):
    """Record whether the native server at `address` (`host:port`) reports on messages."""

    address: str
    reports: bool


class SaveHeld(NamedTuple):
    """Record whether messages to a server are held back by this server's operator."""

    server: str
    held: bool


class ForgetRemote(NamedTuple):
    """Forget the notes of messages that are queued at a server, but for the latest `keep`: their later outcomes are
    unknown here then."""

    server: str
    keep: int


class Disown(NamedTuple):
    """Record that all messages of a user up to number `upto`, and all dead letters up to `at_s` of the wall clock, are
    those of a removed account: their outcomes are for nobody, and for no new account of the name."""

    user: str
    upto: int
    at_s: float


class PurgeOutcomes(NamedTuple):
    """Forget the outcomes of messages that expired before `before_s`, and the oldest of the others, by number, above
    `most`: `queued` ones, which are at another server, are neither counted nor forgotten. Drop the oldest dead letters
    above LETTER_BYTES. A store may take several commits over all of this."""

    before_s: float
    most: int


Write = (
    Enqueue
    | RecordRemote
    | End
    | Rewrite
    | MarkSent
    | SaveLane
    | Bury
    | Unbury
    | RecordType
    | SaveClock
    | SaveName
    | SavePeer
    | SaveHeld
    | ForgetRemote
    | Disown
    | PurgeOutcomes
)

Promise = Enqueue | RecordRemote
"""Writes that outlive a failed group: late outcomes, and records of messages that are queued at other servers."""

PRESSING = (Enqueue, RecordRemote, Rewrite, MarkSent, SaveLane, Bury, Unbury, SaveHeld, Disown)
"""Writes that must be on disk before anything that follows from them is sent. The others may wait for the next of
these, or for a tick: losing them leads to a duplicate at worst."""


# --- reads ----------------------------------------------------------------------------------------------------------


class Fetch(NamedTuple):
    """Ask for the ready messages of a queue, lowest number first: `list[Entry]`, at least one where there is any.

    `after` is the number before the first; at most `limit` entries, and no more than `limit_bytes` of bodies.
    """

    queue: str
    after: int
    limit: int
    limit_bytes: int


class FindExpired(NamedTuple):
    """Ask for the messages that had expired at `at_s`, and when the next one expires: `tuple[list[Entry], float |
    None]`. At most `limit`, and no more than `limit_bytes` of bodies, at least one."""

    at_s: float
    limit: int
    limit_bytes: int


class FindEntry(NamedTuple):
    """Ask for the entry of this id in a lane to this server, without its body: `(Entry, outcome or None) | None`; the
    outcome is None where the message has not ended.

    In a shared store another broker may have sent the message, and its later outcome may come here. An entry of another
    broker that has ended, or is queued at the server, is moved to this namespace under `number`, which the core has
    reserved: the outcomes of a message are counted by one broker. Where this namespace has a note of the message too,
    `united_notes` makes one of both."""

    id: str
    server: str
    number: int = 0


class FindOutcomes(NamedTuple):
    """Ask for the outcomes of a user's message: `dict[target, outcome]`, where a message that has not ended is
    `queued`. Of several with one target the worst."""

    message: str
    sender: str


class FindDeadLetters(NamedTuple):
    """Ask for dead letters, latest first: `list[DeadLetter]`. By `id`, or by `type`, or (both None) all; at most
    `limit`, and no more than READ_BYTES of bodies, at least one. Without `bodies` these are empty.

    With `oldest_first` the answer is a DeadLetterPage, the oldest first, of those above `after` and up to `upto` (0: up
    to the latest), as an earlier page has named them. All bodies of a page, read or not, have LETTER_PAGE_BYTES at
    most."""

    id: str | None
    type: str | None
    limit: int
    bodies: bool = True
    oldest_first: bool = False
    after: int = 0
    upto: int = 0


class DeadLetterPage(NamedTuple):
    """A page of dead letters, oldest first, and how many of those up to `upto` are `left`. `after` is the serial of the
    last one on the page: serials rise, so no letter is on two pages."""

    letters: list[DeadLetter]
    left: int
    after: int
    upto: int


class FindOldest(NamedTuple):
    """Ask for the oldest message of each lane: `dict[lane, meta]`, without lanes that are empty. A meta that cannot be
    read is empty."""


class FindBrokers(NamedTuple):
    """Ask for the brokers of the same server: `Brokers`. A store of one namespace knows none."""


class Adopt(NamedTuple):
    """Move what an abandoned namespace holds into one's own: `Adopted`.

    At most `limit` messages and outcomes are moved at once, lowest number first; they get numbers from `first` on,
    which the core has reserved, so that they come after what their queues hold already. `stored_s` is the asker's own
    store's time, to which their expiries are moved. A request of the same `first` is the same adoption: where the first
    one was carried out and its answer lost, nothing more is moved.
    """

    first: int
    limit: int
    stored_s: float


Read = Fetch | FindExpired | FindEntry | FindOutcomes | FindDeadLetters | FindOldest | FindBrokers | Adopt
Question = FindOutcomes | FindDeadLetters | FindOldest | FindBrokers | Adopt
"""Reads whose asker may ask again: their answer is None where the store cannot be read."""


# --- at the start ---------------------------------------------------------------------------------------------------


class StoredQueue(NamedTuple):
    """The contents of a queue: messages, bytes of their bodies, the lowest number, and the highest that was ever
    sent."""

    messages: int
    size_bytes: int
    lowest: int
    sent_upto: int


@dataclass(frozen=True)
class Snapshot:
    """The contents of a store at the start of a broker. `epoch` is the name that was made with the store; `life` counts
    the starts.

    `next_expiry_s` is when the first message expires, in the store's time, whose saved state is `clock` (None in a new
    store). `shares` has messages and bytes in each queue by sender (see `sharer_of`): shares must hold from the first
    message after a restart. `dead` counts the dead letters. `names` are those the server has had, `peers` says by
    address whether native servers report. `held` are the servers to which messages are held
    back, `remote` counts the notes of messages that are queued at a server, `disowned` has number and time of each
    `Disown` by user. `full` says why nothing can be written now, None where it can. `is_shared`: the store has
    namespaces of other brokers of this server, which may have to be adopted.
    """

    epoch: str = "none"
    life: int = 0
    queues: Mapping[str, StoredQueue] = field(default_factory=dict)
    shares: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    lanes: tuple[SaveLane, ...] = ()
    next_expiry_s: float | None = None
    dead: int = 0
    clock: ClockState | None = None
    names: tuple[str, ...] = ()
    peers: Mapping[str, bool] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    remote: Mapping[str, int] = field(default_factory=dict)
    disowned: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    full: str | None = None
    is_shared: bool = False


class Held(NamedTuple):
    """A lease on the contents of a store that another process holds: `why` says which one, with a remedy; `left_s` is
    when the lease ends by itself, and `state`, which begins with its broker, changes with each of its renewals. Empty:
    nobody holds the lease, and a broker that adopts the contents is waited for."""

    why: str
    left_s: float
    state: tuple[object, ...]


@dataclass(frozen=True)
class Bounds:
    """Bounds on the queues; above them the sender has a failure. Reasons: a disk has an end, and one user or server
    must not take all of it."""

    ttl_s: float = 3 * 24 * 3600
    """Seconds for which a message is kept, where its sender asks for no other time; then it has expired."""
    user_messages: int = 10_000
    """Messages in the mailbox of one user; above it the sender has `mailbox-full`."""
    user_bytes: int = 64 * 1024 * 1024
    """The same in bytes."""
    sender_share: float = 0.1
    """Part of `user_messages` and of `user_bytes` that one sender may use, so that others can still write."""
    server_messages: int = 100_000
    """Messages kept for one server; above it the sender has `overloaded`. A sender with more of them than are left by
    all has so before: one alone has half."""
    server_bytes: int = 1024 * 1024 * 1024
    """The same in bytes."""
    messages: int = 1_000_000
    """Messages in all queues; above it every sender has `storage-full`. A sender with more in queues than is left by
    all has so before: one alone has half."""
    total_bytes: int = 8 * 1024 * 1024 * 1024
    """The same in bytes; `bytes` in the configuration."""
    server_outcomes: int = 50_000
    """Notes of messages that are queued at one other server, some 1.3 KB each; above it the oldest is forgotten. A
    server that answers `queued` for ever must not fill the disk."""
    outcomes: int = 1_000_000
    """Outcomes that can be asked for, some 400 bytes each; above it the oldest is forgotten."""
    dead_letters: int = 10_000
    """Above it a new one replaces the oldest: all of their senders have had their reports."""


Fault = Literal["storage-full", "storage-unavailable"]
"""Codes of a group that was not written: no room, or a store that cannot be written for another reason."""


class Committed(NamedTuple):
    """The result of a group of writes. `ok` is False where nothing was written (no room, a broken disk, a value that no
    store can hold); `code` is the reason and `why` its text for people. Its new messages and SaveLanes are given up;
    the others are written as soon as they can be. `repeated` has the numbers of duplicates among the Enqueues and
    RecordRemotes, with the outcomes of the first ones (None: not ended).

    `kept` has the numbers of the promises (late outcomes, and RecordRemotes) of a failed group: a later result has each
    of them in `late`, where it is on disk, or in `dropped`, where it was given up.

    `busy`: another process writes to the store. The store has done nothing with the group, which is to be committed
    again, or given to `Store.hold_back`. `sync_s` are the seconds that the transaction waited for the disk (in
    PostgreSQL: from its first statement to the answer to COMMIT), None where there is no disk. `forgotten` counts by
    the name of a bound what was forgotten there since the last result."""

    ok: bool
    repeated: Mapping[int, str | None] = {}
    why: str = ""
    code: Fault = "storage-full"
    busy: bool = False
    kept: frozenset[int] = frozenset()
    late: Sequence[Promise] = ()
    dropped: Sequence[Promise] = ()
    sync_s: float | None = None
    forgotten: Mapping[str, int] = {}
