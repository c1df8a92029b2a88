"""Reads of the store on behalf of users and operators: bounded, and shared among those who ask. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque

from bester.broker.core.effects import StoreRead
from bester.broker.store_requests import FindOutcomes

MAX_ASKED = 65_536
"""Pending questions; above it a question is answered `overloaded`."""


class Questions:
    """Reads on behalf of users and operators: each asker's in their order, and the askers in turn."""

    def __init__(self) -> None:
        self._askers: OrderedDict[str, deque[StoreRead]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, read: StoreRead) -> bool:
        """Add a question. Returns False where too many are pending."""
        if self._count >= MAX_ASKED:
            return False
        request = read.request
        asker = request.sender if isinstance(request, FindOutcomes) else ""
        self._askers.setdefault(asker, deque()).append(read)
        self._count += 1
        return True

    def take(self) -> StoreRead:
        """Return and remove the next question of the next asker."""
        asker, questions = self._askers.popitem(last=False)
        first = questions.popleft()
        if questions:
            self._askers[asker] = questions
        self._count -= 1
        return first
