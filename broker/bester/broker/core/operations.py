"""Operations of the wire: the unit that carries out each of them, by the role of the peer.

`core/policy.py` decides on the operations that a role may send; `table` has the function for each of them. An operation
that is none of its role's is refused, and so is one that cannot be read. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bester.broker.core import policy
from bester.broker.core.assemble import Units
from bester.broker.core.clock import Clock
from bester.broker.core.effects import Effects, Link, Verify
from bester.broker.core.peer import Peer
from bester.broker.core.runs import CarryOut, one_by_one
from bester.broker.wire.messages import (
    OP_OF,
    Ask,
    Close,
    Confirm,
    Emit,
    Error,
    Forwarded,
    Goodbye,
    Heartbeat,
    Hello,
    Login,
    Malformed,
    Message,
    Open,
    Relay,
    Relayed,
    Reply,
    Submit,
    Trace,
    Traced,
)
from bester.broker.wire.outcomes import failed
from bester.broker.wire.runs import MESSAGE_OF, READ_AS
from bester.broker.wire.unpacking import has_too_many

_REPLY_OP = OP_OF[Reply]
_RELAY_OP = OP_OF[Relay]
_TRACE_OP = OP_OF[Trace]


class Operations:
    """The operations of all peers. `ask` answers a question; `may_open` tells whether a session that a bridge
    announces, of this user and account, may go on."""

    def __init__(
        self,
        out: Effects,
        units: Units,
        clock: Clock,
        ask: Callable[[Peer, Ask, float], None],
        may_open: Callable[[str, str | None], bool],
    ) -> None:
        self._out = out
        self._units = units
        self._clock = clock
        self._may_open = may_open
        self._dispatcher = units.dispatcher
        self._handler_replies = units.replies
        self._delivery_outcomes = units.delivery_outcomes
        self._ingress = units.ingress
        self._peers = units.peers
        self._by_link = units.peers.by_link
        self._relays = units.relays
        carry_out: dict[type[Any], Callable[[Peer, Any, float], None]] = {
            Emit: self._emit, Ask: ask, Forwarded: self._forwarded, Login: self._login,
            Open: self._open, Close: self._close, Relay: units.ingress.relay, Trace: self._trace,
        }  # fmt: skip
        carry_out_run: dict[type[Any], CarryOut] = {
            Reply: self._replies, Submit: units.ingress.submit, Confirm: self._confirms,
            **{kind: one_by_one(carry_out[kind]) for kind in carry_out},
        }  # fmt: skip
        for kind, shape in READ_AS.items():
            carry_out_run[shape] = carry_out_run[kind]
        self.table = {
            role: {kind: take for kind, take in carry_out_run.items() if MESSAGE_OF.get(kind, kind) in kinds}
            for role, kinds in policy.MAY_SEND.items()
        }
        """Function that carries out a run of messages, by role and kind."""

    def take_each(
        self, link: Link, peer: Peer | None, messages: Sequence[Message | Malformed], now: float
    ) -> Peer | None:
        """Take in messages of a link without a peer, of a peer that leaves, or of a kind that is open to every role;
        return the peer that the link has then."""
        for message in messages:
            if type(message) is Malformed:
                self._count(message)
            if peer is None or type(message) is Hello:
                self._peers.greet(link, peer, message, now)
                peer = self._by_link.get(link)
                continue
            carry_out = self.table[peer.role].get(type(message))
            if carry_out is not None:
                carry_out(peer, (message,), now)
            else:
                self._common(peer, message, now)
            if peer.leaving:
                peer = self._by_link.get(link)
        return peer

    def _count(self, message: Malformed) -> None:
        if has_too_many(message):
            self._out.reached["max_values"] += 1

    # --- every role ---

    def _common(self, peer: Peer, message: Message | Malformed, now: float) -> None:
        if isinstance(message, Heartbeat):
            if message.options and peer.worker is not None:
                self._units.worker_changes.on_signals(peer.worker, message.options, now)
                self._peers.forget_when_done(peer)
            elif message.options:
                self._units.credit.on_report(peer.link, message.options)
            return
        if isinstance(message, Goodbye):
            self._peers.on_goodbye(peer, now)
        elif isinstance(message, Malformed):
            if message.op == _REPLY_OP and message.token is not None and peer.worker is not None:
                text = self._handler_replies.on_malformed_reply(peer.worker, message.token, message.text, now)
                message = message._replace(text=text)
                self._peers.forget_when_done(peer)
            elif message.op == _REPLY_OP and message.token is not None and peer.shadow is not None:
                self._units.shadows.on_malformed_reply(peer.shadow, message.token, now)
                self._peers.forget_when_done(peer)
            elif message.op == _REPLY_OP and message.token is not None and peer.auth is not None:
                self._units.auth.on_malformed_reply(peer.auth, message.token, now)
                self._peers.forget_when_done(peer)
            self._refuse(peer, Error(*message))
        elif not isinstance(message, Error):  # an ERROR is never answered by one
            kind: type[Any] = type(message)
            op = OP_OF[MESSAGE_OF.get(kind, kind)]
            self._refuse(peer, Error("unknown-op", f"operation {op} is not one for a {peer.role}", op))

    def _refuse(self, peer: Peer, error: Error) -> None:
        self._out.notice("refused", role=peer.role, name=peer.name, code=error.code, text=error.text)
        self._out.send(peer.link, error)

    # --- handlers ---

    def _replies(self, peer: Peer, replies: Sequence[Reply], now: float) -> None:
        worker = peer.worker
        if worker is not None:
            for reply, wrong in self._handler_replies.on_replies(worker, replies, now):
                self._refuse(peer, Error(*wrong, _REPLY_OP, reply.token))
        else:
            for reply in replies:
                fault = self._other_reply(peer, reply, now)
                if fault is not None:
                    self._refuse(peer, Error(*fault, _REPLY_OP, reply.token))
        if peer.leaving:  # after its last reply its message groups are for other workers
            if worker is not None:
                self._dispatcher.feed(worker, now)
            self._peers.forget_when_done(peer)

    def _other_reply(self, peer: Peer, reply: Reply, now: float) -> tuple[str, str] | None:
        """Take in the reply of a handler of logins, or of a shadow; return (code, text) where the reply is wrong."""
        if peer.auth is not None:
            return self._units.auth.on_reply(peer.auth, reply, now)
        assert peer.shadow is not None
        return self._units.shadows.on_reply(peer.shadow, reply, now)

    def _emit(self, peer: Peer, emit: Emit, now: float) -> None:
        if peer.shadow is not None:
            self._units.shadows.on_emit(peer.shadow, emit)
            return
        if peer.auth is not None:
            self._refuse(peer, Error("not-allowed", "a handler of logins emits nothing", OP_OF[Emit], emit.token))
            return
        error = self._ingress.emit(peer, emit, now)
        if error is not None:
            self._refuse(peer, error)

    # --- servers ---

    def take_answer(self, link: Link, message: Message | Malformed, now: float) -> None:
        """Take in the answer of a server that this broker has linked to; such a link carries answers alone."""
        if isinstance(message, Traced):
            self._units.following.on_traced(link, message)
        elif isinstance(message, Error) and message.op == _TRACE_OP:
            self._units.following.on_refused(link, message.token, message.code)
        elif isinstance(message, Relayed):
            self._relays.on_answer(link, message.token, message.outcome, message.meta, now)
        elif isinstance(message, Error) and message.op == _RELAY_OP and message.token is not None:
            self._relays.on_answer(link, message.token, failed(message.code), {}, now)
        elif isinstance(message, Heartbeat) and message.options:
            clock_ms = message.options.get("clock_ms")
            self._units.standing.on_clock(link.key.decode(), clock_ms, self._clock.wall(now), now)
        elif isinstance(message, Malformed):
            self._count(message)

    def _trace(self, peer: Peer, message: Trace, now: float) -> None:
        name = policy.fabric_peer(peer.link.door, peer.name)
        self._units.following.on_asked(peer.link, name, message, now)

    # --- bridges ---

    def _login(self, peer: Peer, login: Login, now: float) -> None:
        peer.logins.add(login.session)
        self._out.calls.append(Verify(peer.link, login.session, login.user, login.password, login.address))

    def _open(self, peer: Peer, message: Open, now: float) -> None:
        if self._may_open(message.user, message.account) and self._units.directory.open(
            peer.link, message.session, message.user
        ):
            self._units.mailboxes.on_login(message.user, now)
        else:
            self._out.send(peer.link, Close(message.session))

    def _close(self, peer: Peer, message: Close, now: float) -> None:
        peer.logins.discard(message.session)
        self._units.directory.close(peer.link, message.session)

    def _confirms(self, peer: Peer, confirms: Sequence[Confirm], now: float) -> None:
        for confirm in confirms:
            if confirm.reports and peer.resume is not None:
                peer.resume.on_reports_counted(confirm.reports)
            self._delivery_outcomes.on_confirm(peer.link, confirm, now)

    def _forwarded(self, peer: Peer, message: Forwarded, now: float) -> None:
        self._relays.on_answer(peer.link, message.token, message.outcome, message.meta, now)
