"""Checks of passwords by argon2id on a bounded number of threads; further checks wait in a queue.

`lockout` decides which passwords are checked, `check_queue` their order. A password stays in memory while its check
waits and runs; afterwards only a hash remains, made with a key that ends with the process.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import argon2

from bester.broker.check_queue import CheckQueue
from bester.broker.lockout import Lockout, Refused
from bester.broker.logs import facts
from bester.broker.wire.address import network_of
from bester.broker.wire.codes import BesterError
from bester.broker.wire.notes import describe

VERIFIERS = 2
"""Passwords checked at once: each takes 19 MiB and most of a core for some 20 ms."""
MARK_BYTES = 16
CHECKS_PRIORITY = 10
"""Priority (`nice`) of the threads that check passwords: the loop, on which all messages wait, goes first where
processors are few."""

_log = logging.getLogger("bester.broker.accounts")

HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, hash_len=32, salt_len=16)


class Verdict(NamedTuple):
    """Result of a login: `reason` is a code, or None if admitted; `retry_s` is the time to wait after `try-later`."""

    reason: str | None
    retry_s: float | None = None


LET_IN = Verdict(None)
WRONG = Verdict("authentication-failed")
OVERLOADED = Verdict("overloaded")
AWAY = Verdict("unreachable")


class UndecidedError(Exception):
    """Error: no decision was reached on a password."""


Check = Callable[[str, str, str], Awaitable[bool]]
"""Returns whether a password is right, for (user, password, address). Raises UndecidedError."""


def _no_such_hash() -> str:
    """Return a well-formed hash that no known password has; an unknown name's password is checked against this hash."""
    salt, digest = (base64.b64encode(bytes(length)).decode().rstrip("=") for length in (16, 32))
    return f"$argon2id$v=19$m={HASHER.memory_cost},t={HASHER.time_cost},p={HASHER.parallelism}${salt}${digest}"


NO_PASSWORD = _no_such_hash()
"""Hash of an account without a password here."""
_NO_MEMORY = argon2.low_level.error_to_str(-22)  # ARGON2_MEMORY_ALLOCATION_ERROR


class Verifying:
    """Checks passwords on one loop.

    `hash_of` returns the hash of a user's password, or None for an unknown user; raises BesterError if the database
    cannot be read. `clock` returns monotonic seconds. `check` decides in place of the hashes, `at_once` passwords at a
    time, each of which is known to be wrong for `known_s`.
    """

    def __init__(
        self, hash_of: Callable[[str], str | None], clock: Callable[[], float] = time.monotonic, *,
        check: Check | None = None, at_once: int = VERIFIERS, known_s: float = math.inf,
    ) -> None:  # fmt: skip
        self._hash_of = hash_of
        self._clock = clock
        self._by = check
        self._key = secrets.token_bytes(32)
        self._lockout = Lockout(known_s)
        self._queue: CheckQueue[asyncio.Future[bool]] = CheckQueue()
        self._free = at_once
        self._pools: set[ThreadPoolExecutor] = set()  # one thread each: a pool without a thread can be dropped
        self._idle: list[ThreadPoolExecutor] = []

    @property
    def lockouts(self) -> int:
        """Times that a user at an address was made to wait after wrong passwords."""
        return self._lockout.waits

    def close(self) -> None:
        """Stop the threads, after waiting some hundredths of a second for running checks."""
        self._idle.clear()
        while self._pools:
            self._pools.pop().shutdown(cancel_futures=True)

    async def verify(self, user: str, password: str, address: str) -> Verdict:
        """Check a possible password. `address` is the client's, empty if the client has none."""
        net = network_of(address)
        try:
            decision = self._lockout.decide(
                user, net, self._mark(user, net, self._hash_of(user), password), self._clock()
            )
            if isinstance(decision, Refused):
                return _refusal(decision)
            if not await self._has_turn(decision.rank, user, net):
                return OVERLOADED
            try:
                return await self._check(user, net, password, address)
            finally:
                self._free += 1
                self._go_on()
        except BesterError:  # the database cannot be read, as its error in the log says
            return OVERLOADED

    async def _has_turn(self, rank: int, user: str, net: str) -> bool:
        """Wait for a thread, which the caller must give back. Return False if too many checks wait."""
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        turned_away = self._queue.add(rank, user, net, turn)
        if turned_away is not None and not turned_away.done():  # a cancelled check that is still in the queue
            turned_away.set_result(False)
        self._go_on()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self._free += 1
                self._go_on()
            self._queue.discard(turn)
            raise

    def _go_on(self) -> None:
        while self._free and (waiting := self._queue.pop()) is not None:
            if not waiting.item.done():
                self._free -= 1
                waiting.item.set_result(True)

    async def _check(self, user: str, net: str, password: str, address: str) -> Verdict:
        stored = self._hash_of(user)
        mark = self._mark(user, net, stored, password)
        decision = self._lockout.decide(user, net, mark, self._clock())  # other checks may have failed meanwhile
        if isinstance(decision, Refused):
            return _refusal(decision)
        try:
            right = await (self._matches(stored, password) if self._by is None else self._by(user, password, address))
        except UndecidedError:  # neither right nor wrong, so that nothing is counted; the log has the reason
            return AWAY
        except (RuntimeError, MemoryError) as error:
            extra = facts("login-unchecked", user=user, why=describe(error))
            _log.error("the password of user %r cannot be checked now: %s", user, describe(error), extra=extra)
            return OVERLOADED
        if right and self._hash_of(user) == stored:  # unless the account was removed or its password changed meanwhile
            self._lockout.on_right(user, net)
            return LET_IN
        self._lockout.on_wrong(user, net, mark, self._clock())
        return WRONG

    def _mark(self, user: str, net: str, stored: str | None, password: str) -> bytes:
        """Return the mark of a password at one user and network; a change of the account changes the mark."""
        text = "\0".join((user, net, stored or "", password))  # only the last may hold a zero
        return hashlib.blake2b(text.encode(errors="surrogatepass"), key=self._key, digest_size=MARK_BYTES).digest()

    async def _matches(self, stored: str | None, password: str) -> bool:
        """Check a password on a thread that is kept. Raises RuntimeError where the system has none, or MemoryError."""
        pool = self._idle.pop() if self._idle else ThreadPoolExecutor(1, "password", initializer=_yield_to_the_loop)
        try:
            check = asyncio.get_running_loop().run_in_executor(pool, _matches, stored, password)
        except RuntimeError:
            pool.shutdown(wait=False, cancel_futures=True)  # or it would keep the password
            raise
        self._pools.add(pool)
        try:
            return await check
        finally:
            if pool in self._pools:
                self._idle.append(pool)


def _refusal(refused: Refused) -> Verdict:
    return WRONG if refused.retry_s is None else Verdict("try-later", refused.retry_s)


def _yield_to_the_loop() -> None:
    """Lower the priority of this thread, where threads have priorities of their own (Linux)."""
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, max(CHECKS_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread)))


def _matches(stored: str | None, password: str) -> bool:
    """Return whether a password matches a hash; without a hash, take as long and return False. Raises MemoryError."""
    try:
        HASHER.verify(stored or NO_PASSWORD, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError) as error:
        if str(error) == _NO_MEMORY:  # the password may well be right
            raise MemoryError(_NO_MEMORY) from None
        return False
    return stored is not None
