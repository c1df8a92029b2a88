"""The table of all queues: how many messages and bytes each one has, and whether there is room for another message.

Pure counting: `queues` has the states of the messages, and says what is counted in and out.
"""

from __future__ import annotations

from collections.abc import Iterator

from bester.broker.core.inspection import Bound
from bester.broker.core.settings import Limits, Settings
from bester.broker.core.shares import Shares
from bester.broker.store_requests import Snapshot, StoredQueue, is_mailbox, lane, owner_of
from bester.broker.wire.outcomes import OUTCOME_TYPE

FULL = 0.9
"""Part of the bound from which a mailbox is nearly full: its user has time to act."""
SERVERS = 8
"""Divisor of what may be in flight to all servers: so much to one of them, for it may answer nothing."""


class Queue:
    """A queue: the mailbox of a user, or the messages of one type to one server.

    `messages` and `size_bytes` count all of it, `inflight` and `inflight_bytes` the messages that are sent out. All
    messages up to `cursor` have been fetched, and are in flight or have ended. `sent_upto` is the highest number that
    was ever sent. `fetching`: a read is under way. `marking` counts groups of messages that were fetched and are sent
    as soon as the disk has their mark: a new message goes behind them. Nothing is fetched before `retry_at`; `delay_s`
    is the back-off, 0 where the last try went well. `discard_as` is the outcome of everything in the queue, where its
    user was removed. Messages up to number `discard_upto` of a lane were dropped by the operator, and are ended instead
    of sent.
    """

    __slots__ = (
        "cursor",
        "delay_s",
        "discard_as",
        "discard_upto",
        "fetching",
        "inflight",
        "inflight_bytes",
        "key",
        "marking",
        "messages",
        "numbers",
        "retry_at",
        "sent_upto",
        "size_bytes",
    )

    def __init__(self, key: str, state: StoredQueue | None = None) -> None:
        self.key = key
        self.messages = state.messages if state else 0
        self.size_bytes = state.size_bytes if state else 0
        self.sent_upto = state.sent_upto if state else 0
        self.cursor = 0
        self.inflight = 0
        self.inflight_bytes = 0
        self.numbers: list[int] = []  # a heap: those in flight, and some that were
        self.fetching = False
        self.marking = 0
        self.retry_at = 0.0
        self.delay_s = 0.0
        self.discard_as: str | None = None
        self.discard_upto = 0

    @property
    def ready(self) -> int:
        """Count of the messages that are not in flight: a new one goes behind them."""
        return self.messages - self.inflight

    @property
    def is_ahead(self) -> bool:
        """Return whether messages of the queue are still to be sent, so that a new one goes behind them."""
        return self.messages > self.inflight or self.marking > 0


class _Server:
    """All queues to one server, by key, and their messages and bytes together."""

    __slots__ = ("lanes", "messages", "size_bytes")

    def __init__(self) -> None:
        self.lanes: dict[str, Queue] = {}
        self.messages = 0
        self.size_bytes = 0


