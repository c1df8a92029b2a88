"""How messages enter: from clients, from other servers, and from handlers of their own initiative.

Here a message gets its id and its identity: who it is from is what the link, the session and the address say, never
what it says of itself.
"""

from __future__ import annotations

from typing import Any

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind, Reports, reason_of
from bester.broker.core.dedup import BridgeResume, DedupCache, Key
from bester.broker.core.directory import Directory
from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.effects import Effects, Link
from bester.broker.core.inbound_lanes import NOT_NOW, InboundLanes, LanePosition
from bester.broker.core.inspection import Bound, DedupState
from bester.broker.core.jobs import Job
from bester.broker.core.late_outcomes import LateOutcomes
from bester.broker.core.peer import Peer
from bester.broker.core.relays import Relays
from bester.broker.core.settings import Settings
from bester.broker.core.strangers import Strangers
from bester.broker.hosts import Hosts
from bester.broker.wire import json_text
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

_SUBMIT = Kind.SUBMIT


class Ingress:
    """The ways into the exchange. `epoch` tells the ids of this life from those of earlier ones; `names` are those that
    ids of this server's messages may begin with."""

    def __init__(
        self, settings: Settings, names: frozenset[str], out: Effects, epoch: str, *, dispatcher: Dispatcher,
        reports: Reports, directory: Directory, relays: Relays, late_outcomes: LateOutcomes,
        inbound_lanes: InboundLanes, strangers: Strangers,
    ) -> None:  # fmt: skip
        self.draining = False
        """Everything that enters is refused: the broker is about to end."""
        self._settings = settings
        self._names = names
        self._out = out
        self._epoch = epoch
        self._dispatcher = dispatcher
        self._reports = reports
        self._directory = directory
        self._relays = relays
        self._late_outcomes = late_outcomes
        self._inbound_lanes = inbound_lanes
        self._strangers = strangers
        self._hosts = Hosts(settings.hosts, settings.unknown_hosts)
        limits = settings.limits
        self._dedup = DedupCache(limits.remember_s, limits.max_remembered, limits.max_remembered_of_one)
        self._relayed = DedupCache(limits.remember_s, limits.max_relayed, limits.max_relayed)
        self._serial = 0

    @property
    def unplaced(self) -> int:
        """How many messages wait for a name to be looked up."""
        return self._strangers.count

    def dedup(self) -> DedupState:
        """Return how many messages are known if they come again."""
        return DedupState(self._dedup.count, self._relayed.count)

    def bounds(self) -> dict[str, Bound]:
        """Return how full the tables are of messages that are known if they come again."""
        limits = self._settings.limits
        return {
            "dedup_keyed": Bound(self._dedup.count, limits.max_remembered),
            "dedup_relayed": Bound(self._relayed.count, limits.max_relayed),
        }

    # --- clients ---

    def submit(self, peer: Peer, submit: Submit, now: float) -> None:
        """A client's message, or a native server's."""
        token, session, type_, body, meta = submit
        if session is None:
            self._submit_of_server(peer, submit, now)
            return
        if meta:
            self._submit_with_more(peer, submit, now)
            return
        id_ = f"{peer.prefix}{token}"
        case = Case(_SUBMIT, peer.link, token, id_, id_)
        if peer.resume is not None:
            peer.resume.add(token, case)
        user = self._directory.user(peer.link, session)
        if user is None or self.draining:
            self._reports.refuse(case, "overloaded" if self.draining else "not-allowed")
        else:
            case.sender = user
            self._dispatcher.enter(Job(case, id_, id_, type_, body, "client", self._settings.name, user), now)

    def _submit_with_more(self, peer: Peer, submit: Submit, now: float) -> None:
        """The same with wishes of the client's, or by a bridge that may lose its link and submit it again."""
        token, session, type_, body, meta = submit
        resume, attempt = peer.resume, _attempt(meta)
        if resume is not None and attempt > 1 and (self._was_here(peer, token) or self.draining):
            return  # the next life of this broker is submitted it again: a refusal would deny that it ever entered
        id_ = f"{peer.prefix}{token}"
        case = Case(_SUBMIT, peer.link, token, id_, id_)
        if resume is not None:
            resume.add(token, case)
        assert session is not None
        user = self._directory.user(peer.link, session)
        if user is None or self.draining:
            self._reports.refuse(case, "overloaded" if self.draining else "not-allowed")
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
        self._dispatcher.enter(job, now)

    def _was_here(self, peer: Peer, token: int) -> bool:
        """A bridge submits again: is the message known, so that only its report is owed?"""
        assert peer.resume is not None
        earlier = peer.resume.find(token)
        if earlier is None:
            return peer.resume.is_reporting(token)
        if isinstance(earlier, Case):
            earlier.link = peer.link
        else:
            self._out.send(peer.link, earlier)
        return True

    # --- servers ---

    def _submit_of_server(self, peer: Peer, submit: Submit, now: float) -> None:
        """A message by the native protocol: who sent it is what the address says, not what the header says."""
        again = peer.resume is not None and _attempt(submit.meta) > 1
        if again and (self._was_here(peer, submit.token) or self.draining):
            return
        host, claimed = _text(submit.meta.get("address")) or "", _text(submit.meta.get("server"))
        if not self._strangers.hold(peer, submit, host, claimed, self._hosts, now):
            self._enter_of_server(submit, peer.prefix, peer.resume, peer.link, now)

    def _enter_of_server(
        self, submit: Submit, prefix: str, resume: BridgeResume | None, link: Link, now: float
    ) -> None:
        token, meta = submit.token, submit.meta
        host, claimed = _text(meta.get("address")) or "", _text(meta.get("server"))
        name = policy.native_peer(self._settings, self._hosts, host, claimed, submit.type)
        case = self._from_server(
            Kind.SUBMIT, link, token, submit.type, submit.body, meta, f"{prefix}{token}", name or host, name, now
        )
        if resume is not None and case is not None and case.pending:
            resume.add(token, case)

    def on_hosts_changed(self, hosts: Hosts, now: float) -> list[str]:
        """Where the native servers are is known anew: take in what waited for that. Returns the servers that were not
        known before, or have moved."""
        before, self._hosts = self._hosts, hosts
        for stranger in self._strangers.known(hosts):
            self._enter_of_server(stranger.submit, stranger.prefix, stranger.resume, stranger.link, now)
        return hosts.moved_since(before)

    def tick(self, now: float) -> None:
        """End what has waited too long for lookups."""
        self._strangers.tick(self._hosts, now)

    def relay(self, peer: Peer, relay: Relay, now: float) -> None:
        """A message of a server that has linked to us."""
        self._serial += 1
        name = policy.fabric_peer(peer.link.door, peer.name)
        listed = name if name in self._settings.routes else None
        told = name or f"a server over {peer.link.door}"
        id_ = f"{self._settings.name}/{name or peer.link.door}-{self._epoch}/{self._serial}"
        wrong = _body_fault(relay.body)
        if wrong is not None:
            self._reports.refuse(Case(Kind.RELAY, peer.link, relay.token, id_, id_), wrong)
            return
        self._from_server(
            Kind.RELAY, peer.link, relay.token, relay.type, relay.body, relay.meta, id_, told, listed, now
        )

    def emit(self, peer: Peer, emit: Emit, now: float) -> Error | None:
        """A handler acts of its own initiative. Returns the ERROR that answers it where it may not.

        One that carries an id it carried before is not carried out again: its outcome is told again. Where that is not
        known any more, but its handler says so (`again`), the results are marked.
        """
        refused = policy.may_emit(peer.types, emit.type)
        if refused is not None:
            return Error("not-allowed", refused, OP_OF[Emit], emit.token)
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
        self._dispatcher.emit(case, emit.type, emit.commands, now, repeated=emit.meta.get("again") is True)
        return None

    def _from_server(
        self, kind: Kind, link: Link, token: int, type_: str, body: bytes, meta: Meta, id_: str,
        told: str, listed: str | None, now: float,
    ) -> Case | None:  # fmt: skip
        """A server's message enters; returns its case, None where it came before.

        Only a listed server's ids, origin and lanes are taken over; anybody's path counts.
        """
        root = origin = place = claimed = earlier = None
        if listed is not None:
            claimed = _text(meta.get("id"))
            id_ = self._not_ours(claimed, listed) if claimed is not None else id_
            root, origin = _text(meta.get("root")), _text(meta.get("origin"))
            self._relays.on_contact(listed, now)
        case = Case(kind, link, token, id_, root or id_)
        code = "overloaded" if self.draining else policy.may_enter(self._settings, listed, type_)
        if code is None and len(type_) > MAX_TYPE:  # no handler has such a type, and no table is to remember it
            code = "unknown-type"
        if code is not None:
            self._out.notice("message-refused", server=told, type=type_, code=code)
            self._reports.refuse(case, code)
            return case
        if listed is not None:
            case.peer = listed
            case.claimed_id = claimed
            if type_ == policy.OUTCOME_TYPE or self._dispatcher.knows_type(
                type_
            ):  # what nobody serves is refused each time
                earlier, place = self._inbound_lanes.find(listed, type_, meta)
            if earlier == NOT_NOW:
                self._reports.refuse(case, "overloaded")
                return case
            if earlier is None and claimed is not None:
                earlier = self._by_id((listed, type_, claimed), case, place, now)
            if earlier is not None:
                self._tell_again(kind, earlier, link, token, id_)
                return None
            if place is not None:
                self._inbound_lanes.add(place, case)
        if type_ == policy.OUTCOME_TYPE:
            self._receive_outcome(case, told, body)
            return case
        case.expires = _expiry(meta, now)
        job = Job(
            case, id_, case.root, type_, body, "server", origin or told, peer=told, path=_path(meta),
            repeated=_attempt(meta) > 1 or meta.get("again") is True,  # a stranger who says so gets his mark
        )  # fmt: skip
        self._dispatcher.enter(job, now)
        return case

    def _by_id(self, key: Key, case: Case, place: LanePosition | None, now: float) -> Case | None:
        """A server that died has a new number for what it did again, but the same id: return the case of the first. Not
        of one that is over and waits here: what became of it since was told to the life that is gone, so it is looked
        for anew, and found in the boxes."""
        earlier = self._relayed.find(key, now)
        if earlier is None or (earlier.queued and not earlier.pending):
            self._relayed.add(key, case, now)
            return None
        if place is not None:
            self._inbound_lanes.join(place, earlier)
        return earlier

    def _not_ours(self, id_: str, peer: str) -> str:
        """Return the id by which a server's message is known here: the one it came with, unless it looks like one of
        ours. Under that it could pass for a message that one of our clients has sent, or is about to send."""
        return f"{peer}/{id_}" if id_.partition("/")[0] in self._names else id_

    def _tell_again(self, kind: Kind, earlier: Case | str, link: Link, token: int, id_: str) -> None:
        """A message came before: its sender is told what became of it, now or when it is known."""
        if isinstance(earlier, Case):
            self._reports.add_asker(earlier, link, token)
            return
        outcome, _, queued = earlier.partition(" ")
        reason = reason_of(outcome)
        # What may be tried again is not remembered: whatever has failed here has failed for good.
        told: Meta = {} if reason is None else {"carried": True}
        if queued:
            told["queued"] = int(queued)
        answer: Message = Relayed(token, outcome, told)
        if kind is Kind.SUBMIT:
            recipients = {} if outcome == "delivered" else {str(n): outcome for n in range(int(queued or 1))}
            answer = Report(token, 0 if reason is None else 1, reason, id_, recipients)
        self._out.send(link, answer)

    def _receive_outcome(self, case: Case, peer: str, body: bytes) -> None:
        """Another server tells what became of what waited there."""
        self._reports.begin(case)
        code = self._late_outcomes.receive(peer, body, case)
        if code is not None:
            self._reports.settle(case, None, f"failed:{code}")


def _attempt(meta: Meta) -> int:
    attempt = meta.get("attempt", 1)
    return min(attempt, 1_000_000) if type(attempt) is int and attempt > 1 else 1


def _expiry(meta: Meta, now: float) -> float | None:
    """Return when a message's time is over, where its sender said how long it has."""
    ttl_s = meta.get("ttl_s")
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0 <= ttl_s <= MAX_TTL_S:
        return None
    return now + ttl_s


def _body_fault(body: bytes) -> str | None:
    """Another owner's broker has checked it, or says so: here it enters."""
    if len(body) > MAX_BODY_BYTES:
        return "frame-too-large"
    return None if json_text.fault(body) is None else "malformed"


def _text(value: Any) -> str | None:
    return value if type(value) is str and 0 < len(value) <= MAX_ID and value.isprintable() else None


def _path(meta: Meta) -> list[str]:
    """Read the path a message has come; one that cannot be read is as good as too long."""
    path = meta.get("path", [])
    if type(path) is list and len(path) <= HOP_LIMIT and all(_text(step) is not None for step in path):
        return path
    return ["?"] * HOP_LIMIT
