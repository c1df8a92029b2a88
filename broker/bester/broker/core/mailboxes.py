"""Mailboxes: the queues of users who are away, and their delivery when the users are back.

A mailbox is delivered in its order and before anything newer: as long as a message is ready, a new one goes behind. A
message stays on disk until a bridge has confirmed its delivery.

Where too much is in flight to all users together, mailboxes wait in line, and each takes its turn for what may be
fetched at once. Readers that take nothing hold their room until their connection is ended; some of the line go on
meanwhile. What is discarded waits for nobody: it is in flight to no one, and the name is free when all of it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bester.broker.core.deliveries import MAYBE, UNCONFIRMED, Deliveries, MailDelivery, Share
from bester.broker.core.directory import Directory
from bester.broker.core.effects import Effects
from bester.broker.core.queue_table import Queue
from bester.broker.core.queues import Queues
from bester.broker.core.trace import Trace
from bester.broker.store_requests import Entry, mailbox, owner_of
from bester.broker.wire.messages import Deliver, Meta
from bester.broker.wire.outcomes import DELIVERED

FROM_LINE = 8
"""Mailboxes of the line that go on at a tick though there is no room for them."""
LOOK_AGAIN_S = 1.0
"""Pause after a delivery that a connection had no room for, or did not acknowledge."""


class Mailboxes:
    """The mailboxes among the queues. `on_ended` is called with each message that has ended, and its outcome."""

    def __init__(
        self, queues: Queues, directory: Directory, deliveries: Deliveries, out: Effects,
        on_ended: Callable[[Entry, str, float], None], trace: Trace,
    ) -> None:  # fmt: skip
        self._queues = queues
        self._directory = directory
        self._deliveries = deliveries
        self._out = out
        self._on_ended = on_ended
        self._trace = trace
        self._later: dict[str, None] = {}  # users to look at again when it is time
        self._line: dict[str, None] = {}  # users who wait for room in flight, the first one first

    def must_queue(self, user: str) -> bool:
        """Return whether a new message for this user goes behind ready ones."""
        queue = self._queues.get(mailbox(user))
        return queue is not None and queue.is_ahead

    def on_login(self, user: str, now: float) -> None:
        """Deliver a user's mailbox: they have a connection, or one more."""
        queue = self._queues.get(mailbox(user))
        if queue is not None:
            queue.discard_as, queue.retry_at = None, 0.0
            self.advance(queue, now)

    def on_account_removed(self, user: str, outcome: str, now: float) -> None:
        """End all messages of a user whose account was removed, with this outcome."""
        queue = self._queues.get(mailbox(user))
        if queue is not None:
            queue.discard_as, queue.retry_at = outcome, 0.0
            self.advance(queue, now)

    def advance(self, queue: Queue, now: float, *, in_line: bool = True) -> None:
        """Fetch more of a mailbox, where its user is connected, a message is ready, and the window has room: when it is
        the mailbox's turn, where others wait in line."""
        limits = self._queues.limits
        if queue.ready <= 0 or queue.fetching or queue.inflight * 2 > limits.window:
            return
        user = owner_of(queue.key)
        if queue.discard_as is None and self._directory.places(user) is None:
            return
        if now < queue.retry_at:
            self._later[user] = None
            return
        if in_line and queue.discard_as is None and (self._line or self._queues.inflight_room(queue) <= 0):
            self._line[user] = None
            return
        self._queues.fetch(queue, limits.window - queue.inflight, self.on_fetched)

    def _advance_line(self, now: float, anyhow: int = 0) -> None:
        """Go on with the mailboxes in line as far as there is room, and with the first `anyhow` of them."""
        while self._line:
            user = next(iter(self._line))
            queue = self._queues.get(mailbox(user))
            if queue is not None and anyhow <= 0 and self._queues.inflight_room(queue) <= 0:
                return
            anyhow -= 1
            del self._line[user]
            if queue is not None:
                self.advance(queue, now, in_line=False)

    def on_fetched(self, queue: Queue, entries: Sequence[Entry], now: float) -> None:
        """Deliver the messages that were fetched, once their mark is on disk."""
        if not entries:
            self.advance(queue, now)
        elif queue.discard_as is not None:
            self._discard(queue, entries, queue.discard_as, now)
        elif self._directory.places(owner_of(queue.key)) is None:
            for entry in entries:
                self._queues.requeue(entry.number)
        else:
            self._queues.mark_sent(
                queue, entries, lambda marked, now: self._on_marked(queue, entries, marked, now), now
            )

    def _discard(self, queue: Queue, entries: Sequence[Entry], outcome: str, now: float) -> None:
        for entry in entries:
            self._queues.end(entry, outcome)
            self._on_ended(entry, outcome, now)
        self._later[owner_of(queue.key)] = None  # the rest at the next tick: other users come between

    def _on_marked(self, queue: Queue, entries: Sequence[Entry], marked: set[int], now: float) -> None:
        """Deliver messages to every connection of their user. The user may have left, or the account may have been
        removed, while the mark was written."""
        if queue.discard_as is not None:
            self._discard(queue, entries, queue.discard_as, now)
            return
        places = self._directory.places(owner_of(queue.key))
        if places is None:
            for entry in entries:
                self._queues.requeue(entry.number, unsent=entry.number not in marked)
            return
        for entry in entries:
            id_, _, t = entry.id.rpartition(".")
            meta: Meta = {"origin": entry.meta.get("origin")}
            again = entry.number in marked
            if again:
                meta["redelivered"] = True
            share = Share(len(places))
            for link, sessions in places.items():
                serial = self._deliveries.of(link).add(MailDelivery(entry, share, again))
                self._out.send(link, Deliver(serial, id_, entry.type, entry.body, [[int(t), *sessions]], None, meta))

    def on_delivered(self, mail: MailDelivery, reason: str | None, now: float) -> None:
        """Take in the end of a delivery at one bridge. `reason` says why no session there has had the bytes; it is None
        where one has."""
        entry, share = mail.entry, mail.share
        queue = self._queues.get(entry.queue)
        if not share.end(reason) or queue is None or not self._queues.is_inflight(entry.number):
            return
        if share.delivered:
            self._trace.add((now, str(entry.meta.get("root")), entry.id, DELIVERED, entry.target, 0.0))
            self._queues.end(entry, DELIVERED)
            self._on_ended(entry, DELIVERED, now)
        else:
            self._queues.requeue(entry.number, unsent=share.reason not in MAYBE and not mail.again)
            if share.reason not in ("not-connected", UNCONFIRMED):
                queue.retry_at = now + LOOK_AGAIN_S  # the user is connected, and does not read or acknowledge
        self.advance(queue, now)
        if self._line:
            self._advance_line(now)

    def tick(self, now: float) -> None:
        """Go on with the mailboxes that were put off."""
        self._advance_line(now, FROM_LINE)
        users, self._later = self._later, {}
        for user in users:
            queue = self._queues.get(mailbox(user))
            if queue is not None:
                self.advance(queue, now)
