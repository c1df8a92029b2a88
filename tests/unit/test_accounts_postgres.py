"""Accounts in PostgreSQL: changed by the command line, and followed by a server that waits for no network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from bester.broker import postgres
from bester.broker.accounts_postgres import WRITERS, PostgresAccounts, ServedAccounts
from bester.broker.postgres import Database, connect
from bester.broker.store.postgres import PostgresStore
from bester.broker.store_requests import End, mailbox
from bester.broker.verifying import LET_IN, OVERLOADED, WRONG
from bester.broker.wire.codes import BesterError
from tests.postgres_server import Cluster
from tests.unit.postgres_cable import Cable
from tests.unit.store_stand import keep

HERE = "192.0.2.7"
DEADLINE_S = 30.0


@pytest.fixture
def database(cluster: Cluster) -> Database:
    return cluster.database()


@pytest.fixture
def accounts(database: Database) -> Iterator[PostgresAccounts]:
    with closing(PostgresAccounts(database)) as found:
        found.add("ann", "secret")
        yield found


@pytest.fixture
def cable(accounts: PostgresAccounts, database: Database) -> Iterator[Cable]:
    found = Cable(database)
    yield found
    found.close()


@pytest.fixture
def served(cable: Cable) -> Iterator[ServedAccounts]:
    with closing(ServedAccounts(cable.database)) as found:
        yield found


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what the follower does."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_only_the_right_password_is_admitted(served: ServedAccounts) -> None:
    assert await served.verify("ann", "secret", HERE) == LET_IN
    for user, password in (("ann", "wrong"), ("bob", "secret"), ("ann\0", "secret"), ("ann", "")):
        assert await served.verify(user, password, "") == WRONG


async def test_change_by_the_command_line_reaches_a_running_server(
    accounts: PostgresAccounts, served: ServedAccounts
) -> None:
    before = served.token("ann")
    assert before is not None
    accounts.add("bob", "s\u00e9cret")
    wait_until(lambda: served.exists("bob"))
    accounts.passwd("bob", "other")
    accounts.disable("ann")
    wait_until(lambda: served.disabled(["ann", "bob", "nobody"]) == {"ann"})
    assert (served.exists("ann"), served.token("ann")) == (True, None)
    assert await served.verify("ann", "secret", HERE) == WRONG
    assert await served.verify("bob", "other", HERE) == LET_IN
    accounts.enable("ann")
    wait_until(lambda: served.token("ann") == before)
    accounts.remove("ann")
    accounts.add("ann", "anew")
    wait_until(lambda: served.token("ann") not in (None, before))
    assert served.removed() == {"ann"}
    assert [(each.name, each.disabled) for each in accounts.list()] == [("ann", False), ("bob", False)]


def test_removal_stays_recorded_until_struck_off(accounts: PostgresAccounts, database: Database) -> None:
    accounts.add("bob", "secret")
    accounts.remove("ann")
    for _ in range(2):
        with closing(ServedAccounts(database)) as served:
            assert served.changed()
            assert (served.removed(), served.exists("ann"), served.changed()) == ({"ann"}, False, False)
    with closing(ServedAccounts(database)) as served:
        wait_until(lambda: served.strike_off({"ann", "bob"}))
        assert served.removed() == set()
    with closing(ServedAccounts(database)) as served:
        assert served.removed() == set()
        assert served.exists("bob")


def test_removal_is_struck_off_once_no_broker_has_a_mailbox_of_the_account(
    accounts: PostgresAccounts, database: Database, served: ServedAccounts
) -> None:
    """A broker that is away has yet to be adopted, or to come back and to read of the removal."""
    with closing(PostgresStore(database, "away")) as store:
        store.open()
        assert store.commit([keep(1, mailbox("ann")), keep(2, mailbox("bob"))]).ok
    for name in ("bob", "carl"):
        accounts.add(name, "secret")
    for name in ("ann", "carl"):
        accounts.remove(name)
    wait_until(lambda: served.removed() == {"ann", "carl"})
    wait_until(lambda: not served.strike_off({"ann", "carl"}) and served.removed() == {"ann"})
    with closing(ServedAccounts(database)) as other:
        assert other.removed() == {"ann"}, "and so it is for a broker that reads only now"
    with closing(PostgresStore(database, "away")) as store:
        store.open()
        assert store.commit([End(1, "failed:unknown-user")]).ok
    wait_until(lambda: served.strike_off({"ann"}))
    with closing(ServedAccounts(database)) as other:
        assert other.removed() == set()


def test_account_of_a_removed_name_is_kept_when_the_removal_is_struck_off(
    accounts: PostgresAccounts, served: ServedAccounts
) -> None:
    accounts.remove("ann")
    accounts.add("ann", "anew")
    wait_until(lambda: served.removed() == {"ann"} and served.exists("ann"))
    wait_until(lambda: served.strike_off({"ann"}))
    assert served.exists("ann")


def removed_unseen(database: Database, *statements: str) -> None:
    """Remove ann, and strike the removal off, as a server sees it that looks only once both are done."""
    with connect(database, "a test") as other, other.transaction():
        for statement in ("UPDATE account_version SET number = number + 1", "DELETE FROM account", *statements):
            other.execute(statement.encode())


def test_removal_that_another_broker_has_struck_off_is_seen(database: Database, served: ServedAccounts) -> None:
    assert served.exists("ann")
    removed_unseen(database)
    wait_until(lambda: not served.exists("ann"))
    assert served.removed() == {"ann"}
    wait_until(lambda: served.strike_off({"ann"}))
    assert served.removed() == set()


def test_account_made_anew_behind_a_removal_that_is_struck_off_is_another_one(
    accounts: PostgresAccounts, database: Database, served: ServedAccounts
) -> None:
    again = "INSERT INTO account SELECT 'ann', '', 1.5, false, number FROM account_version"
    removed_unseen(database, again, "UPDATE account_version SET number = number + 1")
    wait_until(lambda: served.token("ann") == "1.5")
    assert served.removed() == {"ann"}
    accounts.add("bob", "secret")
    wait_until(lambda: served.exists("bob"))
    assert served.removed() == {"ann"}
    wait_until(lambda: served.strike_off({"ann"}))
    accounts.remove("bob")
    wait_until(lambda: not served.exists("bob"))
    assert served.removed() == {"bob"}


def test_schema_with_the_longest_name_has_accounts(cluster: Cluster) -> None:
    database = Database(cluster.url(), f"{cluster.schema()}_{'s' * 63}"[:63])
    with closing(PostgresAccounts(database)) as accounts, closing(ServedAccounts(database)) as served:
        accounts.add("ann", "secret")
        wait_until(lambda: served.exists("ann"))


async def test_user_changes_the_own_password(accounts: PostgresAccounts, served: ServedAccounts) -> None:
    assert await served.change("ann", "wrong", "new", HERE) == WRONG
    assert await served.change("ann", "secret", "new", HERE) == LET_IN
    assert await served.verify("ann", "new", HERE) == LET_IN
    assert (await served.change("ann", "new", "", HERE)).reason == "malformed"


async def test_user_that_another_program_has_let_in_gets_an_account(
    accounts: PostgresAccounts, served: ServedAccounts
) -> None:
    assert await served.learn("guest")
    assert served.exists("guest")
    assert await served.learn("guest")
    assert [each.name for each in accounts.list()] == ["ann", "guest"]


async def test_many_new_users_at_once_take_few_connections(
    served: ServedAccounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    most: list[int] = []

    def counted(database: Database, name: str) -> Any:
        made.append(connect(database, name))
        most.append(sum(not each.closed for each in made))
        return made[-1]

    monkeypatch.setattr(postgres, "connect", counted)
    assert await asyncio.gather(*(served.learn(f"guest{number}") for number in range(40))) == [True] * 40
    assert max(most) <= WRITERS
    assert served.exists("guest39")


async def test_logins_go_on_while_the_database_is_away(
    accounts: PostgresAccounts, served: ServedAccounts, cable: Cable
) -> None:
    cable.pull_out()
    assert await served.verify("ann", "secret", HERE) == LET_IN
    assert await served.change("ann", "secret", "new", HERE) == OVERLOADED
    assert not await served.learn("guest")
    assert served.exists("ann") and served.token("ann")
    accounts.add("bob", "secret")
    cable.plug_in()
    wait_until(lambda: served.exists("bob"))
    assert await served.change("ann", "secret", "new", HERE) == LET_IN


@pytest.mark.parametrize("name", ["", " ann", "a\nb", "n" * 129, "\ud800"])
def test_impossible_name_is_refused(name: str, accounts: PostgresAccounts) -> None:
    with pytest.raises(BesterError):
        accounts.add(name, "secret")
    with pytest.raises(BesterError):
        accounts.passwd(name, "secret")
    with pytest.raises(BesterError):
        accounts.remove(name)


def test_unknown_and_taken_names_are_named(accounts: PostgresAccounts) -> None:
    with pytest.raises(BesterError, match="there is a user ann already"):
        accounts.add("ann", "other")
    for change in (accounts.remove, accounts.disable, accounts.enable):
        with pytest.raises(BesterError, match="there is no user 'eve'"):
            change("eve")
