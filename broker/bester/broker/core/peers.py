"""Connected peers: HELLO, silence, GOODBYE, return. Pure. `worker_changes` knows the messages of those that are
workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from bester.broker.core import policy
from bester.broker.core.auth import AuthHandlers
from bester.broker.core.clock import Clock
from bester.broker.core.contracts import Contract, ContractError, Contracts
from bester.broker.core.delivery_outcomes import DeliveryOutcomes
from bester.broker.core.effects import Effects, Link
from bester.broker.core.inspection import Bound
from bester.broker.core.peer import HandlerOptions, Peer, foreign_types, handler_options, refusal
from bester.broker.core.pending_answers import PendingAnswers
from bester.broker.core.pools import Worker
from bester.broker.core.recordings import Recordings
from bester.broker.core.relays import Relays
from bester.broker.core.restarts import Restarts
from bester.broker.core.resume import BridgeResume
from bester.broker.core.settings import Settings
from bester.broker.core.shadows import Shadows
from bester.broker.core.submit_credit import SubmitCredit
from bester.broker.core.timeouts import Timeouts
from bester.broker.core.worker_changes import WorkerChanges
from bester.broker.core.workers import Workers
from bester.broker.wire.messages import (
    MAX_BODY_BYTES,
    OP_OF,
    VERSION,
    Error,
    Goodbye,
    Heartbeat,
    Hello,
    Malformed,
    Message,
    Request,
    Welcome,
)
from bester.broker.wire.notes import safe_note
from bester.broker.wire.type_names import AUTH_TYPE

SILENT_WHY = "fallen silent"
"""Reason for the log."""
MAX_EPOCH = 64
"""Characters of the name that a bridge gives its life."""
MAX_FACT = 128
"""Characters of what a handler says about its program."""
GIVEN_UP_AT_ONCE = 16
"""Silent peers that are given up at once; the others follow in the next turns of the loop. Each may hold messages that
go to other handlers, and a party may let a hundred links fall silent at once."""


class _Admitted(NamedTuple):
    """Wishes of a good HELLO: a handler's options, whether the handler is a shadow, and its contracts by type."""

    options: HandlerOptions | None
    is_shadow: bool
    contracts: dict[str, Contract]


