"""Settings of one broker and every limit of the core, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bester.broker.store_requests import Bounds, Budget
from bester.broker.wire.messages import HEARTBEAT_MS, REQUEST_MS


class Route(NamedTuple):
    """A configured server: reached over the fabric or by the native protocol, and what it may send us.

    `accept_types` None: any type. Of a native one: `reports` False where it is known to report on nothing, `ordered`
    where the messages of one type go to it one after the other.
    """

    name: str
    fabric: str | None = None
    native: str | None = None
    accept_types: frozenset[str] | None = None
    reports: bool = True
    ordered: bool = False


@dataclass(frozen=True)
class Limits:
    """Every bound of the core, with its reason."""

    heartbeat_s: float = HEARTBEAT_MS / 1000
    handler_wait_s: float = 5.0
    """How long a message waits for a handler of its type to come (back)."""
    handler_again_s: float = 20.0
    """The same for one that a handler had when it died: longer than the pause before a handler that dies again and
    again is started again."""
    request_s: float = REQUEST_MS / 1000
    """How long one handler may take over one message (or its lease, where that is longer), and how long a message may
    wait for a busy one."""
    max_lease_s: float = 600.0
    """How long a handler may ask to be silent, and to take, over one message; senders wait no longer."""
    stuck_s: float = 5.0
    """How long all places of a handler may be held by messages that are over before it is passed over: one that knows
    its deadlines gives a place back within a second of them."""
    fallen_s: float = 30.0
    """How long a handler that fell silent may take to come back before its process is started again: one that was
    merely stopped, or at work for too long, is back by then."""
    max_fallen: int = 1_024
    """Processes of which that is remembered; the oldest is forgotten first."""
    report_s: float = 5.0
    """How long a server may take before what it was sent waits on disk, and its sender is told so."""
    relay_s: float = 60.0
    """How long it may take in all, before it is sent again: longer than a handler there."""
    first_retry_s: float = 1.0
    last_retry_s: float = 600.0
    """Back-off doubles between these for what waits for a server."""
    window: int = 64
    """Kept messages of one box that are out at once: as many as keep a link busy, and few enough to send again."""
    window_bytes: int = 1024 * 1024
    remember_s: float = 900.0
    """So long a message that comes again (from a bridge, or with a client's `dedup`) is known: longer than a bridge
    holds one."""
    max_remembered: int = 262_144
    """As many of them, some 200 MiB; the oldest is forgotten first."""
    max_remembered_of_one: int = 65_536
    """The same of one user, or of one type's emissions."""
    sweep_at: int = 1_024
    """Cases of one bridge among which those that are over are looked for at the earliest."""
    max_relayed: int = 65_536
    """The same of other servers' messages, known by their ids besides the numbers of their lanes."""
    expiries: int = 100
    """Kept messages whose time is over that are ended in one go."""
    attempts: int = 3
    """Handlers that may die over a message, which each had alone in its hands, before it is given up."""
    suspect_s: float = 600.0
    """How long a message that a handler had when it died waits for its next turn: there may be hundreds that are given
    to handlers one at a time. No longer than a bridge holds it."""
    max_held: int = 200_000
    """Messages with handlers or waiting for one; above it: overloaded."""
    max_held_bytes: int = 512 * 1024 * 1024
    max_waiting: int = 50_000
    """Messages of one type waiting for a handler, so that one type cannot take the place of all."""
    max_frames: int = 20_000
    """Frames that one command may become, targets times their connections: what is written in one turn of the loop."""
    max_lane: int = 10_000
    """Messages of one type on their way to one server."""
    max_lanes: int = 4_096
    """Types of which something waits for one server; each is looked at several times a second."""
    max_parties: int = 20_000
    max_sessions: int = 1_048_576
    """Of one bridge: as many as a process may have descriptors; above it a login is refused."""
    max_resumes: int = 1_024
    """Lives of bridges whose link is gone and may come back; the one gone for longest is forgotten first."""
    max_unacked: int = 524_288
    """Reports that a bridge has not counted yet: twice as many as may wait on its link. Of one that counts none the
    oldest are forgotten."""
    max_types: int = 20_000
    max_credit: int = 65_536
    max_strangers: int = 4_096
    """Links that spoke before their HELLO and are remembered, to answer each at most once a heartbeat."""
    max_roots: int = 65_536
    """Roots whose results are counted at once; the oldest is forgotten first."""
    restart_s: float = 60.0
    """So long after the start a server is told `no-handler` where a client is told `unknown-type`."""
    trace: int = 8192
    """Steps of messages remembered for `trace`."""


@dataclass(frozen=True)
class Settings:
    """Who this broker is and whom it knows.

    `hosts`: IP address → names of the native servers there, and `unknown_hosts`: those whose address is not known, both
    at the start (see `hosts.Hosts`). `budgets`: what the handlers of a type may take, where that was configured.
    """

    name: str
    open_accounts: bool = False
    accept: str = "listed"
    routes: Mapping[str, Route] = field(default_factory=dict)
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown_hosts: frozenset[str] = frozenset()
    declared_types: frozenset[str] = frozenset()
    admin_info: str = ""
    bounds: Bounds = field(default_factory=Bounds)
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
