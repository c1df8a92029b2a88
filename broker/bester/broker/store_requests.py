"""What a broker keeps on disk, as plain values: the core decides what is written and read, a store does it.

A kept message waits in a *box*: a user's mailbox, or a lane (one message type on its way to one server). What entered
a box leaves it in the order of its number. When it has ended its body is gone, and what became of it can still be
asked for. Nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bester.broker.wire.messages import Meta

OUTCOME_KEPT_S = 7 * 24 * 3600
"""So long after its time to live is over, what became of a message can be asked for."""
LETTER_BYTES = 1024 * 1024 * 1024
"""Of the bodies of all dead letters."""
READ_BYTES = 64 * 1024 * 1024
"""Of the bodies of dead letters that are read at once."""
NAMES = 1_000
"""Names of a server that the store knows: a container may have another at every start, and what was queued under one
can be asked for as long as outcomes are remembered."""
NUMBERS_A_LIFE = 2**32
"""Life n of a broker numbers what it may keep from n times this: numbers rise for ever, and no write is spent on it."""


def mailbox(user: str) -> str:
    """Return the box of a user's messages."""
    return f"user/{user}"


def lane(server: str, type_: str) -> str:
    """Return the box of the messages of one type to one server. A server's name has no slash."""
    return f"lane/{server}/{type_}"


def owner_of(box: str) -> str:
    """Return the user or server whose box it is."""
    kind, _, rest = box.partition("/")
    return rest if kind == "user" else rest.partition("/")[0]


def is_mailbox(box: str) -> bool:
    """Say whether it is a user's."""
    return box.startswith("user/")


class Entry(NamedTuple):
    """One result of a command that waits for somebody.

    `number` gives the order in its box, and is no other's; `id` is the result's own, `target` how the handler named
    who gets it, `sender` the user who may ask what became of it (None: nobody may). `expires_s` is in the store's time.
    meta: `origin`, `root`, `path`, `message` (the id of the message it is a result of), `peer` (the server that has
    sent that, to be told what became of it), `push` (the sender wants to be told), `repeated` (it may have been
    delivered before), `left` and `worst` (of one that waits at another server: how many outcomes are still to come
    from there, and the worst so far).
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


class DeadLetter(NamedTuple):
    """A dead letter: a message that was given up, with the reason (a code) and the way it had come.

    meta: `root`, `origin`, `scope`, `user`, `peer`, `path`, `attempts`, `bytes` (of the body), and `server` where it
    was on its way to one.
    """

    id: str
    type: str
    body: bytes
    reason: str
    at_s: float
    meta: Meta


# --- what is written ----------------------------------------------------------------------------------------------


class Enqueue(NamedTuple):
    """A message waits from now on. One of the same id in the same box, waiting or ended, makes it a repetition: nothing
    is written, but for the mark `repeated` that what waits takes over from it, and the core is told so."""

    entry: Entry


class RecordRemote(NamedTuple):
    """A message waits elsewhere: nothing is to be delivered from here, but its `outcome` can be asked for."""

    entry: Entry
    outcome: str


class End(NamedTuple):
    """What became of a kept message: its body goes. With `forget` all of it goes, for nobody may ask."""

    number: int
    outcome: str
    forget: bool = False


class Rewrite(NamedTuple):
    """A kept message has new meta."""

    number: int
    meta: Meta


class MarkSent(NamedTuple):
    """What has numbers up to `upto` in this box has been sent out once, and may have arrived."""

    queue: str
    upto: int


class SaveLane(NamedTuple):
    """What has arrived on a lane of another server's: its epoch, and the outcomes of all numbers from `floor` on.
    A later one of the same peer and type replaces it."""

    peer: str
    type: str
    epoch: str
    floor: int
    outcomes: Mapping[int, str]


class Bury(NamedTuple):
    """A dead letter. One of the same id is replaced."""

    letter: DeadLetter


class Unbury(NamedTuple):
    """A dead letter is no more: replayed, or thrown away."""

    id: str


class RecordType(NamedTuple):
    """A message type was seen for the first time."""

    type: str


class ClockState(NamedTuple):
    """The store's time, in which entries expire, in seconds: how far it has come (`stored_s`), how far it is ahead of
    the wall clock (`skew_s`), and what it was (`boot_s`) when the monotonic clock of this run of the machine began
    (`boot` names the run, empty where nothing does)."""

    stored_s: float
    skew_s: float
    boot: str
    boot_s: float


class SaveClock(NamedTuple):
    """The state of the store's time. A later one replaces it."""

    state: ClockState


class SaveName(NamedTuple):
    """The server has this name from now on; ids of its messages begin with it. Of more than NAMES the oldest goes."""

    name: str


class SavePeer(NamedTuple):
    """Whether the server that speaks the native protocol at `address` (`host:port`) reports on what it is sent."""

    address: str
    reports: bool


