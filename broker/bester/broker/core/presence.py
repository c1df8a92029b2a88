"""Who is there: parties greet, fall silent, leave, come back. What it means for messages, the exchange knows. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bester.broker.core import parties, policy
from bester.broker.core.exchange import Exchange
from bester.broker.core.known import Edge
from bester.broker.core.parties import Peer
from bester.broker.core.restarts import Restarts
from bester.broker.core.values import Link, Notice, Outbox, Settings
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
    Welcome,
)

MAX_EPOCH = 64
"""Characters of what a bridge calls its life."""


class Presence:
    """The parties of one broker, by link. `process_of` and `is_stopped` are what the system says of their processes."""

    def __init__(
        self, settings: Settings, exchange: Exchange, out: Outbox, epoch: str, now: float,
        process_of: Callable[[Link], int | None], is_stopped: Callable[[int], bool],
    ) -> None:  # fmt: skip
        self.restarts = Restarts(settings, exchange, out)
        self._process_of = process_of
        self._is_stopped = is_stopped
        self.peers: dict[Link, Peer] = {}
        self._settings = settings
        self._exchange = exchange
        self._out = out
        self._epoch = epoch
        self._strangers: dict[Link, tuple[float, bool]] = {}  # when answered, and whether it could not be read
        self.edges: dict[str, Edge] = {}  # by prefix of their ids, while a link to them may come back
        self._parted: dict[str, None] = {}  # of those, the ones without a link, the longest gone first
        self._serial = 0
        self._ticked = now
        self._resumed = now
        self._beat = now

    # --- coming ---

    def greet(self, link: Link, peer: Peer | None, message: Message | Malformed, now: float) -> None:
        """A link speaks that is not known, or says HELLO."""
        if isinstance(message, Hello):
            self._hello(link, peer, message, now)
        else:
            self._stranger(link, message, now)

    def _stranger(self, link: Link, message: Message | Malformed, now: float) -> None:
        """At most one answer a heartbeat to a link that has not said HELLO, or has tried and said it wrong.

        Of what cannot be read at all the answer says why: it may have been meant as a HELLO. A link that is merely not
        known any more is told so at once, even behind that.
        """
        unreadable = isinstance(message, Malformed) and message.op in (None, OP_OF[Hello])
        last, was_unreadable = self._strangers.get(link, (None, False))
        if last is not None and now - last < self._settings.limits.heartbeat_s and (unreadable or not was_unreadable):
            return
        self._strangers.pop(link, None)
        while len(self._strangers) >= self._settings.limits.max_strangers:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[link] = (now, unreadable)
        if isinstance(message, Malformed) and unreadable:
            self._notice("hello-refused", role="?", name="?", door=link.door, why=message.text)
            self._out.say(link, Error(*message))
        else:
            self._out.say(link, Error("hello-first", "this link is not known here; say HELLO"))

    def _hello(self, link: Link, peer: Peer | None, hello: Hello, now: float) -> None:
        error = parties.refusal(self._settings, link, hello)
        options = None
        if error is None and hello.role == "handler":
            read = parties.handler_options(self._settings.limits, hello.options)
            error, options = (read, None) if isinstance(read, Error) else (None, read)
        if error is None and peer is None and len(self.peers) >= self._settings.limits.max_parties:
            error = Error("overloaded", "too many parties", OP_OF[Hello])
        if error is not None:
            self._notice("hello-refused", role=hello.role, name=hello.name, door=link.door, why=error.text)
            self._out.say(link, error)
            return
        if peer is not None and peer.role != hello.role:
            self.lost(peer, "come back as another", now)
            peer = None
        self._strangers.pop(link, None)
        if peer is None:
            peer = self.peers[link] = Peer(link, hello.role, hello.name, now)
            types = {"types": sorted(options.types)} if options else {}
            if hello.role != "operator":  # one for each question asked from a command line
                self._notice("joined", role=hello.role, name=hello.name, **types)
        peer.name, peer.heard, peer.leaving = hello.name, now, False
        peer.process = self._process_of(link)
        self.restarts.came(peer.process)
        self._out.say(link, Welcome(VERSION, self._settings.name, self._welcome_options(options)))
        if options is not None:
            self._employ(peer, options, now)
        elif hello.role == "bridge":
            self._welcome_bridge(link, peer, hello, now)
        elif hello.role == "server":
            self._exchange.outboxes.contact(policy.fabric_peer(link.door, hello.name) or "", now)

    def _welcome_options(self, handler: parties.HandlerOptions | None) -> dict[str, Any]:
        """Return what a WELCOME says; to a handler also how long it may take over one message."""
        limits = self._settings.limits
        said: dict[str, Any] = {
            "heartbeat_ms": round(limits.heartbeat_s * 1000), "max_body": MAX_BODY_BYTES, "life": self._epoch,
        }  # fmt: skip
        if handler is not None:
            timeouts = self._exchange.timeouts
            said["request_ms"] = round(timeouts.usual_s(handler.lease_s) * 1000)
            own = {
                type_: round(timeouts.configured[type_] * 1000) for type_ in handler.types & timeouts.configured.keys()
            }
            if own:
                said["timeouts_ms"] = own
        return said

    def _welcome_bridge(self, link: Link, peer: Peer, hello: Hello, now: float) -> None:
        """A bridge has come, or has come back on another link: then the old one is void, whatever it looks like."""
        self._serial += 1
        epoch = hello.options.get("epoch")
        known_by = type(epoch) is str and 0 < len(epoch) <= MAX_EPOCH and epoch.isprintable()  # it stands in ids
        edge = epoch if known_by else f"{self._epoch}.{self._serial}"
        # A bridge whose name ends with its epoch is known in the log by what stands in its ids.
        prefix = f"{self._settings.name}/{hello.name.removesuffix(f'-{edge}')}-{edge}/"
        listeners = hello.options.get("listeners")
        peer.listeners = [url for url in listeners if type(url) is str] if type(listeners) is list else []
        if link.door != "direct" and (peer.edge is None or peer.prefix != prefix):
            for other in [other for other in self.peers.values() if other.prefix == prefix and other is not peer]:
                self.lost(other, "come back on another link", now)
            self._part(peer, now)
            known = self.edges.get(prefix)
            if known is None:
                limits = self._settings.limits
                known = self.edges[prefix] = Edge(link, limits.sweep_at, limits.max_unheard)
            else:
                known.relink(link, now)
                self._parted.pop(prefix, None)
            peer.edge = known
        elif peer.edge is not None:  # HELLO again on the same link: all that was said on it before is void, too
            peer.edge.cut(self._out.messages.get(link, ()), now)
            peer.edge.relink(link, now)
        peer.prefix = prefix
        self._exchange.bridges[link] = None

    def _employ(self, peer: Peer, options: parties.HandlerOptions, now: float) -> None:
        exchange = self._exchange
        types, credit, ordered = options.types, options.credit, options.ordered
        peer.types = types
        if peer.worker is None:
            peer.worker = exchange.workers.join(peer.link, types, credit, ordered)
            exchange.joined(peer.worker, types, now)
        else:
            exchange.rejoined(peer.worker, types, credit, ordered, now)
        peer.worker.lease_s = options.lease_s

    # --- going ---

    def goodbye(self, peer: Peer, now: float) -> None:
        """A party leaves; a handler ends first what it was given."""
        self._out.say(peer.link, Goodbye("goodbye"))
        peer.leaving = True
        if peer.worker is not None:
            self._exchange.leaves(peer.worker, now)
            self.forget_when_done(peer)
        else:
            self.lost(peer, "goodbye", now)

    def forget_when_done(self, peer: Peer) -> None:
        """A handler that leaves is gone once it owes no reply."""
        if peer.leaving and peer.worker is not None and not peer.worker.busy:
            self.peers.pop(peer.link, None)
            self._notice("left", role=peer.role, name=peer.name)

    def lost(self, peer: Peer, why: str, now: float) -> None:
        """A party is gone, whether it said so or not; what it held goes to others."""
        self.peers.pop(peer.link, None)
        if peer.role != "operator":
            self._notice("left" if peer.leaving else "lost", role=peer.role, name=peer.name, why=why)
        if peer.worker is not None:
            self._exchange.lost(peer.worker, now)
        if peer.role == "bridge":
            self._part(peer, now)
            self._exchange.bridge_lost(peer.link, now)

    def _part(self, peer: Peer, now: float) -> None:
        """The link of a bridge is no more this life's of it; remember what may have been lost with it."""
        if peer.edge is None:
            return
        peer.edge.cut(self._out.messages.get(peer.link, ()), now)
        self._parted[peer.prefix] = None
        while len(self._parted) > self._settings.limits.max_edges:
            prefix = next(iter(self._parted))
            del self._parted[prefix], self.edges[prefix]

    # --- time ---

    def tick(self, now: float) -> bool:
        """Give up who has fallen silent, and be heard; says whether the others' silence proves anything just now."""
        limits = self._settings.limits
        if now - self._ticked > limits.heartbeat_s:  # we were stopped ourselves
            self._resumed = now
            for peer in self.peers.values():
                peer.heard = now
        self._ticked = now
        for peer in [peer for peer in self.peers.values() if peer.silent(limits, now, self._is_stopped)]:
            self.lost(peer, "fallen silent", now)
            if peer.worker is not None:
                self.restarts.fell(peer, now)
        if now - self._beat >= limits.heartbeat_s:
            self._beat = now
            self.say_to_all(Heartbeat())
        self._forget_edges(now)
        return (
            now - self._resumed >= limits.heartbeat_s
        )  # what came meanwhile is read before anything is held to be late

    def say_to_all(self, message: Message) -> None:
        """Say something to everyone on the fabric."""
        for link in self.peers:
            if link.door != "direct":
                self._out.say(link, message)

    def _notice(self, event: str, **fields: Any) -> None:
        self._out.others.append(Notice(event, fields))

    def count_reports(self) -> None:
        """A bridge that may lose its link counts the reports that come on it, and so do we."""
        for link, messages in self._out.messages.items():
            peer = self.peers.get(link)
            if peer is not None and peer.edge is not None:
                peer.edge.told(messages)

    def _forget_edges(self, now: float) -> None:
        before = now - self._settings.limits.remember_s
        for prefix, edge in list(self.edges.items()):
            if edge.since is not None and edge.since < before:
                edge.forget()
                if edge.link is None:
                    del self.edges[prefix], self._parted[prefix]
