"""What became of a message after its sender was told `queued`: who is told, and how it comes back from other servers.

The sender may ask; where it wished so it gets a message of type `bester.outcome`; and a server that sent the message is
told by a message of that type on a lane of its own, which is kept until it has arrived, like any other.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from bester.broker.core import dead_letters
from bester.broker.core.cases import Case, Reports
from bester.broker.core.effects import Effects
from bester.broker.core.queues import Queues
from bester.broker.core.settings import Settings
from bester.broker.core.transfers import Transfers
from bester.broker.store_requests import (
    OUTCOME_KEPT_S,
    DeadLetter,
    End,
    Entry,
    FindEntry,
    Rewrite,
    is_mailbox,
    lane,
    mailbox,
    owner_of,
)
from bester.broker.wire.messages import Meta
from bester.broker.wire.outcomes import DELIVERED, OUTCOME_TYPE, SENT, failed, is_final, severity, worst

MAX_OUTCOME_BYTES = 4096
"""Of what another server says became of one message: an id and a code."""
MAX_COUNTED = 65_536
"""Messages of which news has come in this life; of more than that it is read from the disk again."""


class LateOutcomes:
    """Later outcomes, of what was kept here and of what waits elsewhere."""

    def __init__(
        self, settings: Settings, queues: Queues, transfers: Transfers, reports: Reports, out: Effects, now: float
    ) -> None:
        self._settings = settings
        self._started = now
        self._queues = queues
        self._transfers = transfers
        self._reports = reports
        self._out = out
        self._counted: OrderedDict[int, tuple[int, str]] = OrderedDict()
        """By number: how many outcomes are still to come, and the worst so far. What was read from the disk may be
        older: one turn brings several pieces of news, and a disk that is full takes none of them for a while."""

    def on_ended(self, entry: Entry, outcome: str, now: float, *, amended: bool = False) -> None:
        """A kept message has ended: tell whoever is to be told. What a server would not have becomes a dead letter."""
        meta, number = entry.meta, int(amended)
        if not is_mailbox(entry.queue) and outcome not in (DELIVERED, SENT) and entry.body:
            self._bury(entry, outcome, now)
        message, peer = meta.get("message"), meta.get("peer")
        if entry.sender is not None and meta.get("push") and message is not None:
            said = {"message": message, "recipient": entry.target, "outcome": outcome}
            until_s = self._queues.clock.stored(now) + self._settings.bounds.ttl_s
            self._enqueue(mailbox(entry.sender), entry, entry.sender, said, until_s, number, now)
        if type(peer) is str and peer in self._settings.routes and message is not None:
            said = {"message": message, "outcome": outcome}
            until_s = (
                max(self._queues.clock.stored(now), entry.expires_s) + OUTCOME_KEPT_S
            )  # as long as anybody may ask there
            self._enqueue(lane(peer, OUTCOME_TYPE), entry, peer, said, until_s, number, now)

    def _enqueue(
        self, queue: str, entry: Entry, target: str, said: dict[str, Any], until_s: float, number: int, now: float
    ) -> None:
        """News of a message wait like a message; of the news themselves there are none."""
        body = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        meta: Meta = {"origin": self._settings.name, "root": entry.meta.get("root"), "path": []}
        news = Entry(
            self._queues.reserve_numbers(1), queue, f"{entry.id}.outcome.{number}", target, OUTCOME_TYPE, body, None,
            until_s, meta,
        )  # fmt: skip
        self._queues.enqueue(news, None, now)  # where there is no room, whoever wants to know may still ask

    def _bury(self, entry: Entry, outcome: str, now: float) -> None:
        if entry.type == OUTCOME_TYPE:
            return
        meta: Meta = {key: entry.meta[key] for key in ("root", "origin", "path", "peer") if key in entry.meta}
        meta |= {
            "user": entry.sender,
            "scope": "handler",
            "attempts": 0,
            "server": owner_of(entry.queue),
            "bytes": len(entry.body),
        }
        dead_letters.bury(
            DeadLetter(entry.id, entry.type, entry.body, outcome[7:], self._queues.clock.wall(now), meta), self._out
        )

    # --- from other servers ---

    def receive(self, peer: str, body: bytes, case: Case) -> str | None:
        """Take in what another server says became of a message that waited there; the case ends when the message was
        looked up. Returns a code where the body cannot be read."""
        if len(body) > MAX_OUTCOME_BYTES:
            return "malformed"
        try:
            said = json.loads(body)
        except ValueError:
            return "malformed"
        message, outcome = (said.get("message"), said.get("outcome")) if isinstance(said, dict) else (None, None)
        if type(message) is not str or type(outcome) is not str:
            return "malformed"
        if not is_final(outcome):
            return "malformed"
        self._out.read(
            FindEntry(message, peer),
            lambda answer, now: self._reports.settle(case, None, self._on_entry_found(message, outcome, answer, now)),
        )
        return None

    def _amend(self, entry: Entry, before: str, outcome: str, now: float) -> None:
        """More news than were expected: a server that did it twice, over its own death, tells of both. It may be that a
        failure comes last, and then that is the truth."""
        if severity(outcome) > severity(before):
            self._counted[entry.number] = 0, outcome
            self._out.writes.append(Rewrite(entry.number, entry.meta | {"left": 0, "worst": outcome}))
            self._out.writes.append(End(entry.number, outcome))
            self.on_ended(entry, outcome, now, amended=True)

    def _on_entry_found(self, id_: str, outcome: str, answer: tuple[Entry, str | None] | None, now: float) -> str:
        """The message in question; returns the outcome of the news: failed for now, where they came too early."""
        if answer is None:
            # After a start it may be sent again, for the life before had it from somebody: then all of its news count.
            young = now < self._started + self._settings.limits.restart_s
            return failed("overloaded") if young or self._transfers.is_inflight(id_) else DELIVERED
        entry, state = answer
        if state is None:  # the answer that it waits there has not come yet
            return failed("overloaded")
        left, so_far = self._counted.get(entry.number) or (entry.meta.get("left"), entry.meta.get("worst", DELIVERED))
        if type(left) is not int:
            return DELIVERED
        if left < 1:
            self._amend(entry, worst(so_far, state), outcome, now)
            return DELIVERED
        left, so_far = left - 1, worst(so_far, outcome)
        self._counted[entry.number] = left, so_far
        if len(self._counted) > MAX_COUNTED:
            self._counted.popitem(last=False)
        self._out.writes.append(Rewrite(entry.number, entry.meta | {"left": left, "worst": so_far}))
        if not left:
            self._out.writes.append(End(entry.number, so_far))
            self.on_ended(entry, so_far, now)
        return DELIVERED