class PurgeOutcomes(NamedTuple):
    """Outcomes of what expired before this are remembered no longer, and of the others the oldest (by
    number) above `most`, where `queued`, which waits elsewhere, is not among those that are counted or forgotten; of
    dead letters those above LETTER_BYTES, oldest first. It need not happen at once."""

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
    | PurgeOutcomes
)

PRESSING = (Enqueue, RecordRemote, Rewrite, MarkSent, SaveLane, Bury, Unbury)
"""What must be on disk before anything is said that follows from it. The others may wait for the next of these, or for
a tick: the worst that comes of losing them is a repetition."""


# --- what is read -------------------------------------------------------------------------------------------------


class Fetch(NamedTuple):
    """Asks for entries that wait in a box, lowest number first: `list[Entry]`, at least one where there is any.

    `after` is the number before the first; at most `limit` entries, and no more than `limit_bytes` of bodies.
    """

    queue: str
    after: int
    limit: int
    limit_bytes: int


class FindExpired(NamedTuple):
    """Asks for entries that wait and whose time was over at `at_s`, and when the next one's time is over:
    `tuple[list[Entry], float | None]`. At most `limit`, and no more than `limit_bytes` of bodies, at least one."""

    at_s: float
    limit: int
    limit_bytes: int


class FindEntry(NamedTuple):
    """Asks for the entry of this id in a lane to this server, waiting or ended, without its body: `(Entry, outcome or
    None while it waits) | None`."""

    id: str
    server: str


class FindOutcomes(NamedTuple):
    """Asks what became of all that was kept of a user's message: `dict[target, outcome]`; what waits is `queued`. Of
    several with one target the worst: any failure, `queued`, `delivered`."""

    message: str
    sender: str


class FindDeadLetters(NamedTuple):
    """Asks for dead letters, latest first: `list[Letter]`. By `id`, or by `type`, or (both None) all; at most `limit`,
    and no more than READ_BYTES of bodies, at least one. Without `bodies` these are empty, and need not be read.

    With `oldest_first` it asks for a `Pile`, the oldest first: of those above `after` and up to `upto` (0: up to the
    latest there is now), as an earlier pile has named them."""

    id: str | None
    type: str | None
    limit: int
    bodies: bool = True
    oldest_first: bool = False
    after: int = 0
    upto: int = 0


class DeadLetterPage(NamedTuple):
    """Some dead letters, oldest first, and how many of those up to `upto` come after them. `after` is the place of the
    last one: places rise, and nothing that is asked for again after it comes twice."""

    letters: list[DeadLetter]
    left: int
    after: int
    upto: int


Read = Fetch | FindExpired | FindEntry | FindOutcomes | FindDeadLetters


# --- what is there at the start ---------------------------------------------------------------------------------------


class StoredQueue(NamedTuple):
    """What waits in a box: how many, bytes of their bodies, the lowest number, and up to where it was handed out."""

    messages: int
    size_bytes: int
    lowest: int
    sent_upto: int


@dataclass(frozen=True)
class Snapshot:
    """What a broker finds when it starts. `epoch` is the store's own name, made with it; `life` counts the starts.

    `next_expiry_s` is when the first waiting entry's time is over, in the store's time, and `clock` what was saved of
    that (None: nothing yet). `dead` counts the dead letters. `names` are those the server has had, `peers` says of
    native servers, by address, whether they report. `full` says why nothing can be written just now, None where it can.
    """

    epoch: str = "none"
    life: int = 0
    queues: Mapping[str, StoredQueue] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    lanes: tuple[SaveLane, ...] = ()
    next_expiry_s: float | None = None
    dead: int = 0
    clock: ClockState | None = None
    names: tuple[str, ...] = ()
    peers: Mapping[str, bool] = field(default_factory=dict)
    full: str | None = None


@dataclass(frozen=True)
class Bounds:
    """How much may be kept, and for how long; above it the sender is told. Reasons: a disk has an end, and one user or
    server must not take it all."""

    ttl_s: float = 3 * 24 * 3600
    user_messages: int = 10_000
    user_bytes: int = 64 * 1024 * 1024
    server_messages: int = 100_000
    server_bytes: int = 1024 * 1024 * 1024
    messages: int = 1_000_000
    total_bytes: int = 8 * 1024 * 1024 * 1024
    outcomes: int = 1_000_000
    """Of what is over and may be asked for, some 400 bytes each; above it the oldest is forgotten."""
    dead_letters: int = 10_000
    """Above it a new one takes the place of the oldest: their senders were all told."""


class Budget(NamedTuple):
    """What the handlers of a type may take over one message: `timeout_s` each (None: nothing was said of it), and so
    many may die over it."""

    timeout_s: float | None
    attempts: int


class Committed(NamedTuple):
    """What became of a group of writes: `ok` False where nothing was written (no room, a broken disk, a value no store
    can hold), with `why` for people: its Keep, Note and Arrived are given up then, the others are written when they can
    be; `repeated` are the numbers of Keep and Note entries that were there before, with what has become of those
    (None: they wait)."""

    ok: bool
    repeated: Mapping[int, str | None] = {}
    why: str = ""
