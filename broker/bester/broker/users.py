"""Users, as a broker asks about them: the questions, and the rules on names and passwords that all accounts share.

`Accounts` answers the questions from a file, `ServedAccounts` from a database; `OpenAccounts` knows no user and admits
everybody.
"""

from __future__ import annotations

import asyncio
import logging
import re
import unicodedata
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple, Protocol

from bester.broker.logs import facts
from bester.broker.verifying import HASHER, LET_IN, OVERLOADED, WRONG, Verdict
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import MAX_USER

PASSWORD_LIMIT_BYTES = 1024
"""Longer passwords only make checking slow."""
UNREADABLE = "unreadable"
"""Token of any account while the database cannot be read: nobody is cut off for that."""
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Printable characters that show nothing: of two accounts that look the same only one would be disabled."""
_log = logging.getLogger("bester.broker.accounts")


class Account(NamedTuple):
    """Account of a user; `created_s` is in seconds of the wall clock since 1970; nobody may log in if `disabled`."""

    name: str
    created_s: int
    disabled: bool = False


class Logins(Protocol):
    """Questions of a broker about users."""

    @property
    def lockouts(self) -> int:
        """Times that a user at an address was made to wait after wrong passwords."""

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Check a password; `address` is the client's, empty if the client has none."""

    def exists(self, name: str) -> bool:
        """Return whether an account has this name."""

    def existing(self, names: Collection[str]) -> set[str]:
        """Return those of these names that accounts have."""

    def token(self, name: str) -> str | None:
        """Return a text that tells an account from an earlier or later one of its name; None where there is none, or
        where it is disabled."""

    async def change(self, user: str, old: str, new: str, address: str) -> Verdict:
        """Change a user's password, if the old one is right."""

    def disabled(self, names: Collection[str]) -> set[str]:
        """Return those of these names whose accounts are disabled."""

    async def learn(self, name: str) -> bool:
        """Make sure that a user has an account whose login another program has found good. Return False where that
        cannot be written now."""

    def changed(self) -> bool:
        """Return whether another process may have added or removed accounts since the last call."""

    def removed(self) -> set[str]:
        """Return the names of removed accounts that are not struck off; a new account may have such a name."""

    def strike_off(self, names: Collection[str]) -> bool:
        """Record that nothing is left of these removed accounts. Return False if recording failed, to be tried
        again."""

    def close(self) -> None:
        """Close files and stop threads."""


def name_fault(name: str) -> str | None:
    """Return the fault of a user name, or None."""
    if not name:
        return "a user name has at least one character"
    if len(name) > MAX_USER:
        return f"a user name has {MAX_USER} characters at most"
    if not name.isprintable() or name != name.strip():
        return "a user name has printable characters only, and no blanks at its ends"
    return None


def new_name_fault(name: str) -> str | None:
    """Return the fault of the name of a new account, or None: it must not look the same as another one."""
    if (fault := name_fault(name)) is not None:
        return fault
    if not unicodedata.is_normalized("NFC", name) or _UNSEEN.search(name):
        return "a user name is in the composed form of Unicode (NFC), without characters that show nothing"
    return None


def password_fault(password: str) -> str | None:
    """Return the fault of a password, or None."""
    if not password:
        return "a password has at least one character"
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        return "a password is text that UTF-8 can write"
    return f"a password has {PASSWORD_LIMIT_BYTES} bytes at most" if size > PASSWORD_LIMIT_BYTES else None


async def change_password(
    user: str, old: str, new: str, address: str, *,
    hash_of: Callable[[str], str | None],
    verify: Callable[[str, str, str], Awaitable[Verdict]],
    replace: Callable[[str, str, str], Awaitable[bool]],
) -> Verdict:  # fmt: skip
    """Change a user's password, if the old one is right: wrong ones count as at a login.

    `replace` writes a hash, for (user, stored hash, new hash), and returns False where somebody has changed the stored
    one meanwhile. `replace` raises BesterError where nothing can be written, and so does `hash_of` where nothing can be
    read.
    """
    if password_fault(new):
        return Verdict("malformed")
    try:
        stored = hash_of(user)
    except BesterError:  # its error is in the log
        return OVERLOADED
    verdict = await verify(user, old, address)
    if verdict.reason is not None or stored is None:
        return verdict if verdict.reason is not None else WRONG
    made = await asyncio.to_thread(HASHER.hash, new)
    try:
        changed = await replace(user, stored, made)
    except BesterError as error:
        extra = facts("accounts-broken", why=error.text)
        _log.error("the password of user %r cannot be changed now: %s", user, error.text, extra=extra)
        return OVERLOADED
    return LET_IN if changed else WRONG


def check_name(name: str) -> None:
    """Raise BesterError for an unusable name of a new account."""
    fault = new_name_fault(name)
    if fault:
        raise BesterError("malformed", fault)


def hashed(password: str) -> str:
    """Return the hash of a new password. Raises BesterError for an unusable password."""
    fault = password_fault(password)
    if fault:
        raise BesterError("malformed", fault)
    return HASHER.hash(password)


def name_taken(name: str) -> BesterError:
    """Return the error for a new account with the name of another."""
    return BesterError("not-allowed", f"there is a user {name} already; `bester user passwd` changes the password")


def no_account(name: str) -> BesterError:
    """Return the error for the change of an account that does not exist."""
    return BesterError("unknown-user", f"there is no user {name!r}; `bester user list` shows them")


class OpenAccounts:
    """Logins of `auth = "open"`: any name with any password is admitted, and no user is known beforehand."""

    lockouts = 0

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Admit any usable name with a password."""
        return WRONG if name_fault(user) or password_fault(password) else LET_IN

    def exists(self, name: str) -> bool:
        """Return False, as no account exists."""
        return False

    def existing(self, names: Collection[str]) -> set[str]:
        """Return those of these names that accounts have."""
        return {name for name in names if self.exists(name)}

    def token(self, name: str) -> str | None:
        """Return one text for all, as any name is good."""
        return ""

    async def change(self, user: str, old: str, new: str, address: str) -> Verdict:
        """Refuse, as there is no password."""
        return Verdict("not-allowed")

    def disabled(self, names: Collection[str]) -> set[str]:
        """Return an empty set, as no account exists."""
        return set()

    async def learn(self, name: str) -> bool:
        """Return True, as any name is good."""
        return True

    def changed(self) -> bool:
        """Return False, as no account exists."""
        return False

    def removed(self) -> set[str]:
        """Return an empty set, as no account exists."""
        return set()

    def strike_off(self, names: Collection[str]) -> bool:
        """Return True, as no account exists."""
        return True

    def close(self) -> None:
        """Do nothing, as no file is open."""
