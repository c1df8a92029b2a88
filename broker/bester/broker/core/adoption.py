"""Adoption: the messages of another broker of the same server, whose lease in the shared store has run out.

A look at the brokers of the server is a read, and a status tells of them. Where there is such a namespace, its contents
are moved into this broker's own, in transactions of a bounded size, and each unit takes in its part as at a start, on
top of what it has. Moved messages get numbers that are reserved beforehand. Until the answer has come no lane tells its
server a floor above those numbers: the server would take the messages for settled ones. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bester.broker.core.clock import Clock
from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.effects import Effects, Link
from bester.broker.core.figures import StoreFigures
from bester.broker.core.inbound_lanes import InboundLanes
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.late_outcomes import LateOutcomes
from bester.broker.core.peer import Peer
from bester.broker.core.queues import Queues
from bester.broker.core.remote_notes import RemoteNotes
from bester.broker.core.reporters import Reporters
from bester.broker.core.settings import Limits
from bester.broker.core.standing import Standing
from bester.broker.store_brokers import Adopted, Brokers
from bester.broker.store_requests import Adopt, FindBrokers, Snapshot


class Adoption:
    """The looks for abandoned namespaces, where the store is shared. `names` are those that ids of this
    server's messages may begin with; `peers` are those of the broker, by link."""

    def __init__(
        self, limits: Limits, out: Effects, clock: Clock, figures: StoreFigures, names: set[str],
        peers: Mapping[Link, Peer], *, dispatcher: Dispatcher, queues: Queues, known_types: KnownTypes,
        inbound_lanes: InboundLanes, notes: RemoteNotes, reporters: Reporters, standing: Standing,
        late_outcomes: LateOutcomes, now: float, is_shared: bool,
    ) -> None:  # fmt: skip
        self._limits = limits
        self._out = out
        self._clock = clock
        self._figures = figures
        self._names = names
        self._peers = peers
        self._dispatcher = dispatcher
        self._queues = queues
        self._known_types = known_types
        self._inbound_lanes = inbound_lanes
        self._notes = notes
        self._reporters = reporters
        self._standing = standing
        self._late_outcomes = late_outcomes
        self._is_shared = is_shared
        self._look_at = now + limits.adoption_look_s
        self._asking = False
        self._first: int | None = None  # of the numbers that are reserved for an adoption without an answer
        self._brokers = Brokers()
        self._seen_at = now

    def tick(self, now: float) -> None:
        """Look for an abandoned namespace, or repeat an adoption whose answer was lost, where it is time."""
        if not self._is_shared or self._asking or now < self._look_at:
            return
        self._look_at = now + self._limits.adoption_look_s
        self._asking = True
        if self._first is None:
            self._out.read(FindBrokers(), self._on_found)
        else:
            self._ask(self._first, now)

    def _on_found(self, brokers: Brokers | None, now: float) -> None:
        """Take in the brokers of the server; None: the store cannot tell now, and the last look stays."""
        self._asking = False
        if brokers is None:
            return
        self._brokers, self._seen_at = brokers, now
        if any(each.state == "dead" for each in brokers.all):
            self._late_outcomes.on_silent_broker(now)
        if brokers.abandoned:
            self._begin(now)

    def as_map(self, now: float) -> dict[str, Any]:
        """Return the `brokers` of the server and their latest `adoptions`, as seen by the last look. A server that has
        a single broker, this one, has neither."""
        later_s = now - self._seen_at
        brokers = self._brokers.all if len(self._brokers.all) > 1 else ()
        return {
            "brokers": [
                {
                    "name": each.name, "state": each.state, "process": each.process, "waiting": each.waiting,
                    "gone_s": None if each.state == "lives" else round(each.gone_s + later_s, 3),
                }
                for each in brokers
            ],
            "adoptions": [
                each._asdict() | {"ago_s": round(each.ago_s + later_s, 3)} for each in self._brokers.adoptions
            ],
        }  # fmt: skip

    def _begin(self, now: float) -> None:
        self._first = self._queues.floor_limit = self._queues.reserve_numbers(self._limits.adopted_at_once)
        self._ask(self._first, now)

    def _ask(self, first: int, now: float) -> None:
        self._asking = True
        adopt = Adopt(first, self._limits.adopted_at_once, self._clock.stored(now))
        self._out.read(adopt, self.on_adopted)

    def on_adopted(self, adopted: Adopted | None, now: float) -> None:
        """Take in what was moved; None: the store cannot tell now, and is asked again."""
        self._asking = False
        if adopted is None:
            return
        self._first = self._queues.floor_limit = None
        if adopted.broker:
            messages = sum(state.messages for state in adopted.snapshot.queues.values())
            self._figures.adopted += messages
            self._out.notice(
                "adopted", broker=adopted.broker, messages=messages, outcomes=adopted.outcomes,
                dead_letters=adopted.dead_letters,
            )  # fmt: skip
            self._take(adopted.snapshot, now)
        if adopted.is_more:
            self._begin(now)

    def _take(self, moved: Snapshot, now: float) -> None:
        """Hand each unit what it has at a start; the queues come last, for they go on at once."""
        self._names.update(moved.names)
        self._known_types.adopt(moved.types)
        if answers := self._inbound_lanes.adopt(moved.lanes):
            workers = [peer.worker for peer in self._peers.values() if peer.worker is not None]
            self._dispatcher.on_answered(answers, workers, now)
        self._notes.adopt(moved.remote)
        self._reporters.adopt(moved.peers)
        self._standing.adopt(moved.held)
        self._late_outcomes.adopt(moved.disowned, now)
        self._queues.adopt(moved, now)
