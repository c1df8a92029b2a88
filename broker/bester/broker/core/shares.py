"""Shares of queues: how much of each queue is from which sender, and whether a sender has used up a share. Pure.

Without shares one sender fills a mailbox within seconds, and nobody else can write to its user; or what is kept for a
server that is away; or all of the store, by a thousand mailboxes, and nobody can write to anybody who is away.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from bester.broker.core.records import COUNTED, Record
from bester.broker.store_requests import HANDLERS, Bounds, is_mailbox, owner_of

K = TypeVar("K", bound=Hashable)

ROUNDING = 1e-6
"""Added before the fraction is cut off: 0.29 of 100 is 29 in decimals, and a little less in binary."""


class Shares:
    """Messages and bytes in each queue by sender (see `sharer_of`).

    A sender is forgotten with the last of their messages, so there are never more counts than messages in queues, which
    `Bounds.messages` bounds. Messages in flight count until they have ended.
    """

    def __init__(self, bounds: Bounds, held: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
        self._messages = int(bounds.sender_share * bounds.user_messages + ROUNDING)
        self._bytes = int(bounds.sender_share * bounds.user_bytes + ROUNDING)
        self._held = {queue: dict(senders) for queue, senders in held.items()}
        self._in_all: dict[str, tuple[int, int]] = {}  # in all queues, by sender
        self._to_server: dict[tuple[str, str], tuple[int, int]] = {}  # in all lanes to a server, by it and the sender
        for queue, senders in self._held.items():
            for sharer, (messages, size) in senders.items():
                self._count_together(queue, sharer, messages, size)

    def is_full(self, queue: str, sharer: str | None, size: int) -> bool:
        """Return whether a message of `size` bytes is above the sender's share. The first message of a sender never
        is: a small share must not keep anybody out. Handlers together have no share of one mailbox: they may be all
        who write to a user."""
        senders = self._held.get(queue) if sharer not in (None, HANDLERS) else None
        held = senders.get(sharer) if senders is not None and sharer is not None else None
        return held is not None and (held[0] + 1 > self._messages or held[1] + size > self._bytes)

    def rest_reached(self, sharer: str | None, size: int, left: int, left_bytes: int) -> str | None:
        """Return the name of the bound of which a sender would have more in all queues than is left by all, None where
        there is none: one alone may have half. The first message of a sender is within both."""
        held = self._in_all.get(sharer) if sharer is not None else None
        return _above(held, size, left, left_bytes, ("messages", "total_bytes"))

    def server_reached(self, server: str, sharer: str | None, size: int, left: int, left_bytes: int) -> str | None:
        """Return what `rest_reached` does, of the messages to one server."""
        held = self._to_server.get((server, sharer)) if sharer is not None else None
        return _above(held, size, left, left_bytes, ("server_messages", "server_bytes"))

    def _count_together(self, queue: str, sharer: str, messages: int, size: int) -> None:
        _add(self._in_all, sharer, messages, size)
        if not is_mailbox(queue):
            _add(self._to_server, (owner_of(queue), sharer), messages, size)

    def count(self, queue: str, sharer: str | None, messages: int, size: int) -> None:
        """Count messages and bytes more (or less) of a sender; those of nobody (None) are not counted."""
        if sharer is None:
            return
        self._count_together(queue, sharer, messages, size)
        senders = self._held.setdefault(queue, {})
        before = senders.get(sharer, (0, 0))
        left = before[0] + messages
        if left > 0:
            senders[sharer] = left, before[1] + size
            return
        senders.pop(sharer, None)
        if not senders:
            del self._held[queue]

    def recount(self, queue: str, records: Iterable[Record]) -> None:
        """Count a queue anew from its records, where the disk has lost what had none."""
        self.forget(queue)
        for record in records:
            if record.state in COUNTED:
                self.count(queue, record.sharer, 1, record.size)

    def forget(self, queue: str) -> None:
        """Forget a queue that is empty."""
        for sharer, (messages, size) in self._held.pop(queue, {}).items():
            self._count_together(queue, sharer, -messages, -size)

    def inspect(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return messages and bytes by queue and sender."""
        return {queue: dict(senders) for queue, senders in self._held.items()}


def _above(held: tuple[int, int] | None, size: int, left: int, left_bytes: int, names: tuple[str, str]) -> str | None:
    if held is None:
        return None
    return names[0] if held[0] + 1 > left else names[1] if held[1] + size > left_bytes else None


def _add(counts: dict[K, tuple[int, int]], key: K, messages: int, size: int) -> None:
    """Add to the counts of a key, which is forgotten with its last message."""
    before = counts.get(key, (0, 0))
    if before[0] + messages > 0:
        counts[key] = before[0] + messages, before[1] + size
    else:
        counts.pop(key, None)
