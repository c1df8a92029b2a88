"""Logins that a handler of `bester.auth` decides, in place of the accounts' passwords.

The lockout, the queue and the budgets are those of the accounts' own checks. An answer that decides nothing is no wrong
password: nobody is slowed down by it, and nobody gets in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count

from bester.broker.users import Logins, name_fault, new_name_fault, password_fault
from bester.broker.verifying import OVERLOADED, WRONG, UndecidedError, Verdict, Verifying

AT_ONCE = 64
"""Logins that handlers are asked about at once: each waits for another service, and takes no core here."""
KNOWN_S = 30.0
"""Time for which a wrong password is refused unasked: a program with an old password asks twice a minute, and a user
who has just been given this very password waits no longer."""

Ask = Callable[[int, str, str, str], None]
"""Asks about the login with this number: user, password, address of the client."""


class HandlerLogins:
    """Checks of logins by a handler. Each `ask` is answered by `decided`, perhaps within the call."""

    def __init__(self, accounts: Logins, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts = accounts
        self._ask = ask
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[bool | None]] = {}
        self._verifying = Verifying(lambda user: "", clock, check=self._check, at_once=AT_ONCE, known_s=KNOWN_S)

    @property
    def lockouts(self) -> int:
        """Times that a user at an address was made to wait after wrong passwords."""
        return self._verifying.lockouts

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Have a login decided. A user who is let in for the first time gets an account without a password."""
        if name_fault(user) or password_fault(password):
            return WRONG
        if new_name_fault(user) and not self._accounts.exists(user):
            return WRONG
        verdict = await self._verifying.verify(user, password, address)
        if verdict.reason is None and not await self._accounts.learn(user):
            return OVERLOADED
        return verdict

    async def change(self, user: str, old: str, new: str, address: str) -> Verdict:
        """Refuse: passwords are changed where the handler looks them up."""
        return Verdict("not-allowed")

    def decided(self, number: int, good: bool | None) -> None:
        """Take in the decision on a login: None where nobody has decided."""
        future = self._asked.get(number)
        if future is not None and not future.done():
            future.set_result(good)

    async def _check(self, user: str, password: str, address: str) -> bool:
        number = next(self._numbers)
        future: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._ask(number, user, password, address)
            good = await future
        finally:
            del self._asked[number]
        if good is None:
            raise UndecidedError
        return good
