"""Questions of an operator about other servers (`bester peers`), and orders: retry, hold, release, drop. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bester.broker.core.effects import Effects, Link, Reconnect
from bester.broker.core.peer import Peer
from bester.broker.core.queue_table import Queue
from bester.broker.core.queues import Queues
from bester.broker.core.relays import Relays
from bester.broker.core.remote_notes import RemoteNotes
from bester.broker.core.settings import Route, Settings
from bester.broker.core.standing import Standing
from bester.broker.store_requests import FindOldest, owner_of
from bester.broker.wire.messages import Answer, Ask, Meta

QUESTIONS = frozenset({"peers", "peerRetry", "peerHold", "peerRelease", "peerDrop"})
LOOK_S = 5.0
"""Time between two looks at the oldest message of each lane, which the store has to be asked for."""
MAX_ROWS = 100
"""Lanes of one server that are shown, the longest first; the others are summed up."""


class Cockpit:
    """Answers about the configured servers, and those that still have messages queued."""

    def __init__(
        self, settings: Settings, out: Effects, queues: Queues, relays: Relays, standing: Standing, notes: RemoteNotes
    ) -> None:
        self._settings = settings
        self._out = out
        self._queues = queues
        self._relays = relays
        self._standing = standing
        self._notes = notes
        self._oldest_at: dict[str, float] = {}  # by server, in the store's time
        self._look_at = 0.0
        self._looking = False

    def tick(self, now: float) -> None:
        """Look now and then since when the oldest message of each server has been queued."""
        if now >= self._look_at and not self._looking and next(iter(self._queues.lanes()), None) is not None:
            self._look_at = now + LOOK_S
            self._looking = True
            self._out.read(FindOldest(), self._on_oldest)

    def _on_oldest(self, oldest: Mapping[str, Meta] | None, now: float) -> None:
        self._looking = False
        self._oldest_at.clear()
        for key, meta in (oldest or {}).items():
            at_s, server = meta.get("at_s"), owner_of(key)
            if type(at_s) is float:
                self._oldest_at[server] = min(at_s, self._oldest_at.get(server, at_s))

    def oldest_s(self, now: float) -> dict[str, float]:
        """Return the age of the oldest message of each server with messages queued, in seconds, as of the last look."""
        stored_s = self._queues.clock.stored(now)
        return {
            server: max(0.0, stored_s - at_s)
            for server, at_s in self._oldest_at.items()
            if self._queues.lanes_to(server)
        }

    def on_question(self, link: Link, ask: Ask, peers: Iterable[Peer], now: float) -> Answer | None:
        """Answer a question. Returns None where the answer is sent after the store was read."""
        if ask.question == "peers":
            linked = {peer.name for peer in peers if peer.role == "server"}
            self._out.read(
                FindOldest(),
                lambda oldest, now: self._out.send(link, Answer(ask.token, 0, self._rows(oldest or {}, linked, now))),
            )
            return None
        name = ask.argument
        if type(name) is not str or name not in self._names():
            return Answer(ask.token, 1, None)
        return Answer(ask.token, 0, self._obey(ask.question, name, now))

    def _obey(self, question: str, name: str, now: float) -> dict[str, Any]:
        waiting = sum(queue.messages for queue in self._queues.lanes_to(name))
        if question == "peerHold":
            self._standing.hold(name, held=True)
        elif question == "peerDrop":
            self._relays.discard(name, now)
        else:
            if question == "peerRelease":
                self._standing.hold(name, held=False)
            self._relays.on_contact(name, now, linked=True)
            route = self._settings.routes.get(name)
            if route is not None and route.fabric is not None:
                self._out.calls.append(Reconnect(name))
        return {"messages": waiting, "held": name in self._standing.held}

    def _names(self) -> list[str]:
        """Return the configured servers, and those that were and have messages queued."""
        former = (owner_of(queue.key) for queue in self._queues.lanes())
        return list(dict.fromkeys((*self._settings.routes, *former)))

    def _rows(self, oldest: Mapping[str, Meta], linked: set[str], now: float) -> list[dict[str, Any]]:
        return [self._row(name, oldest, linked, now) for name in self._names()]

    def _row(self, name: str, oldest: Mapping[str, Meta], linked: set[str], now: float) -> dict[str, Any]:
        route = self._settings.routes.get(name, Route(name))
        server, lanes = self._standing.of(name, now), self._queues.lanes_to(name)
        up = Link("server", name.encode()) in self._relays.links
        state = "up" if up else "down" if route.fabric is not None else server.state
        is_held = name in self._standing.held
        retries = [queue.retry_at for queue in lanes if queue.ready and queue.retry_at > now and not is_held]
        lanes.sort(key=lambda queue: -queue.messages)
        rest = lanes[MAX_ROWS:]
        return {
            "name": name,
            "protocol": "fabric" if route.fabric else "native" if route.native else None,
            "address": route.fabric or route.native,
            "key": getattr(route, "key", None),
            "state": "held" if is_held else state,
            "reachable": state,
            "since_ms": self._ms(server.since),
            "linked_here": name in linked,
            "error": server.error,
            "error_ms": None if server.error_at is None else self._ms(server.error_at),
            "next_attempt_ms": self._ms(min(retries)) if retries else None,
            "outbox": [self._outbox(queue, oldest, now) for queue in lanes[:MAX_ROWS]],
            "more_types": len(rest),
            "more_messages": sum(queue.messages for queue in rest),
            "notes": self._notes.counts.get(name, 0),
        }

    def _outbox(self, queue: Queue, oldest: Mapping[str, Meta], now: float) -> dict[str, Any]:
        at_s = oldest.get(queue.key, {}).get("at_s")
        age_s = self._queues.clock.stored(now) - at_s if type(at_s) is float else None
        return {
            "type": queue.key.split("/", 2)[2],
            "messages": queue.messages,
            "bytes": queue.size_bytes,
            "in_flight": queue.inflight,
            "oldest_s": None if age_s is None else round(max(0.0, age_s), 3),
        }

    def _ms(self, at: float) -> int:
        return round(self._queues.clock.wall(at) * 1000)
