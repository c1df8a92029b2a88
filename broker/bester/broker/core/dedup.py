"""Deduplication of messages that a client, a handler or a server sends again, by a key of the sender's own. Pure.

A sender that had no report sends its message again. The message must not be processed twice: the duplicate gets the
outcome of the first. Keys are remembered no longer, and no more of them, than the limits say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from bester.broker.core.cases import Case

Key = tuple[str, str, str]
"""The owner, in two parts (kind of key and user, or server and type), and the key itself."""


class DedupCache:
    """Cases by their senders' keys, for `remember_s` seconds; at most `most`, and at most `most_of_one` of one owner. A
    case that has ended and `is_void` is forgotten: its sender then wants another try."""

    def __init__(
        self, remember_s: float, most: int, most_of_one: int, on_bound: Callable[[str], None] = lambda which: None,
        is_void: Callable[[Case], bool] = lambda case: case.is_void,
    ) -> None:  # fmt: skip
        """`on_bound` is called with `all` or `one` where a case is forgotten early, for one of the bounds."""
        self._on_bound = on_bound
        self._is_void = is_void
        self._remember_s = remember_s
        self._most = most
        self._most_of_one = most_of_one
        self._cases: OrderedDict[Key, tuple[Case, float]] = OrderedDict()
        self._owned: dict[tuple[str, str], OrderedDict[Key, None]] = {}

    @property
    def count(self) -> int:
        """Count of the cases that are remembered."""
        return len(self._cases)

    def find(self, key: Key, now: float) -> Case | None:
        """Return the case that was added under this key, None where the message is new."""
        self._age(now)
        found = self._cases.get(key)
        if found is None:
            return None
        case = found[0]
        if case.pending == 0 and self._is_void(case):
            self._drop(key)
            return None
        return case

    def add(self, key: Key, case: Case, now: float) -> None:
        """Remember a case. An owner with too many loses the oldest of its own."""
        self._cases[key] = (case, now)
        own = self._owned.setdefault(key[:2], OrderedDict())
        own[key] = None
        if len(own) > self._most_of_one:
            self._drop(next(iter(own)))
            self._on_bound("one")
        if len(self._cases) > self._most:
            self._drop(next(iter(self._cases)))
            self._on_bound("all")

    def forget(self, owner: tuple[str, str]) -> None:
        """Forget the cases of one owner."""
        for key in list(self._owned.get(owner, ())):
            self._drop(key)

    def _drop(self, key: Key) -> None:
        del self._cases[key]
        own = self._owned[key[:2]]
        del own[key]
        if not own:
            del self._owned[key[:2]]

    def _age(self, now: float) -> None:
        before = now - self._remember_s
        while self._cases:
            key, (case, since) = next(iter(self._cases.items()))
            if since > before or case.pending:
                return
            self._drop(key)
