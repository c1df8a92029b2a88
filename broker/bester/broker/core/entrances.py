"""How messages enter: from clients, from other servers, and from handlers of their own initiative.

Here a message gets its id and its identity: who it is from is what the link, the session and the address say, never
what it says of itself.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind
from bester.broker.core.exchange import Exchange
from bester.broker.core.parcels import Parcel
from bester.broker.core.parties import Peer
from bester.broker.core.values import Link, Notice, Outbox, Settings
from bester.broker.wire import json_text
from bester.broker.wire.messages import (
    HOP_LIMIT,
    MAX_BODY_BYTES,
    OP_OF,
    Emit,
    Error,
    Meta,
    Relay,
    Submit,
    is_reserved,
)

MAX_ID = 512
MAX_EMIT_IDS = 65_536
"""Ids of handlers' own emissions that are remembered; the oldest is forgotten first."""

_SUBMIT = Kind.SUBMIT


class Entrances:
    """The ways into the exchange. `epoch` tells the ids of this life from those of earlier ones."""

    def __init__(self, settings: Settings, exchange: Exchange, out: Outbox, epoch: str) -> None:
        self.settings = settings
        self.draining = False
        """What enters is refused: the broker is about to end."""
        self._exchange = exchange
        self._out = out
        self._epoch = epoch
        self._serial = 0
        self._emitted: OrderedDict[tuple[str, str], Case] = OrderedDict()

    def submit(self, peer: Peer, submit: Submit, now: float) -> None:
        """A client's message, or a native server's."""
        token, session, type_, body, _ = submit
        if session is None:
            self._submit_of_server(peer, submit, now)
            return
        id_ = f"{peer.prefix}{token}"
        case = Case(_SUBMIT, peer.link, token, id_, id_)
        user = self._exchange.directory.user(peer.link, session)
        if self.draining:
            self._exchange.refuse(case, "overloaded")
        elif user is None:
            self._exchange.refuse(case, "not-allowed")
        elif is_reserved(type_):
            self._exchange.refuse(case, "reserved")
        else:
            self._exchange.enter(Parcel(case, id_, id_, type_, body, "client", self.settings.name, user), now)

    def _submit_of_server(self, peer: Peer, submit: Submit, now: float) -> None:
        """A message by the native protocol: who sent it is what the address says, not what the header says."""
        meta = submit.meta
        host, claimed = meta.get("address"), meta.get("server")
        name = policy.native_peer(
            self.settings, host if type(host) is str else "", claimed if type(claimed) is str else None, submit.type
        )
        id_ = f"{peer.prefix}{submit.token}"
        told = name or (host if type(host) is str else "")
        self._from_server(Kind.SUBMIT, peer.link, submit.token, submit.type, submit.body, meta, id_, told, name, now)

    def relay(self, peer: Peer, relay: Relay, now: float) -> None:
        """A message of a server that has linked to us."""
        self._serial += 1
        name = policy.fabric_peer(peer.link.door, peer.name)
        listed = name if name in self.settings.routes else None
        told = name or f"a server over {peer.link.door}"
        id_ = f"{self.settings.name}/{name or peer.link.door}-{self._epoch}/{self._serial}"
        wrong = _body_fault(relay.body)
        if wrong is not None:
            self._exchange.refuse(Case(Kind.RELAY, peer.link, relay.token, id_, id_), wrong)
            return
        self._from_server(
            Kind.RELAY, peer.link, relay.token, relay.type, relay.body, relay.meta, id_, told, listed, now
        )

    def emit(self, peer: Peer, emit: Emit, now: float) -> Error | None:
        """A handler acts of its own initiative. Returns the ERROR that answers it where it may not.

        One that carries an id it carried before is not carried out again: its outcome is told again.
        """
        if emit.type not in peer.types:
            return Error("not-allowed", f"{emit.type!r} is not one of this handler's types", OP_OF[Emit], emit.token)
        given = emit.meta.get("id")
        key = (emit.type, given) if type(given) is str and len(given) <= MAX_ID else None
        earlier = self._emitted.get(key) if key is not None else None
        if earlier is not None:
            earlier.link, earlier.token = peer.link, emit.token  # not done yet: whoever asks last is told
            if not earlier.owed:
                self._out.say(peer.link, earlier.answer())
            return None
        self._serial += 1
        id_ = f"{self.settings.name}/emit-{self._epoch}/{self._serial}"
        case = Case(Kind.EMIT, peer.link, emit.token, id_, id_)
        if self.draining:
            self._exchange.refuse(case, "overloaded")
            return None
        if key is not None:
            self._emitted[key] = case
            if len(self._emitted) > MAX_EMIT_IDS:
                self._emitted.popitem(last=False)
        self._exchange.emit(case, emit.type, emit.commands, now)
        return None

    def _from_server(
        self, kind: Kind, link: Link, token: int, type_: str, body: bytes, meta: Meta, id_: str,
        told: str, listed: str | None, now: float,
    ) -> None:  # fmt: skip
        """A server's message enters. Only a listed server's ids and origin are taken over; anybody's path counts."""
        root = origin = None
        if listed is not None:
            id_ = _text(meta.get("id")) or id_
            root, origin = _text(meta.get("root")), _text(meta.get("origin"))
        case = Case(kind, link, token, id_, root or id_)
        code = "overloaded" if self.draining else policy.may_enter(self.settings, listed, type_)
        if code is not None:
            self._out.others.append(Notice("message-refused", {"server": told, "type": type_, "code": code}))
            self._exchange.refuse(case, code)
            return
        parcel = Parcel(case, id_, case.root, type_, body, "server", origin or told, peer=told, path=_path(meta))
        self._exchange.enter(parcel, now)


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
