"""Late outcomes: the outcomes of messages after a report of `queued`, sent to their recipients, and received
from other servers. Pure.

The sender may ask for the outcome, and gets a message of type `bester.outcome` where it wished so. A server that sent
the message gets a message of that type on a lane of its own, kept until it is delivered like any other.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from bester.broker.core import dead_letters
from bester.broker.core.cases import Case, Reports
from bester.broker.core.effects import Effects
from bester.broker.core.figures import Figures
from bester.broker.core.queues import DAMAGED_CODE, Queues
from bester.broker.core.remote_notes import RemoteNotes
from bester.broker.core.settings import Settings
from bester.broker.core.transfers import Transfers
from bester.broker.store_requests import (
    OUTCOME_KEPT_S,
    About,
    DeadLetter,
    Disown,
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
from bester.broker.wire.outcomes import DELIVERED, OUTCOME_TYPE, QUEUED, SENT, failed, is_final, severity, worst

MAX_OUTCOME_BYTES = 4096
"""Bytes of a late outcome from another server: an id and a code."""
SILENT_TIMES = 5
"""Times that a server may take to answer, for which an outcome is sent again at most because a broker was silent."""
MAX_COUNTED = 65_536
"""Messages whose late outcomes are counted in memory; those of others are read from the disk again."""


class LateOutcomes:
    """Late outcomes, of messages queued here and of messages queued at other servers.

    `_counted` has, by number, how many outcomes of a message are still to come, and the worst so far. The disk may be
    behind: one turn brings several outcomes, and a full disk takes none of them for a while. `_unknown` are messages
    that another broker of this server may have in flight, where the store is shared.
    """

    def __init__(
        self, settings: Settings, queues: Queues, transfers: Transfers, reports: Reports, out: Effects,
        notes: RemoteNotes, figures: Figures, disowned: Mapping[str, tuple[int, float]], now: float, *,
        is_shared: bool = False,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._notes = notes
        self._figures = figures
        self._disowned = dict(disowned)
        self._started = now
        self._queues = queues
        self._transfers = transfers
        self._reports = reports
        self._out = out
        self._counted: OrderedDict[int, tuple[int, str]] = OrderedDict()
        self._is_shared = is_shared
        self._unknown: OrderedDict[tuple[str, str], float] = OrderedDict()  # servers and ids, and since when
        self._silent_at = now

    def on_ended(self, entry: Entry, outcome: str, now: float, *, amended: bool = False) -> None:
        """Send the outcome of a queued message that has ended to its recipient; bury a message that a server
        has refused. `amended`: another outcome was sent before."""
        meta, number = entry.meta, int(amended)
        if not is_mailbox(entry.queue) and outcome not in (DELIVERED, SENT) and entry.body:
            self._bury(entry, outcome, now)
        message, peer = meta.get("message"), meta.get("peer")
        if entry.sender is not None and meta.get("push") and message is not None and self._owns(entry):
            report = {"message": message, "recipient": entry.target, "outcome": outcome}
            until_s = self._queues.clock.stored(now) + self._settings.bounds.ttl_s
            about = None if amended else About(entry.id, entry.queue, outcome not in (DELIVERED, SENT))
            self._enqueue(mailbox(entry.sender), entry, entry.sender, report, until_s, number, now, about)
        if type(peer) is str and peer in self._settings.routes and message is not None:
            report = {"message": message, "outcome": outcome}
            # The outcome can be asked for over there as long as this.
            until_s = max(self._queues.clock.stored(now), entry.expires_s) + OUTCOME_KEPT_S
            self._enqueue(lane(peer, OUTCOME_TYPE), entry, peer, report, until_s, number, now)

    def _enqueue(
        self, queue: str, entry: Entry, target: str, report: dict[str, Any], until_s: float, number: int, now: float,
        about: About | None = None,
    ) -> None:  # fmt: skip
        """Enqueue an outcome as a message without a sender: it has no late outcome of its own. Of a message that was
        submitted at two brokers both may tell: then the outcome of the one that came later is marked, as it is."""
        body = json.dumps(report, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        meta: Meta = {"origin": self._settings.name, "root": entry.meta.get("root"), "path": []}
        if about is not None and self._is_shared and entry.meta.get("repeated"):
            meta["repeated"] = True
        late = Entry(
            self._queues.reserve_numbers(1), queue, f"{entry.id}.outcome.{number}", target, OUTCOME_TYPE, body, None,
            until_s, meta,
        )  # fmt: skip
        self._queues.enqueue(late, None, now, about)  # without room for it, the outcome can still be asked for

    def on_account_removed(self, user: str, now: float) -> None:
        """Keep the outcomes of all messages of a removed account so far from a new account of its name."""
        upto, at_s = self._queues.next_number - 1, self._queues.clock.wall(now)
        if self._disowned.get(user, (-1, 0.0))[0] != upto:
            self._disowned[user] = upto, at_s
            self._out.writes.append(Disown(user, upto, at_s))

    def adopt(self, disowned: Mapping[str, tuple[int, float]], now: float) -> None:
        """Take in the removed accounts of another broker of this server. Its messages may still be submitted again
        here, and outcomes of those that are not known yet are to be sent again for a while."""
        for user, (upto, at_s) in disowned.items():
            known = self._disowned.get(user, (upto, at_s))
            self._disowned[user] = known[0], max(known[1], at_s)
        self._started = now

    def on_silent_broker(self, now: float) -> None:
        """Take in that another broker of this server is silent: where it is frozen, it has yet to record what other
        servers have answered."""
        self._silent_at = now

    def _owns(self, entry: Entry) -> bool:
        """Return whether the sender of a message has the account with which the message was sent."""
        return entry.number > self._disowned.get(entry.sender or "", (-1, 0.0))[0]

    def owns_letter(self, letter: DeadLetter) -> bool:
        """Return the same for the sender of a dead letter."""
        user = letter.meta.get("user")
        return type(user) is not str or user not in self._disowned or letter.at_s > self._disowned[user][1]

    def on_damaged(self, entry: Entry, why: str, now: float) -> None:
        """Bury a message that the store cannot read whole, as far as it can be read."""
        self._out.notice("damaged", queue=entry.queue, number=entry.number, id=entry.id, why=why)
        meta: Meta = {"user": entry.sender, "scope": "handler", "attempts": 0, "bytes": len(entry.body)}
        if not is_mailbox(entry.queue):
            meta["server"] = owner_of(entry.queue)
        at_s = self._queues.clock.wall(now)
        letter = DeadLetter(f"{entry.id}.damaged.{entry.number}", entry.type, entry.body, DAMAGED_CODE, at_s, meta)
        dead_letters.bury(letter, self._out, self._figures, now)

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
        letter = DeadLetter(entry.id, entry.type, entry.body, outcome[7:], self._queues.clock.wall(now), meta)
        dead_letters.bury(letter, self._out, self._figures, now)

    # --- from other servers ---

    def receive(self, peer: str, body: bytes, case: Case) -> str | None:
        """Read the outcome of a message that was queued at server `peer`, and look the message up; `case` ends with
        the answer. Returns a code where the outcome cannot be read."""
        if len(body) > MAX_OUTCOME_BYTES:
            return "malformed"
        try:
            value = json.loads(body)
        except ValueError:
            return "malformed"
        message, outcome = (value.get("message"), value.get("outcome")) if isinstance(value, dict) else (None, None)
        if type(message) is not str or type(outcome) is not str:
            return "malformed"
        if not is_final(outcome):
            return "malformed"
        find = FindEntry(message, peer, self._queues.reserve_numbers(1) if self._is_shared else 0)
        self._out.read(
            find,
            lambda answer, now: self._reports.settle(case, None, self._on_entry_found(find, outcome, answer, now)),
        )
        return None

    def _amend(self, entry: Entry, before: str, outcome: str, now: float) -> None:
        """Take in an outcome beyond those expected, where it is worse: a server that processed the message twice, over
        a restart, reports both times, and a failure that comes last is the truth."""
        if severity(outcome) > severity(before):
            self._counted[entry.number] = 0, outcome
            self._out.writes.append(Rewrite(entry.number, entry.meta | {"left": 0, "worst": outcome}))
            self._out.writes.append(End(entry.number, outcome))
            self.on_ended(entry, outcome, now, amended=True)

    def _on_entry_found(
        self, find: FindEntry, outcome: str, answer: tuple[Entry, str | None] | None, now: float
    ) -> str:
        """Take in the message that an outcome is about, None where there is none. Returns the outcome for the server
        that sent it: a failure that is tried again, where it came before the message was recorded."""
        id_, peer, number = find
        if answer is None:
            # Soon after a start the message may still be submitted again: then all of its outcomes count.
            young = now < self._started + self._settings.limits.restart_s
            early = self._transfers.is_inflight(id_) or self._queues.is_recording(id_)
            return failed("overloaded") if young or early or self._may_be_known(peer, id_, now) else DELIVERED
        self._unknown.pop((peer, id_), None)
        entry, state = answer
        if state is None:  # the answer `queued` has not come yet
            return failed("overloaded")
        if entry.number == number and state == QUEUED:  # the note of another broker, which was moved here
            self._notes.add(peer)
        left, so_far = entry.meta.get("left"), entry.meta.get("worst", DELIVERED)
        if type(left) is not int:
            return DELIVERED
        if entry.number in self._counted:  # the store may be behind, or ahead by what it has united
            counted, counted_worst = self._counted[entry.number]
            left, so_far = min(left, counted), worst(so_far, counted_worst)
        if left < 1:
            self._amend(entry, worst(so_far, state), outcome, now)
            return DELIVERED
        left, so_far = left - 1, worst(so_far, outcome)
        self._counted[entry.number] = left, so_far
        if len(self._counted) > MAX_COUNTED:
            self._counted.popitem(last=False)
        self._out.writes.append(Rewrite(entry.number, entry.meta | {"left": left, "worst": so_far}))
        if not left:
            self._notes.remove(peer)
            self._out.writes.append(End(entry.number, so_far))
            self.on_ended(entry, so_far, now)
        return DELIVERED

    def _may_be_known(self, peer: str, id_: str, now: float) -> bool:
        """Return whether another broker of this server may have sent the message, and not recorded it yet: for as long
        as a server may take to answer, since the outcome came for the first time, or a broker was silent."""
        if not self._is_shared:
            return False
        since = self._unknown.setdefault((peer, id_), now)  # which stays: a message has several outcomes
        if len(self._unknown) > MAX_COUNTED:
            self._unknown.popitem(last=False)
        answer_s = self._settings.limits.relay_s
        return now - max(since, self._silent_at) < answer_s and now - since < SILENT_TIMES * answer_s
