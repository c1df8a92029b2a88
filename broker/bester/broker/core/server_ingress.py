"""Entry of messages of other servers, by whichever protocol they came: ids, earlier copies, lanes, late outcomes."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.dedup import DedupCache, Key
from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.effects import Effects, Link
from bester.broker.core.inbound_lanes import NOT_NOW, InboundLanes, LanePosition
from bester.broker.core.jobs import Job, may_be_repeat
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.late_outcomes import LateOutcomes
from bester.broker.core.relays import Relays
from bester.broker.core.settings import Settings
from bester.broker.core.trace import ENTERED, Trace
from bester.broker.core.tracing import Tracing
from bester.broker.core.unwritten_letters import NO_LETTER
from bester.broker.wire import traceparent
from bester.broker.wire.messages import (
    HOP_LIMIT,
    MAX_ID,
    MAX_TTL_S,
    MAX_TYPE,
    Message,
    Meta,
    Relayed,
    Report,
)
from bester.broker.wire.outcomes import DELIVERED, OUTCOME_TYPE, failed, reason_of


class ServerMessage(NamedTuple):
    """Message of another server, and the way it came: `id` is the id that it gets here, `shown` the server's name for
    people, `listed` its name if it is configured."""

    kind: Kind
    link: Link
    token: int
    type: str
    body: bytes
    meta: Meta
    id: str
    shown: str
    listed: str | None


class ServerIngress:
    """Entry of other servers' messages into the broker. `names` are those that ids of this server's messages may begin
    with."""

    def __init__(
        self, settings: Settings, names: Set[str], out: Effects, *, dispatcher: Dispatcher, known_types: KnownTypes,
        reports: Reports, relays: Relays, late_outcomes: LateOutcomes, inbound_lanes: InboundLanes, trace: Trace,
        tracing: Tracing,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._names = names
        self._out = out
        self._dispatcher = dispatcher
        self._known_types = known_types
        self._reports = reports
        self._relays = relays
        self._late_outcomes = late_outcomes
        self._inbound_lanes = inbound_lanes
        self._trace = trace
        self._tracing = tracing
        limits = settings.limits
        self._relayed = DedupCache(
            limits.remember_s, limits.max_relayed, limits.max_relayed, self._on_forgotten,
            lambda case: case.is_refused_for_now,
        )  # fmt: skip

    def _on_forgotten(self, _: str) -> None:
        self._out.reached["max_relayed"] += 1

    @property
    def remembered(self) -> int:
        """Number of messages that are remembered by their ids, to recognize duplicates."""
        return self._relayed.count

    def enter(self, came: ServerMessage, now: float, *, draining: bool) -> Case | None:
        """Enter a message; return its case, None for a duplicate. Where the broker is `draining` the message is
        refused.

        Only a listed server's ids, origin and lanes are taken over; the path counts for every server.
        """
        listed, type_, meta, id_ = came.listed, came.type, came.meta, came.id
        root = origin = claimed = None
        if listed is not None:
            claimed = text(meta.get("id"))
            id_ = self._not_ours(claimed, listed) if claimed is not None else id_
            root, origin = text(meta.get("root")), text(meta.get("origin"))
            self._relays.on_contact(listed, now)
        case = Case(came.kind, came.link, came.token, id_, root or id_)
        is_repeat = may_be_repeat(meta)  # unlisted servers may say so, too
        case.resubmitted = is_repeat
        code = "overloaded" if draining else policy.may_enter(self._settings, listed, type_)
        if code is None and len(type_) > MAX_TYPE:  # no handler can serve the type, and no table shall remember it
            code = "unknown-type"
        if code is not None:
            self._out.notice("message-refused", server=came.shown, type=type_, code=code)
            self._reports.refuse(case, code)
            return case
        if listed is not None:
            case.peer, case.claimed_id = listed, claimed
            earlier, position = self._earlier(listed, type_, meta, case, now)
            if earlier == NOT_NOW:
                self._reports.refuse(case, "overloaded")
                return case
            if earlier is not None:
                self._answer_duplicate(came.kind, earlier, came.link, came.token, id_)
                return None
            if position is not None:
                self._inbound_lanes.add(position, case)
        if type_ == OUTCOME_TYPE:
            self._receive_outcome(case, came.shown, came.body)
            return case
        self._trace.add((now, case.root, id_, ENTERED, came.shown, 0.0))
        case.expires = expiry(meta, now)
        job = Job(
            case, id_, case.root, type_, came.body, "server", origin or came.shown, peer=came.shown, path=_path(meta),
            repeated=is_repeat,
        )  # fmt: skip
        if listed is not None and (parent := traceparent.sound(meta.get("traceparent"))) is not None:
            job.traceparent = self._tracing.enter(case, type_, parent, now)
        case.pending += 1
        self._dispatcher.enter((job,), now)
        return case

    def _earlier(
        self, peer: str, type_: str, meta: Meta, case: Case, now: float
    ) -> tuple[Case | str | None, LanePosition | None]:
        """Return the case or outcome of the earlier message of which a listed server's message is a duplicate, by its
        number in its lane or by its id, NOT_NOW where that cannot be told, None where there is none; and its position
        in the lane."""
        earlier: Case | str | None = None
        position: LanePosition | None = None
        if type_ == OUTCOME_TYPE or self._known_types.knows(type_):  # a type that nobody serves is refused each time
            earlier, position = self._inbound_lanes.find(peer, type_, meta)
        if earlier is None and case.claimed_id is not None:
            earlier = self._by_id((peer, type_, case.claimed_id), case, position, now)
        return earlier, position

    def _by_id(self, key: Key, case: Case, position: LanePosition | None, now: float) -> Case | None:
        """Return the case of an earlier message with the same id, None where there is none: a server that died gives a
        duplicate a new number, but the same id. A case whose result is queued here is not returned: its later outcome
        went to the life that is gone, so the message enters anew, and is found in the queue."""
        earlier = self._relayed.find(key, now)
        if earlier is None or (earlier.queued and not earlier.pending):
            self._relayed.add(key, case, now)
            return None
        if position is not None:
            self._inbound_lanes.join(position, earlier)
        return earlier

    def _not_ours(self, id_: str, peer: str) -> str:
        """Return the id by which a server's message is known here: its own, marked with the server's name where it does
        not begin with that name.

        In front, where it looks like an id of this server: the message could pass for one of this server's clients'.
        Otherwise behind, so that the id still begins with its root: the message could pass for one of a third server,
        whose own message would then be taken for a duplicate.
        """
        owner = id_.partition("/")[0]
        if owner in self._names:
            return f"{peer}/{id_}"
        return id_ if owner == peer else f"{id_}~{peer}"

    def _answer_duplicate(self, kind: Kind, earlier: Case | str, link: Link, token: int, id_: str) -> None:
        """Send the outcome of an earlier message to the sender of its duplicate, now or at its end."""
        if isinstance(earlier, Case):
            self._reports.add_asker(earlier, link, token)
            return
        outcome, _, queued = earlier.partition(" ")
        reason = reason_of(outcome)
        # Failures after which the sender may try again are not remembered: a failure found here is final.
        meta: Meta = {} if reason is None else {"carried": True}
        if queued:
            meta["queued"] = int(queued)
        answer: Message = Relayed(token, outcome, meta)
        if kind is Kind.SUBMIT:
            recipients = {} if outcome == DELIVERED else {str(n): outcome for n in range(int(queued or 1))}
            answer = Report(token, 0 if reason is None else 1, reason, id_, recipients)
        self._out.send(link, answer)
        self._reports.resting[id(answer)] = NO_LETTER

    def _receive_outcome(self, case: Case, peer: str, body: bytes) -> None:
        """Take in another server's message about the outcome of a message that was queued there."""
        self._reports.begin(case)
        code = self._late_outcomes.receive(peer, body, case)
        if code is not None:
            self._reports.settle(case, None, failed(code))


def expiry(meta: Meta, now: float) -> float | None:
    """Return when a message expires, in seconds of `now`; None where its sender gave no time to live."""
    ttl_s = meta.get("ttl_s")
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 <= ttl_s <= MAX_TTL_S:
        return None
    return now + ttl_s


def text(value: Any) -> str | None:
    """Return a text of a server's header, None where there is none that an id could be."""
    return value if type(value) is str and 0 < len(value) <= MAX_ID and value.isprintable() else None


def _path(meta: Meta) -> list[str]:
    """Read the path that a message has come; one that cannot be read counts as too long."""
    path = meta.get("path", [])
    if type(path) is list and len(path) <= HOP_LIMIT and all(text(step) is not None for step in path):
        return path
    return ["?"] * HOP_LIMIT
