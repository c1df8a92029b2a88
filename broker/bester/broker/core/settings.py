"""Settings of one broker and every limit of the core, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bester.broker.store_requests import Bounds
from bester.broker.wire.address import Network
from bester.broker.wire.messages import HEARTBEAT_MS, MAX_CREDIT, MAX_LEASE_MS, REQUEST_MS


class Route(NamedTuple):
    """A configured server: its address, the types that it may send to this one, and those that it may be sent.

    `accept_types` and `send_types` None: every public type. For a native server: `reports` is False where the server is
    known never to report, `ordered` is True where messages of one type are sent to it one after the other; `tls`:
    messages to it go over TLS; `certified`: it proves itself by a certificate, and its address proves nothing. `key` is
    the public key of its fabric, None where the link to it is not encrypted. `trace`: it is told the steps of the
    messages that it sent here.
    """

    name: str
    fabric: str | None = None
    native: str | None = None
    accept_types: frozenset[str] | None = None
    reports: bool = True
    ordered: bool = False
    key: str | None = None
    tls: bool = False
    certified: bool = False
    send_types: frozenset[str] | None = None
    trace: bool = False


class Grant(NamedTuple):
    """Rights of a public key: one role; for a server its name, for a handler its types.

    `name` is the party's name in the configuration. `commands` are those that a handler may use, None: every command.
    """

    role: str
    name: str
    types: frozenset[str] = frozenset()
    commands: frozenset[str] | None = None


@dataclass(frozen=True)
class Limits:
    """Every bound of the core, with its reason."""

    heartbeat_s: float = HEARTBEAT_MS / 1000
    """Interval of heartbeats; a peer that is silent for three of them is lost."""
    handler_wait_s: float = 5.0
    """Time that a message waits for a handler of its type to come (back)."""
    handler_again_s: float = 20.0
    """The same for a message that a handler held when it died: longer than the pause before a handler that dies
    repeatedly is started again."""
    request_s: float = REQUEST_MS / 1000
    """Time that a handler may take over one message (or its lease, where that is longer), and time that a message may
    wait for a busy handler."""
    max_lease_s: float = MAX_LEASE_MS / 1000
    """Longest lease of a handler: the time that it may be silent, and may take, over one message; senders wait no
    longer."""
    stuck_s: float = 5.0
    """Time for which all credit of a handler may be held by settled messages before the handler is passed over: a
    handler that knows its deadlines frees its credit within a second of them."""
    fallen_s: float = 30.0
    """Time in which a handler that fell silent may come back before its process is started again: a process that was
    merely stopped, or busy for too long, is back by then."""
    max_fallen: int = 1_024
    """Such processes remembered; the oldest is forgotten first."""
    adoption_look_s: float = 3.0
    """Time between two looks for what another broker of this server has left in a shared store: a third of a lease."""
    adopted_at_once: int = 2_000
    """Messages and outcomes that are adopted in one transaction, some 0.1 ms each: commits wait behind it. Larger parts
    are not adopted sooner."""
    report_s: float = 5.0
    """Time in which a server may answer a message before the message is queued on disk, and its sender gets
    `queued`."""
    relay_s: float = 60.0
    """Time in which a server may answer at all, before the message is sent again: longer than a handler there may
    take."""
    record_s: float = 10.0
    """Time for which the report on a message that is queued at another server waits for a store that is away: longer
    than a database takes to start again, and shorter than a client waits for a report."""
    first_retry_s: float = 1.0
    last_retry_s: float = 600.0
    """Back-off of messages queued for a server doubles between these two."""
    window: int = 64
    """Messages of one queue in flight at once: enough to keep a link busy, few enough to send again."""
    window_bytes: int = 1024 * 1024
    """The same in bytes of their bodies; one always passes."""
    inflight_bytes: int = 64 * 1024 * 1024
    """Bodies of kept messages in flight to all users, and as many to other servers, an eighth of them to one. A queue
    fetches an eighth of what is left at most, and one message always; users above the bound wait in line, and what is
    discarded waits for nothing. Thousands who come back at once, each to a full window, would fill the memory."""
    remember_s: float = 900.0
    """Time for which a repeated message (from a bridge, or with a client's `dedup`) is recognized: longer than
    a bridge holds a message."""
    max_remembered: int = 262_144
    """Messages remembered for that, some 200 MiB; the oldest is forgotten first."""
    max_remembered_of_one: int = 65_536
    """The same for one user, or for the emissions of one type."""
    sweep_at: int = 1_024
    """Cases of one bridge at which ended ones are first swept out."""
    max_relayed: int = 65_536
    """Messages of other servers remembered by id, besides the numbers of their lanes."""
    expiries: int = 100
    """Expired messages that are ended at once."""
    attempts: int = 3
    """Handlers that may die over a message, each while holding this message alone, before the message is given up."""
    suspect_s: float = 600.0
    """Time that a message whose handler died waits for its next attempt: hundreds of such messages may be given to
    handlers one at a time. No longer than a bridge holds a message."""
    max_held: int = 200_000
    """Messages with handlers or waiting for one; above it a message is refused as overloaded."""
    max_held_bytes: int = 512 * 1024 * 1024
    """The same in bytes of their bodies."""
    max_waiting: int = 50_000
    """Messages of one type that wait for a handler, so that one type cannot use up the room of all. A sender may have
    as many of them waiting as are left by all: one alone half."""
    max_waiting_bytes: int = 256 * 1024 * 1024
    """The same in bytes, of all senders: half of `max_held_bytes`, so that one stuck type leaves room for others.
    Bridges together have half of these bytes, and of `max_waiting` messages, as credit: they wait before the broker has
    to refuse."""
    stuck_waiting: int = 256
    """Messages of one type that wait and do not move, above which the type counts as stuck: bridges send no more of it,
    and wait. Fewer harm nobody."""
    stuck_waiting_bytes: int = 8 * 1024 * 1024
    """The same in bytes, for large messages."""
    stuck_waiting_s: float = 1.0
    """Time without any movement after which a type with a handler counts as stuck: a handler that is merely busy moves
    some."""
    max_frames: int = 20_000
    """Frames that one command may become, targets times their connections: one for each connection that a bridge may
    have."""
    targets_at_once: int = 512
    """Users to whom the results of one reply are sent in one turn, where one who is away counts as four: some
    milliseconds, with those of the store. The others follow in later turns."""
    targets_later: int = 20_000
    """Users left to later turns, of two of the largest replies; above it the oldest ones follow at once: what comes
    for them meanwhile waits behind."""
    targets_later_bytes: int = 64 * 1024 * 1024
    """The same in bytes of their bodies, one for each command."""
    max_lane: int = 10_000
    """Messages of one type in transfer to one server."""
    max_lane_of_one: int = 128
    """The same of one sender, where another one sends there, too: what is above waits here for the answers to the
    others, for all that a sender has in transfer is before what others send later. More at a server that is far away,
    as long as its answers do not take longer for it."""
    max_lanes: int = 4_096
    """Types of which messages are queued for one server; each is looked at several times a second."""
    max_parties: int = 20_000
    """Peers on the fabric: as many as a process may have descriptors; the HELLO of another one is refused."""
    max_sessions: int = 1_048_576
    """Sessions of one bridge; above it a login is refused."""
    max_resumes: int = 1_024
    """Lives of bridges that have lost their link and may come back; the life without a link for longest is forgotten
    first."""
    max_unacked: int = 524_288
    """Reports that a bridge has not counted yet: twice as many as may wait on its link. Where a bridge counts none, its
    oldest are forgotten."""
    max_types: int = 20_000
    """Types of one handler; a HELLO with more is refused. As many types are remembered after their handlers have
    gone."""
    max_values: int = 262_144
    """Values of one message of a handler or another server by tcp, an array or a map counted as eight more: a reply of
    10,000 commands with one target each has 210,000. To read as many takes some milliseconds; eight times as many, the
    bound for bridges and parties of this machine, take eight times as long. A message with more is refused."""
    max_credit: int = MAX_CREDIT
    """Credit of one handler; a HELLO with more is refused."""
    max_strangers: int = 4_096
    """Links that spoke before their HELLO and are remembered, so that each is answered at most once a heartbeat."""
    max_roots: int = 65_536
    """Roots whose results are counted at once; the oldest is forgotten first."""
    restart_s: float = 60.0
    """Time after the start in which a server gets `no-handler` where a client gets `unknown-type`."""
    login_s: float = 8.0
    """Time in which a handler must decide a login, its wait for the handler included: a login behind a full queue of
    checks waits for two others before it, and has its answer within the 30 s after which a bridge gives up."""
    max_logins: int = 256
    """Logins that handlers decide, or that wait for one: four times what the shell asks at once. Their passwords are in
    memory."""
    max_copies: int = 1_000
    """Messages that one shadow holds, or that wait for it: a second of a busy type. A copy above this bound or the next
    one is dropped and counted, and nobody waits for it."""
    max_copies_bytes: int = 16 * 1024 * 1024
    """Bytes of the bodies and answers of these messages."""
    trace: int = 8192
    """Steps of messages remembered for `trace`: about two seconds at 2,000 messages a second. Above that rate a sample
    is remembered, so that the time stays."""


class Budget(NamedTuple):
    """Budget of a type for one message: `timeout_s` of each handler (None: not configured), and `attempts`, the
    handlers that may die over it."""

    timeout_s: float | None
    attempts: int


COUNTED = (
    "max_held", "max_held_bytes", "max_waiting", "max_waiting_bytes", "max_frames", "max_lane", "max_lanes",
    "max_parties", "max_values", "max_sessions", "max_logins", "max_copies", "max_copies_bytes", "max_resumes",
    "max_fallen", "max_unacked", "max_strangers", "max_roots", "max_remembered", "max_remembered_of_one", "max_relayed",
    "server_outcomes",
    "user_messages", "user_bytes", "sender_share", "server_messages", "server_bytes", "messages", "total_bytes",
    "outcomes", "dead_letters",
)  # fmt: skip
"""Bounds of the core and of the store at which something is refused, dropped or forgotten early: each is counted."""


@dataclass(frozen=True)
class Settings:
    """Identity of this broker, and everything configured.

    `broker` is this broker's name among those of the server, empty where there is no other.
    `hosts` maps an IP address to the names of the native servers there, and `unknown_hosts` are the servers whose
    address is not known, both at the start (see `hosts.Hosts`). `budgets` are the configured timeouts and attempts by
    type. `type_users` are the users who may send a type, by type; any user may send a type without an entry.
    `type_commands` are the commands that the handlers of a type may use; handlers of a type without an entry may use
    every command. `shadows` are the names of the handlers that get copies alone, `auth_handlers` those of the declared
    handlers that decide logins. `reachable` are addresses and networks of this machine and its link that unlisted
    targets may have.
    `spans`: the shell exports the spans of traced messages.
    `grants` are the known public keys. `routes` and `grants` are changed by `Router.on_reloaded` alone.
    """

    name: str
    broker: str = ""
    open_accounts: bool = False
    accept: str = "listed"
    routes: Mapping[str, Route] = field(default_factory=dict)
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown_hosts: frozenset[str] = frozenset()
    declared_types: frozenset[str] = frozenset()
    admin_info: str = ""
    bounds: Bounds = field(default_factory=Bounds)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    grants: Mapping[str, Grant] = field(default_factory=dict)
    type_users: Mapping[str, frozenset[str]] = field(default_factory=dict)
    type_commands: Mapping[str, frozenset[str]] = field(default_factory=dict)
    shadows: frozenset[str] = frozenset()
    auth_handlers: frozenset[str] = frozenset()
    reachable: tuple[Network, ...] = ()
    spans: bool = False
    limits: Limits = field(default_factory=Limits)
