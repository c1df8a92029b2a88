"""Entry of messages: from clients, from other servers, and from handlers that act on their own initiative.

A message gets its id and its identity here: its sender is known by link, session and address, never by its own claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.dedup import DedupCache, Key
from bester.broker.core.directory import Directory
from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.effects import Effects, Link
from bester.broker.core.inbound_lanes import NOT_NOW, InboundLanes, LanePosition
from bester.broker.core.inspection import Bound, DedupState
from bester.broker.core.jobs import NO_PATH, Job, attempt_of
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.late_outcomes import LateOutcomes
from bester.broker.core.peer import Peer
from bester.broker.core.relays import Relays
from bester.broker.core.replies import Replies
from bester.broker.core.resume import BridgeResume
from bester.broker.core.settings import Settings
from bester.broker.core.strangers import Strangers
from bester.broker.core.trace import ENTERED, Trace
from bester.broker.core.tracing import Tracing
from bester.broker.core.unwritten_letters import NO_LETTER
from bester.broker.hosts import Hosts
from bester.broker.wire import json_text, traceparent
from bester.broker.wire.messages import (
    HOP_LIMIT,
    MAX_BODY_BYTES,
    MAX_DEDUP,
    MAX_ID,
    MAX_TTL_S,
    MAX_TYPE,
    OP_OF,
    Emit,
    Error,
    Message,
    Meta,
    Relay,
    Relayed,
    Report,
    Submit,
)
from bester.broker.wire.outcomes import DELIVERED, OUTCOME_TYPE, failed, reason_of

_SUBMIT = Kind.SUBMIT


class _Came(NamedTuple):
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


class Ingress:
    """Entry of messages into the broker. `epoch` tells the ids of this life from those of earlier ones; `names` are
    those that ids of this server's messages may begin with."""

    def __init__(
        self, settings: Settings, names: Set[str], out: Effects, epoch: str, *, dispatcher: Dispatcher,
        replies: Replies, known_types: KnownTypes, reports: Reports, directory: Directory, relays: Relays,
        late_outcomes: LateOutcomes, inbound_lanes: InboundLanes, strangers: Strangers, trace: Trace, tracing: Tracing,
    ) -> None:  # fmt: skip
        self.draining = False
        """Refuse everything that enters: the broker is about to end."""
        self._settings = settings
        self._guarded = policy.guarded_types(settings)
        self._names = names
        self._out = out
        self._epoch = epoch
        self._dispatcher = dispatcher
        self._replies = replies
        self._known_types = known_types
        self._reports = reports
        self._directory = directory
        self._relays = relays
        self._late_outcomes = late_outcomes
        self._inbound_lanes = inbound_lanes
        self._strangers = strangers
        self._trace = trace
        self._tracing = tracing
        self._hosts = Hosts(settings.hosts, settings.unknown_hosts)
        limits = settings.limits
        self._dedup = DedupCache(
            limits.remember_s, limits.max_remembered, limits.max_remembered_of_one,
            lambda which: self._forgot("max_remembered" if which == "all" else "max_remembered_of_one"),
        )  # fmt: skip
        self._relayed = DedupCache(
            limits.remember_s, limits.max_relayed, limits.max_relayed, lambda which: self._forgot("max_relayed"),
            lambda case: case.is_refused_for_now,
        )  # fmt: skip
        self._serial = 0

    def _forgot(self, bound: str) -> None:
        self._out.reached[bound] += 1

    @property
    def unplaced(self) -> int:
        """Number of messages that wait for a name to be looked up."""
        return self._strangers.count

    def dedup(self) -> DedupState:
        """Return how many messages are remembered, to recognize duplicates."""
        return DedupState(self._dedup.count, self._relayed.count)

    def bounds(self) -> dict[str, Bound]:
        """Return how full the tables of remembered messages are."""
        limits = self._settings.limits
        return {
            "dedup_keyed": Bound(self._dedup.count, limits.max_remembered),
            "dedup_relayed": Bound(self._relayed.count, limits.max_relayed),
        }

    # --- clients ---

    def submit(self, peer: Peer, submits: Sequence[Submit], now: float) -> None:
        """Enter a run of messages of clients, or of native servers."""
        link, prefix, resume = peer.link, peer.prefix, peer.resume
        users: Mapping[Any, str] = {} if self.draining else self._directory.users_of(link)
        jobs: list[Job] = []  # jobs of one type, not entered yet
        of: str | None = None
        figures, origin, guarded = None, self._settings.name, self._guarded
        for submit in submits:
            token, type_, user = submit.token, submit.type, users.get(submit.session)
            is_unusual = user is None or submit.meta or type_ in guarded
            if type_ != of or is_unusual:
                if jobs:
                    self._dispatcher.enter(jobs, now)
                    jobs = []
                if is_unusual:
                    of = None
                    self._submit_unusual(peer, submit, now)
                    continue
                of, figures = type_, self._dispatcher.figures_of(type_)
            id_ = f"{prefix}{token}"
            case = Case(_SUBMIT, link, token, id_, id_, 1, user, figures, now)
            if resume is not None:
                resume.add(token, case)
            jobs.append(Job(case, id_, id_, type_, submit.body, "client", origin, user, None, NO_PATH))
        if jobs:
            self._dispatcher.enter(jobs, now)

    def _submit_unusual(self, peer: Peer, submit: Submit, now: float) -> None:
        """Enter a message of a native server, or one of a client with options, from a bridge that may lose its link and
        submit again, or that may have to be refused."""
        if submit.session is None:
            self._submit_of_server(peer, submit, now)
            return
        token, session, type_, body, meta = submit.token, submit.session, submit.type, submit.body, submit.meta
        resume, attempt = peer.resume, attempt_of(meta)
        if resume is not None and attempt > 1 and (self._is_known(peer, token, attempt) or self.draining):
            return  # the bridge submits again to this broker's next life; a refusal would deny the first entry
        id_ = f"{peer.prefix}{token}"
        case = Case(_SUBMIT, peer.link, token, id_, id_)
        case.resubmitted = attempt > 1
        if resume is not None:
            resume.add(token, case)
        user = self._directory.user(peer.link, session)
        if user is None or self.draining:
            self._reports.refuse(case, "overloaded" if self.draining else "not-allowed")
            return
        if type_ in self._guarded and self._refuses(user, type_, case):
            return
        dedup = meta.get("dedup")
        if type(dedup) is str and 0 < len(dedup) <= MAX_DEDUP:
            key = ("dedup", user, dedup)
            earlier = self._dedup.find(key, now)
            if earlier is not None:
                if resume is not None:
                    resume.remove(token)
                self._reports.add_asker(earlier, peer.link, token)
                return
            self._dedup.add(key, case, now)
        case.expires = _expiry(meta, now)
        case.push = meta.get("outcome") is True
        case.sender = user
        before = attempt - 1
        job = Job(
            case, id_, id_, type_, body, "client", self._settings.name, user, attempt=before, attempts_before=before,
            repeated=before > 0 or meta.get("resent") is True,
        )  # fmt: skip
        if (parent := traceparent.sound(meta.get("traceparent"))) is not None:
            job.traceparent = self._tracing.enter(case, type_, parent, now)
        case.pending += 1
        self._dispatcher.enter((job,), now)

    def _refuses(self, user: str, type_: str, case: Case) -> bool:
        """Refuse a message of a guarded type where the policy does not let the user send it. Returns whether it was
        refused."""
        code = policy.may_submit(self._settings, user, type_)
        if code is None:
            return False
        self._out.notice("message-refused", user=user, type=type_, code=code)
        self._reports.refuse(case, code)
        return True

    def _is_known(self, peer: Peer, token: int, attempt: int) -> bool:
        """Return whether a message that a bridge submits again is known, so that only its report is due."""
        assert peer.resume is not None
        earlier = peer.resume.find(token, attempt)
        if earlier is None:
            return peer.resume.is_reporting(token)
        if isinstance(earlier, Case):
            earlier.link = peer.link
        else:
            self._reports.send_again(peer.link, *earlier)
        return True

    def on_account_removed(self, user: str) -> None:
        """Forget a removed user's keys: a new account of the name must not get the report on an older message."""
        self._dedup.forget(("dedup", user))

    # --- servers ---

    def _submit_of_server(self, peer: Peer, submit: Submit, now: float) -> None:
        """Enter a message by the native protocol: its sender is known by certificate or address, not by the header."""
        attempt = attempt_of(submit.meta)
        again = peer.resume is not None and attempt > 1
        if again and (self._is_known(peer, submit.token, attempt) or self.draining):
            return
        host, claimed = _text(submit.meta.get("address")) or "", _text(submit.meta.get("server"))
        if not self._strangers.hold(peer, submit, host, claimed, self._hosts, now):
            self._enter_of_server(submit, peer.prefix, peer.resume, peer.link, now)

    def _enter_of_server(
        self, submit: Submit, prefix: str, resume: BridgeResume | None, link: Link, now: float
    ) -> Case | None:
        """Enter a message by the native protocol; return its case, None for a duplicate."""
        token, meta = submit.token, submit.meta
        host, claimed = _text(meta.get("address")) or "", _text(meta.get("server"))
        certificate = _texts(meta.get("certificate"))
        name = policy.native_peer(self._settings, self._hosts, host, claimed, submit.type, certificate)
        id_ = f"{prefix}{token}"
        came = _Came(Kind.SUBMIT, link, token, submit.type, submit.body, meta, id_, name or host, name)
        case = self._from_server(came, now)
        if resume is not None and case is not None and case.pending:
            resume.add(token, case)
        return case

    def on_hosts_changed(self, hosts: Hosts, now: float) -> list[str]:
        """Take in a new table of the native servers' addresses, and the messages that waited for it. Returns the
        servers that are new there or have moved."""
        before, self._hosts = self._hosts, hosts
        for stranger in self._strangers.known(hosts):
            case = self._enter_of_server(stranger.submit, stranger.prefix, stranger.resume, stranger.link, now)
            if case is not None:
                case.moved, case.resubmitted = stranger.case.moved, stranger.case.resubmitted
        return hosts.moved_since(before)

    def tick(self, now: float) -> None:
        """End messages that have waited too long for lookups."""
        self._strangers.tick(self._hosts, now)

    def relay(self, peer: Peer, relay: Relay, now: float) -> None:
        """Enter a message of a server that has linked to this one."""
        self._serial += 1
        name = policy.fabric_peer(peer.link.door, peer.name)
        listed = name if name in self._settings.routes else None
        shown = name or f"a server over {peer.link.door}"
        id_ = f"{self._settings.name}/{name or peer.link.door}-{self._epoch}/{self._serial}"
        wrong = _body_fault(relay.body)
        if wrong is not None:
            self._reports.refuse(Case(Kind.RELAY, peer.link, relay.token, id_, id_), wrong)
            return
        came = _Came(Kind.RELAY, peer.link, relay.token, relay.type, relay.body, relay.meta, id_, shown, listed)
        self._from_server(came, now)

    def emit(self, peer: Peer, emit: Emit, now: float) -> Error | None:
        """Enter the commands of a handler that acts on its own initiative. Returns the ERROR that answers the handler
        where it may not.

        Commands whose id came before are a duplicate: they are not carried out, and the outcome of the first is sent
        again. Where that outcome is forgotten, but the handler marks the duplicate (`again`), the results are marked.
        """
        refused = policy.may_emit(peer.types, emit.type)
        if refused is not None:
            return Error("not-allowed", refused, OP_OF[Emit], emit.token)
        if peer.worker is not None and peer.worker.limited:
            denied = self._replies.may_not_command(peer.worker, emit.type, emit.commands)
            if denied is not None:
                return Error(*denied, OP_OF[Emit], emit.token)
        given = emit.meta.get("id")
        key = ("emit", emit.type, given) if type(given) is str and len(given) <= MAX_ID else None
        earlier = self._dedup.find(key, now) if key is not None else None
        if earlier is not None:
            self._reports.add_asker(earlier, peer.link, emit.token)
            return None
        self._serial += 1
        id_ = f"{self._settings.name}/emit-{self._epoch}/{self._serial}"
        case = Case(Kind.EMIT, peer.link, emit.token, id_, id_)
        if self.draining:
            self._reports.refuse(case, "overloaded")
            return None
        if key is not None:
            self._dedup.add(key, case, now)
        self._replies.emit(case, emit.type, emit.commands, now, repeated=emit.meta.get("again") is True)
        return None

    def _from_server(self, came: _Came, now: float) -> Case | None:
        """Enter a server's message; returns its case, None for a duplicate.

        Only a listed server's ids, origin and lanes are taken over; the path counts for every server.
        """
        listed, type_, meta, id_ = came.listed, came.type, came.meta, came.id
        root = origin = claimed = None
        if listed is not None:
            claimed = _text(meta.get("id"))
            id_ = self._not_ours(claimed, listed) if claimed is not None else id_
            root, origin = _text(meta.get("root")), _text(meta.get("origin"))
            self._relays.on_contact(listed, now)
        case = Case(came.kind, came.link, came.token, id_, root or id_)
        case.resubmitted = came.kind is Kind.SUBMIT and attempt_of(meta) > 1
        code = "overloaded" if self.draining else policy.may_enter(self._settings, listed, type_)
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
        case.expires = _expiry(meta, now)
        job = Job(
            case, id_, case.root, type_, came.body, "server", origin or came.shown, peer=came.shown, path=_path(meta),
            repeated=attempt_of(meta) > 1 or meta.get("again") is True,  # unlisted servers may say so, too
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


def _expiry(meta: Meta, now: float) -> float | None:
    """Return when a message expires, in seconds of `now`; None where its sender gave no time to live."""
    ttl_s = meta.get("ttl_s")
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 <= ttl_s <= MAX_TTL_S:
        return None
    return now + ttl_s


def _body_fault(body: bytes) -> str | None:
    """Return the code of what is wrong with the body of another owner's server, None where it is good."""
    if len(body) > MAX_BODY_BYTES:
        return "frame-too-large"
    return None if json_text.fault(body) is None else "malformed"


def _text(value: Any) -> str | None:
    return value if type(value) is str and 0 < len(value) <= MAX_ID and value.isprintable() else None


def _texts(value: Any) -> tuple[str, ...]:
    """Read the names in a peer's certificate; what cannot be read names nobody."""
    return tuple(each for each in value if type(each) is str) if isinstance(value, list | tuple) else ()


def _path(meta: Meta) -> list[str]:
    """Read the path that a message has come; one that cannot be read counts as too long."""
    path = meta.get("path", [])
    if type(path) is list and len(path) <= HOP_LIMIT and all(_text(step) is not None for step in path):
        return path
    return ["?"] * HOP_LIMIT