class QueueTable:
    """All queues by key, those to one server together, and their bounds.

    `messages` counts the messages of all queues, in flight or not, `size_bytes` their bodies; `inflight` those in
    flight; `mailboxes` the queues of users, with `mailbox_messages` in them. `nearly_full` are the mailboxes of which
    FULL of a bound is used, by key: a look at the server must not take longer the more mailboxes there are.
    `mailbox_inflight_bytes` and `lane_inflight_bytes` are the bodies in flight to users and to servers, and those that
    reads under way may bring.
    """

    def __init__(self, settings: Settings, snapshot: Snapshot) -> None:
        self.limits: Limits = settings.limits
        self.messages = 0
        self.inflight = 0
        self.mailboxes = 0
        self.mailbox_messages = 0
        self.mailbox_inflight_bytes = 0
        self.lane_inflight_bytes = 0
        self.nearly_full: dict[str, Queue] = {}
        self._bounds = settings.bounds
        self._full_messages = FULL * settings.bounds.user_messages
        self._full_bytes = FULL * settings.bounds.user_bytes
        self.size_bytes = 0
        self._queues: dict[str, Queue] = {}
        self._servers: dict[str, _Server] = {}
        self._shares = Shares(settings.bounds, snapshot.shares)
        for key, state in snapshot.queues.items():
            if state.messages:
                self._add(Queue(key, state))

    def get(self, key: str) -> Queue | None:
        """Return the queue, None where it is empty."""
        return self._queues.get(key)

    def lanes(self) -> list[Queue]:
        """Return the queues to servers: a few, where there may be many mailboxes."""
        return [queue for server in self._servers.values() for queue in server.lanes.values()] if self._servers else []

    def lanes_to(self, server: str) -> list[Queue]:
        """Return the queues to one server."""
        owner = self._servers.get(server)
        return list(owner.lanes.values()) if owner is not None else []

    def owners(self) -> Iterator[str]:
        """Yield the users with a mailbox that is not empty, as of this call."""
        return (owner_of(key) for key in list(self._queues) if is_mailbox(key))

    def bounds(self) -> dict[str, Bound]:
        """Return how full the queues are together, by the name of the bound."""
        bounds = self._bounds
        return {
            "queued": Bound(self.messages, bounds.messages),
            "queued_bytes": Bound(self.size_bytes, bounds.total_bytes),
        }

    def bound_reached(self, key: str, sharer: str | None, size: int) -> tuple[str | None, str | None]:
        """Return the code with which a message of `size` bytes is refused, and the name of the bound that is reached;
        None where there is room. `sharer` is the sender of whose share it takes room."""
        bounds = self._bounds
        if self.messages >= bounds.messages:
            return "storage-full", "messages"
        if self.size_bytes + size > bounds.total_bytes:
            return "storage-full", "total_bytes"
        if is_mailbox(key):
            queue = self._queues.get(key)
            if queue is not None and queue.messages >= bounds.user_messages:
                return "mailbox-full", "user_messages"
            if queue is not None and queue.size_bytes + size > bounds.user_bytes:
                return "mailbox-full", "user_bytes"
            if self._shares.is_full(key, sharer, size):
                return "mailbox-full", "sender_share"
        left, left_bytes = bounds.messages - self.messages, bounds.total_bytes - self.size_bytes
        reached = self._shares.rest_reached(sharer, size, left, left_bytes)
        if reached is not None:
            return "storage-full", reached
        return (None, None) if is_mailbox(key) else self._server_reached(key, sharer, size)

    def _server_reached(self, key: str, sharer: str | None, size: int) -> tuple[str | None, str | None]:
        """Return the code and bound of a lane as `bound_reached` does."""
        bounds = self._bounds
        server = self._servers.get(owner_of(key))
        # Other messages to a server must not keep outcomes from it.
        if server is None or key == lane(owner_of(key), OUTCOME_TYPE):
            return None, None
        if server.messages >= bounds.server_messages:
            return "overloaded", "server_messages"
        if server.size_bytes + size > bounds.server_bytes:
            return "overloaded", "server_bytes"
        left, left_bytes = bounds.server_messages - server.messages, bounds.server_bytes - server.size_bytes
        reached = self._shares.server_reached(owner_of(key), sharer, size, left, left_bytes)
        if reached is not None:
            return "overloaded", reached
        full = len(server.lanes) >= self.limits.max_lanes and key not in server.lanes
        return ("overloaded", "max_lanes") if full else (None, None)

    def inflight_room(self, queue: Queue) -> int:
        """Return how many bytes more may be in flight to all users, for a mailbox, or for a lane to all servers and to
        its own."""
        most = self.limits.inflight_bytes
        if is_mailbox(queue.key):
            return most - self.mailbox_inflight_bytes
        used = sum(each.inflight_bytes for each in self.lanes_to(owner_of(queue.key)))
        return min(most - self.lane_inflight_bytes, most // SERVERS - used)

    # --- counting ---

    def _add(self, queue: Queue) -> Queue:
        """Enter a queue that is not empty, or is about to have its first message."""
        self._queues[queue.key] = queue
        messages, size = queue.messages, queue.size_bytes
        if is_mailbox(queue.key):
            self.mailboxes += 1
        else:
            self._servers.setdefault(owner_of(queue.key), _Server()).lanes[queue.key] = queue
        queue.messages = queue.size_bytes = 0
        self._count(queue, messages, size)
        return queue

    def _count(self, queue: Queue, messages: int, size: int, sharer: str | None = None) -> None:
        """Count messages and bytes more (or less) in a queue, with its server's, those of one sender, and in all."""
        queue.messages += messages
        queue.size_bytes += size
        self.messages += messages
        self.size_bytes += size
        self._shares.count(queue.key, sharer, messages, size)
        if is_mailbox(queue.key):
            self.mailbox_messages += messages
            if queue.messages >= self._full_messages or queue.size_bytes >= self._full_bytes:
                self.nearly_full[queue.key] = queue
            elif self.nearly_full:
                self.nearly_full.pop(queue.key, None)
        else:
            server = self._servers[owner_of(queue.key)]
            server.messages += messages
            server.size_bytes += size

    def _count_inflight(self, queue: Queue, messages: int, size: int) -> None:
        """Count messages and bytes more (or less) in flight, or bytes that a read may bring."""
        queue.inflight += messages
        queue.inflight_bytes += size
        self.inflight += messages
        if is_mailbox(queue.key):
            self.mailbox_inflight_bytes += size
        else:
            self.lane_inflight_bytes += size

    def _drop(self, queue: Queue) -> None:
        """Forget a queue that is empty."""
        self._queues.pop(queue.key, None)
        self._shares.forget(queue.key)
        if is_mailbox(queue.key):
            self.mailboxes -= 1
            self.nearly_full.pop(queue.key, None)
        else:
            server = self._servers[owner_of(queue.key)]
            del server.lanes[queue.key]
            if not server.lanes:
                del self._servers[owner_of(queue.key)]
