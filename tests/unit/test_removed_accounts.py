"""Removed accounts: the users that are looked up after a change, and the end of a removal."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.broker.accounts import Accounts
from bester.broker.removed_accounts import CHECKED_AT_ONCE, REPORTED_AT_ONCE, RemovedAccounts

USERS = [f"u{number:04}" for number in range(2 * CHECKED_AT_ONCE + 10)]


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-") as directory:
        yield Path(directory)


@pytest.fixture
def accounts(directory: Path) -> Iterator[Accounts]:
    with closing(Accounts(directory)) as accounts:
        with closing(sqlite3.connect(directory / "accounts.db")) as db, db:
            db.executemany("INSERT INTO account VALUES (?, '', 0)", [(user,) for user in USERS])
        yield accounts


def test_all_users_are_looked_up_after_a_change_some_at_a_time(accounts: Accounts, directory: Path) -> None:
    removed = RemovedAccounts(accounts)
    present = [*USERS[:5], "early", *USERS[5:], "late"]
    seen = [removed.due(lambda: present) for _ in range(4)]
    assert seen == [["early"], [], ["late"], []]
    with closing(Accounts(directory)) as other:
        other.remove(USERS[-1])
    assert removed.due(lambda: present) == ["early", USERS[-1]], "a removal is known at once"
    with closing(Accounts(directory)) as other:
        other.remove(USERS[0])
    seen = [removed.due(lambda: present) for _ in range(3)]
    assert seen == [
        [USERS[0], USERS[-1]],
        sorted([USERS[0], USERS[-1], "late"]),
        sorted([USERS[0], USERS[-1], "early"]),
    ]


def test_removal_is_struck_off_once_nothing_of_the_user_is_left(accounts: Accounts, directory: Path) -> None:
    removed = RemovedAccounts(accounts)
    with closing(Accounts(directory)) as other:
        other.remove(USERS[0])
        other.remove(USERS[1])
    assert removed.due(list) == USERS[:2]
    removed.strike_off_ended(lambda user: user == USERS[1], 5, 5)
    assert removed.due(list) == [USERS[1]]
    assert accounts.removed() == {USERS[1]}


def test_removal_is_struck_off_once_its_end_is_on_disk_though_other_writes_are_not(
    accounts: Accounts, directory: Path
) -> None:
    removed = RemovedAccounts(accounts)
    with closing(Accounts(directory)) as other:
        other.remove(USERS[0])
    left = True
    for added, settled in ((7, 4), (9, 7)):
        removed.due(list)
        removed.strike_off_ended(lambda user: left, added, settled)
    left = False
    for added, settled in ((12, 9), (15, 11)):
        removed.due(list)
        removed.strike_off_ended(lambda user: left, added, settled)
        assert accounts.removed() == {USERS[0]}
    removed.strike_off_ended(lambda user: True, 18, 14)
    removed.strike_off_ended(lambda user: False, 20, 18)
    assert accounts.removed() == {USERS[0]}, "something came back in between"
    removed.strike_off_ended(lambda user: False, 25, 20)
    assert accounts.removed() == set()


def test_many_removed_accounts_are_reported_in_turn_and_struck_off_after_that_alone(
    accounts: Accounts, directory: Path
) -> None:
    removed = RemovedAccounts(accounts)
    gone = USERS[: 2 * REPORTED_AT_ONCE + 1]
    with closing(sqlite3.connect(directory / "accounts.db")) as db, db:
        db.executemany("INSERT INTO removed VALUES (?)", [(user,) for user in gone])
        db.executemany("DELETE FROM account WHERE name = ?", [(user,) for user in gone])
    first = removed.due(list)
    assert first == gone[:REPORTED_AT_ONCE]
    assert all(removed.is_under_removal(user) for user in gone)
    removed.strike_off_ended(lambda user: user == first[0], 5, 5)
    assert accounts.removed() == set(gone) - set(first[1:])
    assert removed.due(list) == gone[REPORTED_AT_ONCE : 2 * REPORTED_AT_ONCE]
    assert {first[0], gone[-1]} <= set(removed.due(list))


def test_connected_users_of_disabled_accounts_are_found_some_at_a_time(accounts: Accounts, directory: Path) -> None:
    removed = RemovedAccounts(accounts)
    connected = USERS[: CHECKED_AT_ONCE + 5]
    assert removed.shut_out(lambda: connected) == []
    with closing(Accounts(directory)) as other:
        for user in (USERS[0], connected[-1], USERS[-1]):
            other.disable(user)
    assert removed.shut_out(list) == [connected[-1]], "of those as of the call before"
    assert [removed.shut_out(lambda: connected) for _ in range(3)] == [[USERS[0]], [connected[-1]], [USERS[0]]]
    with closing(Accounts(directory)) as other:
        other.enable(USERS[0])
    removed.shut_out(lambda: connected)
    assert removed.shut_out(lambda: connected) == []
    assert removed.shut_out(list) == [connected[-1]]
    assert removed.shut_out(list) == []
