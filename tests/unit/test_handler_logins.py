"""Logins that a handler decides: the accounts' lockout holds, and what is not decided counts for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bester.broker.accounts import Accounts
from bester.broker.handler_logins import AT_ONCE, KNOWN_S, HandlerLogins
from bester.broker.lockout import FAILURES, FIRST_WAIT_S
from bester.broker.verifying import AWAY, LET_IN, OVERLOADED, WRONG, Verdict

HERE = "192.0.2.7"


class Clock:
    """Clock that advances by hand, in seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Office:
    """A handler that answers at once: `right` is the password of all, None where it decides nothing."""

    def __init__(self, accounts: Accounts) -> None:
        self.right: str | None = "secret"
        self.asked: list[tuple[str, str, str]] = []
        self.answers = True
        self.clock = Clock()
        self.logins = HandlerLogins(accounts, self.ask, self.clock)

    def ask(self, number: int, user: str, password: str, address: str) -> None:
        self.asked.append((user, password, address))
        if self.answers:
            self.logins.decided(number, None if self.right is None else password == self.right)


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with closing(Accounts(tmp_path / "data", serving=True)) as opened:
        yield opened


@pytest.fixture
def office(accounts: Accounts) -> Office:
    return Office(accounts)


async def test_a_user_who_is_let_in_gets_an_account_without_a_password(accounts: Accounts, office: Office) -> None:
    assert not accounts.exists("ann")
    assert await office.logins.verify("ann", "wrong", HERE) == WRONG
    assert not accounts.exists("ann")
    assert await office.logins.verify("ann", "secret", HERE) == LET_IN
    first = accounts.token("ann")
    assert first is not None
    assert await office.logins.verify("ann", "secret", HERE) == LET_IN
    assert accounts.token("ann") == first and [account.name for account in accounts.list()] == ["ann"]
    for password in ("secret", "wrong", "\0"):  # where the handler decides no more
        assert await accounts.verify("ann", password, "") == WRONG
    assert await office.logins.change("ann", "secret", "new", HERE) == Verdict("not-allowed")


@pytest.mark.parametrize(
    ("user", "password"),
    [("", "x"), ("ann", ""), ("a\n", "x"), ("ann", "\ud800"), ("\ud800", "x"), ("ann\ufe0f", "x"), ("jose\u0301", "x")],
)
async def test_an_impossible_login_is_asked_about_by_nobody(office: Office, user: str, password: str) -> None:
    assert await office.logins.verify(user, password, HERE) == WRONG and office.asked == []


async def test_an_account_keeps_a_name_that_is_refused_for_new_ones(accounts: Accounts, office: Office) -> None:
    assert await accounts.learn("jose\u0301")
    assert await office.logins.verify("jose\u0301", "secret", HERE) == LET_IN


async def test_the_lockout_holds(office: Office) -> None:
    for number in range(FAILURES):
        assert await office.logins.verify("ann", f"guess {number}", HERE) == WRONG
    assert await office.logins.verify("ann", "secret", HERE) == Verdict("try-later", FIRST_WAIT_S)
    assert len(office.asked) == FAILURES
    assert await office.logins.verify("ann", "secret", "192.0.2.8") == LET_IN
    office.clock.now += FIRST_WAIT_S
    assert await office.logins.verify("ann", "secret", HERE) == LET_IN


async def test_what_nobody_decides_slows_nobody_down(office: Office) -> None:
    office.right = None
    for number in range(FAILURES * 3):
        assert await office.logins.verify("ann", f"guess {number}", HERE) == AWAY
    office.right = "secret"
    assert await office.logins.verify("ann", "secret", HERE) == LET_IN


async def test_a_wrong_password_is_asked_about_again_after_a_while(office: Office) -> None:
    for _ in range(20):
        assert await office.logins.verify("ann", "new", HERE) == WRONG
    assert len(office.asked) == 1
    office.right = "new"  # it was set where the handler looks passwords up
    office.clock.now += KNOWN_S - 1
    assert await office.logins.verify("ann", "new", HERE) == WRONG
    office.clock.now += 1
    assert await office.logins.verify("ann", "new", HERE) == LET_IN


async def test_an_old_password_that_is_tried_for_ever_locks_nobody_out(office: Office) -> None:
    for _ in range(600):
        assert await office.logins.verify("ann", "old", HERE) == WRONG
        office.clock.now += 1
    assert len(office.asked) == 600 / KNOWN_S
    assert await office.logins.verify("ann", "secret", HERE) == LET_IN


async def test_so_many_are_asked_about_at_once(office: Office) -> None:
    office.answers = False
    tasks = [asyncio.create_task(office.logins.verify(f"u{n}", "secret", f"192.0.2.{n}")) for n in range(AT_ONCE + 5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(office.asked) == AT_ONCE
    tasks[0].cancel()
    office.logins.decided(2, True)
    office.answers = True
    for number in range(3, AT_ONCE + 1):
        office.logins.decided(number, False)
    office.logins.decided(1, True)  # the login is given up, and the number is nobody's
    office.logins.decided(10**9, True)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError) and results[1] == LET_IN
    assert results[2:AT_ONCE] == [WRONG] * (AT_ONCE - 2) and results[AT_ONCE:] == [LET_IN] * 5


async def test_an_account_that_cannot_be_written_lets_nobody_in(accounts: Accounts, office: Office) -> None:
    accounts.close()
    assert await office.logins.verify("ann", "secret", HERE) == OVERLOADED
