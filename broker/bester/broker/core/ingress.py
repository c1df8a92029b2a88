"""Entry of messages: from clients, from other servers, and from handlers that act on their own initiative.

A message gets its id and its identity here: its sender is known by link, session and address, never by its own claims.
What else there is to a message of another server, `server_ingress` knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.dedup import DedupCache
from bester.broker.core.directory import Directory
from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.effects import Effects, Link
from bester.broker.core.inspection import Bound, DedupState
from bester.broker.core.jobs import NO_PATH, Job, attempt_of, may_be_repeat
from bester.broker.core.peer import Peer
from bester.broker.core.replies import Replies
from bester.broker.core.resume import BridgeResume
from bester.broker.core.server_ingress import ServerIngress, ServerMessage, expiry, text
from bester.broker.core.settings import Settings
from bester.broker.core.strangers import Strangers
from bester.broker.core.tracing import Tracing
from bester.broker.hosts import Hosts
from bester.broker.wire import json_text, traceparent
from bester.broker.wire.messages import (
    MAX_BODY_BYTES,
    MAX_DEDUP,
    MAX_ID,
    OP_OF,
    Emit,
    Error,
    Relay,
    Submit,
)

_SUBMIT = Kind.SUBMIT


class Ingress:
    """Entry of messages into the broker. `epoch` tells the ids of this life from those of earlier ones."""

    def __init__(
        self, settings: Settings, out: Effects, epoch: str, *, dispatcher: Dispatcher, replies: Replies,
        reports: Reports, directory: Directory, servers: ServerIngress, strangers: Strangers, tracing: Tracing,
    ) -> None:  # fmt: skip
        self.draining = False
        """Refuse everything that enters: the broker is about to end."""
        self._settings = settings
        self._guarded = policy.guarded_types(settings)
        self._out = out
        self._epoch = epoch
        self._dispatcher = dispatcher
        self._replies = replies
        self._reports = reports
        self._directory = directory
        self._servers = servers
        self._strangers = strangers
        self._tracing = tracing
        self._hosts = Hosts(settings.hosts, settings.unknown_hosts)
        limits = settings.limits
        self._dedup = DedupCache(
            limits.remember_s, limits.max_remembered, limits.max_remembered_of_one,
            lambda which: self._forgot("max_remembered" if which == "all" else "max_remembered_of_one"),
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
        return DedupState(self._dedup.count, self._servers.remembered)

    def bounds(self) -> dict[str, Bound]:
        """Return how full the tables of remembered messages are."""
        limits = self._settings.limits
        return {
            "dedup_keyed": Bound(self._dedup.count, limits.max_remembered),
            "dedup_relayed": Bound(self._servers.remembered, limits.max_relayed),
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
        if resume is not None and self._is_known_or_left(peer, resume, token, attempt):
            return
        id_ = f"{peer.prefix}{token}"
        case = Case(_SUBMIT, peer.link, token, id_, id_)
        case.resubmitted = may_be_repeat(meta)
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
        case.expires = expiry(meta, now)
        case.push = meta.get("outcome") is True
        case.sender = user
        before = attempt - 1
        job = Job(
            case, id_, id_, type_, body, "client", self._settings.name, user, attempt=before, attempts_before=before,
            repeated=case.resubmitted,
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

    def _is_known_or_left(self, peer: Peer, resume: BridgeResume, token: int, attempt: int) -> bool:
        """Return whether a message from a bridge does not enter. One that is submitted again may be known, so that only
        its report is due. A broker that ends leaves others to its next life, to which the bridge submits again (a
        refusal would deny the first entry), or to another broker."""
        if attempt > 1 and self._is_known(peer, resume, token, attempt):
            return True
        return self.draining and (attempt > 1 or resume.is_shared)

    def _is_known(self, peer: Peer, resume: BridgeResume, token: int, attempt: int) -> bool:
        earlier = resume.find(token, attempt)
        if earlier is None:
            return resume.is_reporting(token)
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
        if peer.resume is not None and self._is_known_or_left(peer, peer.resume, submit.token, attempt):
            return
        host, claimed = text(submit.meta.get("address")) or "", text(submit.meta.get("server"))
        if not self._strangers.hold(peer, submit, host, claimed, self._hosts, now):
            self._enter_of_server(submit, peer.prefix, peer.resume, peer.link, now)

    def _enter_of_server(
        self, submit: Submit, prefix: str, resume: BridgeResume | None, link: Link, now: float
    ) -> Case | None:
        """Enter a message by the native protocol; return its case, None for a duplicate."""
        token, meta = submit.token, submit.meta
        host, claimed = text(meta.get("address")) or "", text(meta.get("server"))
        certificate = _texts(meta.get("certificate"))
        name = policy.native_peer(self._settings, self._hosts, host, claimed, submit.type, certificate)
        id_ = f"{prefix}{token}"
        shown = name or (f"a server at {host}" if policy.is_server_name(self._settings, host) else host)
        came = ServerMessage(Kind.SUBMIT, link, token, submit.type, submit.body, meta, id_, shown, name)
        case = self._servers.enter(came, now, draining=self.draining)
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
        came = ServerMessage(Kind.RELAY, peer.link, relay.token, relay.type, relay.body, relay.meta, id_, shown, listed)
        self._servers.enter(came, now, draining=self.draining)

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
        case.resubmitted = emit.meta.get("again") is True
        if self.draining:
            self._reports.refuse(case, "overloaded")
            return None
        if key is not None:
            self._dedup.add(key, case, now)
        self._replies.emit(case, emit.type, emit.commands, now, repeated=case.resubmitted)
        return None


def _body_fault(body: bytes) -> str | None:
    """Return the code of what is wrong with the body of another owner's server, None where it is good."""
    if len(body) > MAX_BODY_BYTES:
        return "frame-too-large"
    return None if json_text.fault(body) is None else "malformed"


def _texts(value: Any) -> tuple[str, ...]:
    """Read the names in a peer's certificate; what cannot be read names nobody."""
    return tuple(each for each in value if type(each) is str) if isinstance(value, list | tuple) else ()
