"""Removed accounts until nothing of them is left: no connection and no queued message.

Rule: between the first report of a removal to the core and the moment when the accounts strike the removal off, the
name belongs to no user. Nothing is queued for the name and no login is admitted, even if a new account has the name. So
a second report, after a crash in between, ends nothing that was promised to a new user, and a new user never sees
messages of the old one. A removal must not be struck off before its end is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from bester.broker.users import Logins

CHECKED_AT_ONCE = 1_000
"""Users whose accounts are looked up in one call of `due` or `shut_out`, some milliseconds: a server may have a million
mailboxes, and every change of an account is a reason to look."""
REPORTED_AT_ONCE = 200
"""Removed accounts that are reported in one call of `due`: each is looked for in many places, some 50 us."""


class RemovedAccounts:
    """Names of accounts under removal.

    The owner calls `due` a few times a second, and `strike_off_ended` behind it.
    """

    def __init__(self, accounts: Logins) -> None:
        self._accounts = accounts
        self._names: dict[str, None] = {}  # those that are to be reported next are first
        self._reported: set[str] = set()
        self._ended: dict[str, int] = {}  # names of which nothing is left, and the number of the last write for them
        self._changed = False
        self._unchecked: Iterator[str] = iter(())
        self._connected: Iterator[str] = iter(())

    def check(self) -> None:
        """Record removals by other processes; cheap without any."""
        if self._accounts.changed():
            self._changed = True
            self._names.update(dict.fromkeys(sorted(self._accounts.removed() - self._names.keys())))

    def shut_out(self, connected: Callable[[], Iterable[str]]) -> list[str]:
        """Return users of disabled accounts who are connected: CHECKED_AT_ONCE of the `connected` are looked up in a
        call, all of them in turn, and again and again, as a bridge may bring back a connection."""
        some = list(islice(self._connected, CHECKED_AT_ONCE))
        if not some:
            self._connected = iter(connected())
            some = list(islice(self._connected, CHECKED_AT_ONCE))
        return sorted(self._accounts.disabled(some)) if some else []

    def is_under_removal(self, name: str) -> bool:
        """Return whether connections or messages of a removed account may be left under this name."""
        self.check()
        return name in self._names

    def accounts_of(self, names: Collection[str]) -> set[str]:
        """Return those of these names for whose users messages may be queued."""
        self.check()
        return self._accounts.existing(names) - self._names.keys()

    def due(self, users: Callable[[], Iterable[str]]) -> list[str]:
        """Return the users to report to the core as removed, REPORTED_AT_ONCE of all in turn; repeatedly, as a bridge
        may bring back a connection.

        `users` returns those with connections or messages. A user without an account counts as removed, since the file
        of accounts may be an older copy: CHECKED_AT_ONCE of them are looked up in a call, after a change all of them.
        """
        self.check()
        names = list(islice(self._names, REPORTED_AT_ONCE))
        if len(names) < len(self._names):
            for name in names:
                del self._names[name]
                self._names[name] = None
        self._reported.update(names)
        some = list(islice(self._unchecked, CHECKED_AT_ONCE))
        if not some and self._changed:
            self._changed = False
            self._unchecked = iter(users())
            some = list(islice(self._unchecked, CHECKED_AT_ONCE))
        missing = set(some) - self._accounts.existing(some) if some else set()
        return sorted(missing.union(names))

    def strike_off_ended(self, is_left: Callable[[str], bool], added: int, settled: int) -> None:
        """Strike off the removed accounts of which nothing is left, and whose end is on disk.

        `is_left` returns whether a user has connections or messages. Of the core's writes, `added` in all, the first
        `settled` are on disk: while messages pass there may be later ones at any time."""
        for name in self._reported:
            if is_left(name):
                self._ended.pop(name, None)
            else:
                self._ended.setdefault(name, added)
        gone = [name for name, last in self._ended.items() if last <= settled]
        if gone and self._accounts.strike_off(gone):
            self._reported.difference_update(gone)
            for name in gone:
                del self._names[name], self._ended[name]
