"""Inspection: the contents of a broker at one moment, as plain values: counts, and small tables. Pure.

`Router.inspect()` puts an Inspection together for a test, or for whoever looks for what is left over; each unit of the
core gives its own part. Counting is done at the call, and takes longer the more there is; what a running server tells
an operator is at hand (see `status`). The values are copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class Bound(NamedTuple):
    """A bound: how much is `used`, and the `most` that may be."""

    used: int
    most: int


class QueueState(NamedTuple):
    """A queue on disk: the mailbox of a user, or the messages of one type to one server.

    `messages` counts those that are ready and those `inflight`, `size_bytes` their bodies. `delay_s` is the back-off
    before the next try, 0 where the last try went well.
    """

    messages: int
    size_bytes: int
    inflight: int
    delay_s: float


class QueuesState(NamedTuple):
    """All queues on disk: `table` by key, and what is in them together.

    `writing` counts the messages that are not committed yet, `ended_early` those of them that have ended already, and
    `ended` the committed ones whose end is not written yet. `recording` counts the messages that are queued at another
    server, where that is not committed yet; `records` are all messages of which more is known than that they are ready.
    `shares` has messages and bytes in each queue by sender. `next_number` is the number of the next message that is
    enqueued, `epoch` names the store that numbers belong to. `mailbox_inflight_bytes` and `lane_inflight_bytes` are the
    bodies in flight to users and to servers, and those that reads under way may bring.
    """

    table: Mapping[str, QueueState]
    messages: int
    size_bytes: int
    inflight: int
    writing: int
    ended_early: int
    ended: int
    recording: int
    records: int
    next_number: int
    epoch: str
    shares: Mapping[str, Mapping[str, tuple[int, int]]]
    mailbox_inflight_bytes: int
    lane_inflight_bytes: int


class WorkersState(NamedTuple):
    """The handlers and their messages.

    `waiting` counts the messages that wait for a handler by type, `inflight` those that handlers hold by type, without
    the ones that are over. `queues` counts the types that have a queue, `groups` the message groups: a user's messages
    of an ordered type. `suspects` counts the types of which a suspect waits, `isolated` the handlers that take suspects
    alone. `unshared` counts the types whose requeued messages were not offered to free handlers yet: 0 between two
    calls of the router.
    """

    waiting: Mapping[str, int]
    inflight: Mapping[str, int]
    queues: int
    groups: int
    suspects: int
    isolated: int
    unshared: int


class LaneState(NamedTuple):
    """An inbound lane: the messages of one type from one server, numbered under the `epoch` of that server's store.

    All numbers below `floor` are settled. `known` counts the numbers from there on with an outcome or a pending case,
    `lowest` is the lowest of these. `refused` is the number that must be sent again before any higher one is taken.
    Of several epochs this is the one used last; there are so many `epochs`.
    """

    epoch: str
    floor: int
    known: int
    lowest: int | None
    refused: int | None
    epochs: int


class ResumeState(NamedTuple):
    """State of one bridge process that survives its link.

    `linked`: the bridge has a link now. `cases` counts its submitted messages, some of them ended; `unacknowledged` the
    reports on its present link without an acknowledgement, `unheard` those of earlier links. `recipients` counts the
    names whose outcomes are kept with the cases.
    """

    linked: bool
    cases: int
    unacknowledged: int
    unheard: int
    recipients: int


class DedupState(NamedTuple):
    """Messages whose duplicates are found: by their sender's key (`keyed`), and by their id at another server
    (`relayed`)."""

    keyed: int
    relayed: int


class ReportersState(NamedTuple):
    """Findings on native servers: `known` counts the configured ones that report or are known not to, `strangers` the
    others that have reported, `counted` the messages whose ends without a report are counted."""

    known: int
    strangers: int
    counted: int


class DeadLettersState(NamedTuple):
    """The dead letters that are being replayed: all of them, and those replayed under another id."""

    replays: int
    renamed: int


class Inspection(NamedTuple):
    """The contents of one broker.

    `peers` counts the peers that have sent HELLO by role, `strangers` the links that sent something else, `users` and
    `sessions` who is connected by way of the bridges. `logins` counts the passwords that are being checked.

    `cases` counts the messages whose report is due, `answers` those whose answer waits for a commit, `jobs` those of
    their messages that handlers hold or that wait for one (`job_bytes`: their bodies), `unplaced` the native servers'
    messages that wait for a name to be looked up. `deliveries` counts what bridges have not confirmed yet, `transfers`
    what other servers have not answered yet, by lane (the key of the queue in which it would wait).

    `notes` counts, by server, the notes of messages that are queued there. `lanes` is by (server, type), `resume` by
    the prefix that the ids of a bridge's messages have, `bounds` by what is bounded. `reached` counts by the name of a
    bound (see COUNTED).
    """

    peers: Mapping[str, int]
    strangers: int
    users: int
    sessions: int
    logins: int
    cases: int
    answers: int
    jobs: int
    job_bytes: int
    unplaced: int
    workers: WorkersState
    deliveries: int
    transfers: Mapping[str, int]
    queues: QueuesState
    dedup: DedupState
    notes: Mapping[str, int]
    lanes: Mapping[tuple[str, str], LaneState]
    resume: Mapping[str, ResumeState]
    reporters: ReportersState
    dead_letters: DeadLettersState
    bounds: Mapping[str, Bound]
    reached: Counter[str]
