"""Users whose accounts were removed, until nothing of theirs is left: no connection, and nothing that waits.

The rule: between the first time the core is told of a removal and the moment that is struck off in the accounts, the
name is nobody's. Nothing is kept for it, and nobody is let in under it, even where there is a new account of that name.
So telling the core again, after a crash in between, ends nothing that a newcomer was promised; and a newcomer never
sees what was his predecessor's. A removal must not be struck off before its end is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bester.broker.accounts import Logins


class RemovedAccounts:
    """Names on their way out. Whoever has this calls `look` a few times a second, and `over` when all is on disk."""

    def __init__(self, accounts: Logins) -> None:
        self._accounts = accounts
        self._names: set[str] = set()
        self._changed = False

    def check(self) -> None:
        """Take note of what somebody else has changed; cheap where nobody has."""
        if self._accounts.changed():
            self._changed = True
            self._names.update(self._accounts.removed())

    def under_way(self, name: str) -> bool:
        """Say whether something of a removed account may be left under this name."""
        self.check()
        return name in self._names

    def is_account(self, name: str) -> bool:
        """Say whether something may be kept for a user of this name."""
        return not self.under_way(name) and self._accounts.exists(name)

    def due(self, users: Callable[[], list[str]]) -> list[str]:
        """Return who is to be told to the core as removed; more than once, for a bridge may bring back a connection.

        `users`: those of whom something is there. One without an account counts too: its file may be an older copy.
        """
        self.check()
        if not self._changed:
            return sorted(self._names)
        self._changed = False
        return sorted(self._names.union(user for user in users() if not self._accounts.exists(user)))

    def over(self, users: Callable[[], Iterable[str]]) -> None:
        """All that the core has said so far is on disk: strike off those of whom nothing is left."""
        if self._names:
            gone = self._names.difference(users())
            if gone and self._accounts.strike_off(gone):
                self._names -= gone