class Peers:
    """The peers of one broker, by link. `process_of` and `is_stopped` tell the system's view of their processes;
    `read_until` tells the time up to which everything that a link had sent was read; `take_unsent` returns the messages
    for a link that was lost which were left to a later turn, and sends them no more. `is_shared`: the server may have
    other brokers."""

    def __init__(
        self, settings: Settings, out: Effects, epoch: str, now: float, *, changes: WorkerChanges, workers: Workers,
        delivery_outcomes: DeliveryOutcomes, timeouts: Timeouts, relays: Relays, contracts: Contracts,
        bridges: dict[Link, str], answers: PendingAnswers, restarts: Restarts, recordings: Recordings,
        shadows: Shadows, auth: AuthHandlers, credit: SubmitCredit, clock: Clock,
        process_of: Callable[[Link], int | None], is_stopped: Callable[[int], bool],
        read_until: Callable[[Link], float], take_unsent: Callable[[Link], Sequence[Message]], is_shared: bool,
    ) -> None:  # fmt: skip
        self.by_link: dict[Link, Peer] = {}
        self._settings = settings
        self._out = out
        self._epoch = epoch
        self._changes = changes
        self._delivery_outcomes = delivery_outcomes
        self._workers = workers
        self._timeouts = timeouts
        self._relays = relays
        self._contracts = contracts
        self._bridges = bridges
        self._answers = answers
        self._restarts = restarts
        self._recordings = recordings
        self._shadows = shadows
        self._credit = credit
        self._auth = auth
        self._clock = clock
        self._process_of = process_of
        self._is_stopped = is_stopped
        self._read_until = read_until
        self._take_unsent = take_unsent
        self._is_shared = is_shared
        # Links without HELLO: when answered, and whether undecodable.
        self._unknown: dict[Link, tuple[float, bool]] = {}
        self._parting: Goodbye | None = None  # once this broker ends
        self.resumes: dict[str, BridgeResume] = {}  # bridges that may come back, by the prefix of their ids
        self._unlinked: dict[str, None] = {}  # prefixes of bridges without a link, the first lost first
        self._silent: dict[Peer, None] = {}  # found by a tick, and not given up yet
        self._serial = 0
        self._ticked = now
        self._resumed = now
        self._beat = now

    @property
    def strangers(self) -> int:
        """Number of links remembered that spoke before their HELLO."""
        return len(self._unknown)

    def bounds(self) -> dict[str, Bound]:
        """Return how many links there are, and how many there may be."""
        limits = self._settings.limits
        return {
            "peers": Bound(len(self.by_link), limits.max_parties),
            "strangers": Bound(len(self._unknown), limits.max_strangers),
        }

    # --- coming ---

    def greet(self, link: Link, peer: Peer | None, message: Message | Malformed, now: float) -> None:
        """Take in a message from an unknown link, or a HELLO."""
        if isinstance(message, Hello):
            self._hello(link, peer, message, now)
        else:
            self._answer_unknown(link, message, now)

    def _answer_unknown(self, link: Link, message: Message | Malformed, now: float) -> None:
        """Answer a link that has not sent HELLO, or a faulty one: at most once a heartbeat.

        The answer to bytes that cannot be decoded gives the reason: the bytes may have been meant as a HELLO. A link
        that is merely not known any more is answered at once, even after such an answer.
        """
        unreadable = isinstance(message, Malformed) and message.op in (None, OP_OF[Hello])
        last, was_unreadable = self._unknown.get(link, (None, False))
        if last is not None and now - last < self._settings.limits.heartbeat_s and (unreadable or not was_unreadable):
            return
        self._unknown.pop(link, None)
        while len(self._unknown) >= self._settings.limits.max_strangers:
            del self._unknown[next(iter(self._unknown))]
            self._out.reached["max_strangers"] += 1
        self._unknown[link] = (now, unreadable)
        if isinstance(message, Malformed) and unreadable:
            self._out.notice("hello-refused", role="?", name="?", door=link.door, why=message.text)
            self._out.send(link, Error(*message))
        else:
            self._out.send(link, Error("hello-first", "this link is not known here; say HELLO"))

    def _hello(self, link: Link, peer: Peer | None, hello: Hello, now: float) -> None:
        if self._parting is not None:
            self._out.send(link, self._parting)
            return
        admitted = self._admit(link, peer, hello)
        if isinstance(admitted, Error):
            self._refuse(link, hello, admitted)
            return
        options, is_shadow = admitted.options, admitted.is_shadow
        is_auth = options is not None and AUTH_TYPE in options.types
        is_silent = peer in self._silent
        if peer is not None and (
            is_silent
            or peer.role != hello.role
            or is_shadow is not (peer.shadow is not None)
            or is_auth is not (peer.auth is not None)
        ):
            self.on_peer_lost(peer, SILENT_WHY if is_silent else "back in another role", now)
            peer = None
        self._unknown.pop(link, None)
        if peer is None:
            peer = self.by_link[link] = Peer(link, hello.role, hello.name, now)
            facts: dict[str, Any] = {"types": sorted(options.types)} if options else {}
            facts |= {"shadow": True} if is_shadow else {}
            if hello.role != "operator":  # an operator joins for each question from a command line
                self._out.notice("joined", role=hello.role, name=hello.name, **facts)
        peer.name, peer.last_heard, peer.leaving = hello.name, now, False
        peer.process = self._process_of(link)
        self._restarts.on_process_seen(peer.process)
        welcome = self._welcome_options(options)
        if hello.role == "bridge":
            welcome |= self._credit.join(link, hello.options)
            welcome |= {"broker": self._settings.broker} if self._settings.broker else {}
        self._out.send(link, Welcome(VERSION, self._settings.name, welcome))
        if options is not None:
            peer.version, peer.software = (_fact(hello.options.get(key)) for key in ("version", "software"))
            self._employ(peer, options, None if is_shadow else admitted.contracts, now)
        elif hello.role == "bridge":
            self._welcome_bridge(link, peer, hello, now)
        elif hello.role == "server":
            self._relays.on_contact(policy.fabric_peer(link.door, hello.name) or "", now)

    def _refuse(self, link: Link, hello: Hello, error: Error) -> None:
        key = {"key": link.party} if link.party else {}
        self._out.notice("hello-refused", role=hello.role, name=hello.name, door=link.door, why=error.text, **key)
        self._out.send(link, error)

    def _admit(self, link: Link, peer: Peer | None, hello: Hello) -> _Admitted | Error:
        """Return what a good HELLO asks for, or the ERROR that answers any other; `peer` is there where the link has
        said HELLO before."""
        error = refusal(self._settings, link, hello)
        if error is not None:
            return error
        admitted = _Admitted(None, False, {})
        if hello.role == "handler":
            options = handler_options(self._settings.limits, hello.options)
            if isinstance(options, Error):
                return options
            is_shadow = options.shadow or hello.name in self._settings.shadows
            error = foreign_types(self._settings, link, hello.name, options, shadow=is_shadow)
            if error is not None:
                return error
            try:
                contracts = self._contracts.read(hello.options.get("schema"), options.types, link)
            except ContractError as refused:
                return Error("schema", safe_note(str(refused)), OP_OF[Hello])
            admitted = _Admitted(options, is_shadow, contracts)
        if peer is None and len(self.by_link) >= self._settings.limits.max_parties:
            self._out.reached["max_parties"] += 1
            return Error("overloaded", "too many peers", OP_OF[Hello])
        return admitted

    def _welcome_options(self, handler: HandlerOptions | None) -> dict[str, Any]:
        """Return the options of a WELCOME; a handler's include its time for one message."""
        limits = self._settings.limits
        options: dict[str, Any] = {
            "heartbeat_ms": round(limits.heartbeat_s * 1000), "max_body": MAX_BODY_BYTES, "life": self._epoch,
        }  # fmt: skip
        if handler is not None:
            timeouts = self._timeouts
            if handler.shared is not None and not handler.shadow:
                options["exclusive"] = True
            options["request_ms"] = round(timeouts.usual_s(handler.lease_s) * 1000)
            configured_ms = {
                type_: round(timeouts.configured[type_] * 1000) for type_ in handler.types & timeouts.configured.keys()
            }
            if configured_ms:
                options["timeouts_ms"] = configured_ms
        return options

    def _welcome_bridge(self, link: Link, peer: Peer, hello: Hello, now: float) -> None:
        """Take in a bridge that has come, or has come back on another link: its old link is void then, whatever its
        state."""
        prefix = self._prefix_of(link, hello)
        listeners = hello.options.get("listeners")
        peer.listeners = [url for url in listeners if type(url) is str] if type(listeners) is list else []
        if link.door != "direct" and (peer.resume is None or peer.prefix != prefix):
            for other in [other for other in self.by_link.values() if other.prefix == prefix and other is not peer]:
                self.on_peer_lost(other, "back on another link", now)
            self._unlink(peer, now)
            resume = self.resumes.get(prefix)
            if resume is None:
                limits = self._settings.limits
                resume = self.resumes[prefix] = BridgeResume(
                    link, limits.sweep_at, limits.max_unacked, self._out.reached, is_shared=self._is_shared
                )
            else:
                resume.relink(link, now)
                self._unlinked.pop(prefix, None)
            peer.resume = resume
        elif peer.resume is not None:  # HELLO again on the same link: all sent before on the link is void
            peer.resume.on_link_lost(self._answers.take(link), now)
            peer.resume.relink(link, now)
        peer.prefix = prefix
        self._bridges[link] = prefix

    def _prefix_of(self, link: Link, hello: Hello) -> str:
        """Return the prefix of a bridge's ids, which names its life. Where the life that a bridge names is another
        party's, which anybody can read in an id, the bridge gets one of its own, as where it names none."""
        self._serial += 1
        epoch, own = hello.options.get("epoch"), f"{self._epoch}.{self._serial}"
        if type(epoch) is str and 0 < len(epoch) <= MAX_EPOCH and epoch.isprintable():  # part of ids
            prefix = _prefix(self._settings.name, hello.name, epoch)
            lives = [other.link for other in self.by_link.values() if other.prefix == prefix]
            if (resume := self.resumes.get(prefix)) is not None:
                lives.append(resume.owner)
            is_free = prefix != _prefix(self._settings.name, "emit", self._epoch)  # that of messages of handlers
            if is_free and all((other.door, other.party) == (link.door, link.party) for other in lives):
                return prefix
            self._out.notice(
                "refused", role="bridge", name=hello.name, code="not-allowed", text="another has its epoch"
            )
        return _prefix(self._settings.name, hello.name, own)

    def _employ(self, peer: Peer, options: HandlerOptions, contracts: dict[str, Contract] | None, now: float) -> None:
        """Make a handler's peer a worker with these contracts, or with None a shadow."""
        types, credit, ordered = options.types, options.credit, options.ordered
        peer.types = types
        if AUTH_TYPE in types:
            peer.auth = self._auth.join(peer.link, peer.name, credit, peer.process, peer.auth, now)
            peer.auth.lease_s = options.lease_s
            return
        if contracts is None:
            peer.shadow = self._shadows.join(peer.link, peer.name, types, credit, peer.shadow, now)
            return
        self._contracts.join(peer.link, peer.name, types, contracts, now)
        if peer.worker is None:
            peer.worker = self._workers.join(peer.link, types, credit, ordered, options.shared)
            self._changes.on_joined(peer.worker, types, now)
        else:
            self._changes.on_rejoined(peer.worker, types, credit, ordered, options.shared, now)
        peer.worker.lease_s = options.lease_s
        self._limit(peer.worker, peer.link, types)

    def _limit(self, worker: Worker, link: Link, types: frozenset[str]) -> None:
        """Bind a worker to the commands that its key grants, and its types allow."""
        grant = self._settings.grants.get(link.party)
        worker.commands = None if grant is None else grant.commands
        worker.limited = policy.is_limited(self._settings, worker.commands, types)

    def on_grants_changed(self, now: float) -> None:
        """Part from peers whose key is not known any more, or does not grant what they are; bind the others to what
        their keys grant now."""
        for peer in [peer for peer in self.by_link.values() if peer.link.party]:
            why = policy.may_join(self._settings, peer.link, peer.role, peer.name, peer.types)
            if why is not None:
                self._out.send(peer.link, Goodbye(why))
                self.on_peer_lost(peer, why, now)
            elif peer.worker is not None:
                self._limit(peer.worker, peer.link, peer.types)

    # --- going ---

    def on_goodbye(self, peer: Peer, now: float) -> None:
        """Let a peer leave; a handler first ends its messages in flight."""
        self._out.send(peer.link, Goodbye("goodbye"))
        peer.leaving = True
        if peer.worker is not None:
            self._contracts.leave(peer.link, now)
            self._changes.on_leaving(peer.worker, now)
            self.forget_when_done(peer)
        elif peer.shadow is not None:
            self._shadows.leave(peer.shadow)
            self.forget_when_done(peer)
        elif peer.auth is not None:
            self._auth.leave(peer.auth, now)
            self.forget_when_done(peer)
        else:
            self.on_peer_lost(peer, "goodbye", now)

    def forget_when_done(self, peer: Peer) -> None:
        """Forget a leaving handler once it has answered all its messages."""
        holder = peer.worker or peer.shadow or peer.auth
        if peer.leaving and holder is not None and not holder.inflight:
            self.by_link.pop(peer.link, None)
            self._out.notice("left", role=peer.role, name=peer.name)

    def on_peer_lost(self, peer: Peer, why: str, now: float) -> None:
        """Forget a peer that is gone, with or without GOODBYE; messages that a handler held go to others."""
        self.by_link.pop(peer.link, None)
        if peer.worker is not None or not peer.leaving:  # others that take their leave are sent what was left to them
            self.on_unsent(peer, self._take_unsent(peer.link))
        if peer.role != "operator":
            process = {} if peer.process is None else {"process": peer.process}
            self._out.notice("left" if peer.leaving else "lost", role=peer.role, name=peer.name, why=why, **process)
        if peer.worker is not None:
            self._contracts.leave(peer.link, now)
            self._changes.on_lost(peer.worker, now)
        if peer.shadow is not None:
            self._shadows.lose(peer.shadow)
        if peer.auth is not None:
            self._auth.lose(peer.auth, now)
        if peer.role == "operator":
            self._recordings.on_peer_lost(peer.link)
        if peer.role == "bridge":
            self._credit.leave(peer.link)
            self._unlink(peer, now)
            self._delivery_outcomes.on_bridge_lost(peer.link, now)

    def on_unsent(self, peer: Peer, messages: Iterable[Message]) -> None:
        """Take in messages that did not leave, to a peer that is lost next."""
        if peer.worker is not None:
            for message in messages:
                if type(message) is Request:
                    self._changes.on_unsent(peer.worker, message.token)

    def _unlink(self, peer: Peer, now: float) -> None:
        """Record that a bridge has lost its link; where there are too many, forget the first of them."""
        if peer.resume is None:
            return
        peer.resume.on_link_lost(self._answers.take(peer.link), now)
        self._unlinked[peer.prefix] = None
        while len(self._unlinked) > self._settings.limits.max_resumes:
            prefix = next(iter(self._unlinked))
            del self._unlinked[prefix], self.resumes[prefix]
            self._out.reached["max_resumes"] += 1

    # --- time ---

    def tick(self, now: float) -> bool:
        """Give up silent peers and send heartbeats; returns whether another peer's silence proves anything now."""
        limits = self._settings.limits
        if now - self._ticked > limits.heartbeat_s:  # pause of this process itself
            self._resumed = now
            for peer in self.by_link.values():
                peer.last_heard = now
        self._ticked = now
        silent = [peer for peer in self.by_link.values() if peer not in self._silent and self._is_silent(peer, now)]
        self._silent.update(dict.fromkeys(silent))
        self._changes.pass_over([peer.worker for peer in silent if peer.worker is not None], now)
        self.give_up_silent(now)
        if now - self._beat >= limits.heartbeat_s:
            self._beat = now
            self._beat_all(now)
        self._forget_resumes(now)
        # Messages that arrived meanwhile are read before any is held to be late.
        return now - self._resumed >= limits.heartbeat_s

    @property
    def has_silent(self) -> bool:
        """Return whether peers that have fallen silent are still to be given up."""
        return bool(self._silent)

    def give_up_silent(self, now: float) -> None:
        """Give up some of the peers that have fallen silent, also those that speak meanwhile: they say HELLO again."""
        for peer in list(islice(self._silent, GIVEN_UP_AT_ONCE)):
            del self._silent[peer]
            if self.by_link.get(peer.link) is not peer:
                continue  # gone meanwhile
            self.on_peer_lost(peer, SILENT_WHY, now)
            if peer.role == "handler":
                self._restarts.fell(peer, now)

    def _is_silent(self, peer: Peer, now: float) -> bool:
        """Return whether a peer is silent; what the peer has sent and this broker has not read counts as speech."""
        return peer.is_silent(self._settings.limits, now, self._is_stopped) and peer.is_silent(
            self._settings.limits, min(now, self._read_until(peer.link)), self._is_stopped
        )

    def _beat_all(self, now: float) -> None:
        """Send a heartbeat to every peer on the fabric; other servers compare their clock with this one's."""
        clock = Heartbeat({"clock_ms": round(self._clock.wall(now) * 1000)})
        for link, peer in self.by_link.items():
            if link.door != "direct":
                self._out.send(link, clock if peer.role == "server" else Heartbeat())

    def part_from_all(self, reason: str) -> None:
        """Send GOODBYE to every peer on the fabric, and to whoever comes from now on: a party welcomed by a broker that
        ends would believe the broker back, and say so."""
        self._parting = message = Goodbye(reason)
        for link in self.by_link:
            if link.door != "direct":
                self._out.send(link, message)

    def count_reports(self) -> None:
        """Count the reports sent to bridges that may lose their link; such a bridge counts those that arrive."""
        for link, messages in self._out.messages.items():
            peer = self.by_link.get(link)
            if peer is not None and peer.resume is not None:
                peer.resume.on_reports_sent(messages)

    def _forget_resumes(self, now: float) -> None:
        before = now - self._settings.limits.remember_s
        for prefix, resume in list(self.resumes.items()):
            if resume.since is not None and resume.since < before:
                resume.forget()
                if resume.link is None:
                    del self.resumes[prefix], self._unlinked[prefix]


def _prefix(server: str, name: str, epoch: str) -> str:
    """Return the prefix of a bridge's ids. A bridge whose name ends with its epoch has the epoch once in its ids, so
    that ids and log agree."""
    return f"{server}/{name.removesuffix(f'-{epoch}')}-{epoch}/"


def _fact(value: Any) -> str | None:
    """Return a text that a handler says about itself, None where there is none."""
    return safe_note(value)[:MAX_FACT] if type(value) is str else None
