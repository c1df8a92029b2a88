"""Checks of logins and changes of passwords, in tasks of their own: by the accounts, or by a handler that decides.

The core asks, and is told the result. A login under the name of a removed account waits for the end of the removal.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from bester.broker.core.effects import ChangePassword, Effects, Notice, NoticeEvent, Verify
from bester.broker.core.router import Router
from bester.broker.handler_logins import HandlerLogins
from bester.broker.logs import facts
from bester.broker.removed_accounts import RemovedAccounts
from bester.broker.users import UNREADABLE, Logins
from bester.broker.wire.notes import describe

LOGIN_EVENTS: dict[str | None, NoticeEvent] = {"authentication-failed": "login-failed", "try-later": "login-slowed"}
"""Log events of refused logins, by their codes."""
MAX_LOGINS = 8192
"""Checks that were begun: far more than the queue of checks, which chooses whom it turns away. Memory."""

log = logging.getLogger("bester.broker")


def may_open(accounts: Logins, user: str, account: str | None) -> bool:
    """Return whether a session that outlived a broker may go on: its account is still there, and is the one with which
    it logged in (None: a bridge that does not tell)."""
    now = accounts.token(user)
    return now is not None and (account == now or account in (None, UNREADABLE) or now == UNREADABLE)


class LoginChecks:
    """Checks under way, as tasks of `group`. `carry_out` carries out the core's effects, `write` writes a notice into
    the log, `end_removals` ends removals of accounts as far as possible."""

    def __init__(
        self, router: Router, accounts: Logins, removed: RemovedAccounts, group: asyncio.TaskGroup,
        carry_out: Callable[[Effects], None], write: Callable[[Notice], None], end_removals: Callable[[], None],
    ) -> None:  # fmt: skip
        self._router = router
        self._accounts = accounts
        self._handler_logins = HandlerLogins(accounts, self._ask_handler)
        self._removed = removed
        self._group = group
        self._carry_out = carry_out
        self._write = write
        self._end_removals = end_removals
        self._tasks: set[asyncio.Task[None]] = set()

    def verify(self, login: Verify) -> None:
        """Begin to check a login; the core is told the result."""
        if len(self._tasks) < MAX_LOGINS:
            self._start(self._verify(login))
            return
        now = time.monotonic()
        self._carry_out(self._router.on_verified(login.link, login.session, login.user, "overloaded", now))

    def change(self, change: ChangePassword) -> None:
        """Begin to change a password; the core is told the result."""
        if len(self._tasks) < MAX_LOGINS:
            self._start(self._change(change))
            return
        now = time.monotonic()
        self._carry_out(self._router.on_password_changed(change.link, change.token, "overloaded", None, now))

    def decided(self, number: int, good: bool | None) -> None:
        """Take in a handler's decision on a login: None where it has decided nothing."""
        self._handler_logins.decided(number, good)

    def cancel(self) -> None:
        """End all checks without a result."""
        for task in list(self._tasks):
            task.cancel()

    def _start(self, check: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(check)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _verify(self, login: Verify) -> None:
        try:
            reason, retry_s = await self._deciding.verify(login.user, login.password, login.address)
        except Exception as error:  # noqa: BLE001 (the fault of one login must not end the server)
            extra = facts("login-unchecked", user=login.user, why=describe(error))
            log.error("the login of user %r cannot be checked now: %s", login.user, describe(error), extra=extra)
            reason, retry_s = "overloaded", None
        self._router.figures.logins[reason or "good"] += 1
        self._count_lockouts()
        if reason in LOGIN_EVENTS:
            fields = {"user": login.user, "address": login.address or "a Unix socket"}
            more = {} if retry_s is None else {"retry_s": math.ceil(retry_s)}
            self._write(Notice(LOGIN_EVENTS[reason], fields | more))
        if reason is None and self._removed.is_under_removal(login.user):
            self._end_removals()  # usually enough to end the removal
            if self._removed.is_under_removal(login.user):
                reason = "overloaded"
        account = self._accounts.token(login.user) if reason is None else None
        if reason is None and account is None:  # disabled or removed meanwhile
            reason = "authentication-failed"
        now = time.monotonic()
        self._carry_out(self._router.on_verified(login.link, login.session, login.user, reason, now, retry_s, account))

    async def _change(self, change: ChangePassword) -> None:
        try:
            reason, retry_s = await self._deciding.change(change.user, change.old, change.new, change.address)
        except Exception as error:  # noqa: BLE001 (the fault of one change must not end the server)
            extra = facts("login-unchecked", user=change.user, why=describe(error))
            log.error("the password of user %r cannot be changed now: %s", change.user, describe(error), extra=extra)
            reason, retry_s = "overloaded", None
        self._count_lockouts()
        fields = {"user": change.user, "address": change.address or "a Unix socket"}
        if reason is None:
            self._write(Notice("password-changed", fields))
        elif reason in LOGIN_EVENTS:
            self._write(Notice(LOGIN_EVENTS[reason], fields))
        now = time.monotonic()
        self._carry_out(self._router.on_password_changed(change.link, change.token, reason, retry_s, now))

    @property
    def _deciding(self) -> HandlerLogins | Logins:
        return self._handler_logins if self._router.is_decided_by_handler else self._accounts

    def _count_lockouts(self) -> None:
        self._router.figures.lockouts = self._accounts.lockouts + self._handler_logins.lockouts

    def _ask_handler(self, number: int, user: str, password: str, address: str) -> None:
        self._carry_out(self._router.ask_login(number, user, password, address, time.monotonic()))
