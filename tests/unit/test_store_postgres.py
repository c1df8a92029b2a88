"""The store in PostgreSQL: its lease, and connections that break."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from typing import Any

import psycopg
import pytest

from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.postgres import LOCK_MS, Database, connect
from bester.broker.postgres_schema import STEPS, migrate
from bester.broker.store import lease
from bester.broker.store.postgres import PostgresStore
from bester.broker.store.postgres_brokers import namespaces
from bester.broker.store_driver import StoreDriver
from bester.broker.store_requests import (
    Bury,
    Committed,
    End,
    Enqueue,
    Fetch,
    FindEntry,
    MarkSent,
    PurgeOutcomes,
    RecordRemote,
    Write,
    mailbox,
)
from bester.broker.store_requests import lane as lane_of
from bester.broker.wire.codes import BesterError, ConfigError
from tests.postgres_server import Cluster
from tests.unit.postgres_cable import Cable
from tests.unit.store_stand import BOB, LOTS, NOW_S, asked, dead, entry, keep, letter, outcomes, refusing

_names = count(1)


@pytest.fixture
def store(postgres: Database) -> Iterator[PostgresStore]:
    found = PostgresStore(postgres, f"lease{next(_names)}")
    found.open()
    yield found
    found.close()


def test_brokers_of_a_server_are_told_with_what_a_dead_one_has_left(cluster: Cluster) -> None:
    database = cluster.database()
    assert namespaces(database) == [], "there is no schema yet"
    with closing(PostgresStore(database, "b1")) as one:
        one.open()
        with closing(PostgresStore(database, "b2")) as two:
            two.open()
            assert two.commit([keep(1), keep(2)]).ok
            first, second = namespaces(database)
            assert (first.name, first.state, second.name, second.state) == ("b1", "lives", "b2", "lives")
            assert first.process == f"process {os.getpid()} on {platform.node()}"
        first, second = namespaces(database)
        assert (first.state, second.state, second.waiting) == ("lives", "ended", 2)
        asked(one, "UPDATE broker SET until = clock_timestamp() - INTERVAL '1 hour' WHERE name = 'b2'")
        first, second = namespaces(database)
        assert (second.state, second.waiting) == ("dead", 2)
        assert 3600 <= second.gone_s < 3700
        asked(one, "DELETE FROM entry")
        assert [each.name for each in namespaces(database)] == ["b1", "b2"]
        asked(one, "UPDATE broker SET until = clock_timestamp() - INTERVAL '8 days' WHERE name = 'b2'")
        assert [each.name for each in namespaces(database)] == ["b1"]
    assert namespaces(Database("postgresql:///none?host=/nowhere")) == [], "a check goes on"


def another(store: PostgresStore) -> PostgresStore:
    """Return another broker of the same name."""
    return PostgresStore(store.database, store.broker)


def numbers(store: PostgresStore) -> list[int]:
    return [each.number for each in store.read(Fetch(BOB, 0, LOTS, LOTS))]


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stop_renewing(store: PostgresStore) -> None:
    """Let the lease of a store run out."""
    asked(store, "UPDATE broker SET until = clock_timestamp() WHERE ns = :ns")


# --- leases ---------------------------------------------------------------------------------------------------------


def test_second_broker_of_a_name_is_refused_while_the_first_lives(store: PostgresStore) -> None:
    second = another(store)
    with pytest.raises(BesterError, match=rf"broker '{store.broker}' is held by process \d+ on .*; stop that, or"):
        second.open()
    assert store.commit([keep(1)]).ok
    store.close()
    assert second.open().queues[BOB].messages == 1
    second.close()


def test_claim_says_when_the_lease_ends_and_changes_with_each_renewal(store: PostgresStore) -> None:
    with closing(another(store)) as second:
        held = second.claim()
        again = second.claim()
        store.commit([])
        renewed = second.claim()
        assert held is not None and again is not None and renewed is not None
        assert 0 < held.left_s <= lease.LEASE_S
        assert held.state == again.state != renewed.state
        stop_renewing(store)
        assert second.claim() is None


@pytest.mark.parametrize(
    ("changes", "is_gone"),
    [
        ({}, False), ({"pid": 2**22 + 1}, True), ({"start": "1"}, True), ({"boot": "another", "pid": 2**22 + 1}, False),
        ({"space": "pid:[1]", "pid": 2**22 + 1}, False), ({"start": "", "pid": 2**22 + 1}, False),
        ({"pid": "1"}, False),
    ],
)  # fmt: skip
def test_lease_of_a_process_that_is_gone_is_free(
    changes: dict[str, object], is_gone: bool, store: PostgresStore
) -> None:
    holder = json.dumps(json.loads(lease.this_process()) | changes)
    asked(store, "UPDATE broker SET holder = ':holder' WHERE ns = :ns".replace(":holder", holder))
    with closing(another(store)) as second:
        assert (second.claim() is None) == is_gone


@pytest.mark.parametrize("holder", ["", "nonsense", "[1]", "{}", "null"])
def test_holder_that_cannot_be_read_is_not_taken_for_gone(holder: str) -> None:
    assert not lease.is_gone(holder)


def test_broker_whose_lease_was_taken_writes_and_reads_nothing(store: PostgresStore) -> None:
    store.commit([keep(1), keep(2)])
    stop_renewing(store)
    second = another(store)
    second.open()
    before = asked(second, "SELECT * FROM entry WHERE ns = :ns ORDER BY number")
    groups: list[list[Write]] = [[keep(3)], [End(1, "delivered")], [Bury(letter("a")), MarkSent(BOB, 2)], []]
    for writes in groups:
        result = store.commit(writes)
        assert (result.ok, result.code) == (False, "storage-unavailable")
        assert "another process has taken the lease" in result.why
    with pytest.raises(BesterError, match="another process has taken the lease"):
        numbers(store)
    assert store.fenced and store.away and not store.is_due
    assert asked(second, "SELECT * FROM entry WHERE ns = :ns ORDER BY number") == before
    store.close()  # which gives back no lease of another
    assert second.commit([keep(4)]).ok
    assert numbers(second) == [1, 2, 4]
    second.close()


def test_read_alone_finds_that_the_lease_was_taken(store: PostgresStore) -> None:
    store.commit([keep(1)])
    stop_renewing(store)
    with closing(another(store)) as second:
        second.open()
        with pytest.raises(BesterError, match="another process has taken the lease"):
            numbers(store)
        assert store.fenced


def test_start_waits_for_a_broker_that_adopts_what_is_there(store: PostgresStore) -> None:
    name = f"{store.broker}-other"
    with closing(PostgresStore(store.database, name)) as other:
        other.open()
    opened: list[int] = []
    again = PostgresStore(store.database, name)
    thread = threading.Thread(target=lambda: opened.append(again.open().life))
    waits = (
        "SELECT application_name FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND "  # noqa: S608 (own words)
        f"clock_timestamp() > query_start + {LOCK_MS} * INTERVAL '1.1 ms'"
    )
    with connect(store.database, "a test") as adopter, closing(again):
        with adopter.transaction():
            adopter.execute("SELECT 1 FROM broker WHERE name = %s FOR UPDATE", (name,))
            thread.start()
            wait_until(lambda: (f"bester broker {name}",) in asked(store, waits) or not thread.is_alive())
        thread.join(30)
        assert opened == [2]


def test_takeover_waits_for_a_commit_that_has_begun(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bester.broker.postgres.LOCK_MS", 60_000)
    stop_renewing(store)
    taken = []
    with closing(another(store)) as second, connect(store.database, "a test") as slow:
        slow.execute("BEGIN")
        slow.execute("SELECT commits FROM broker WHERE name = %s FOR NO KEY UPDATE", (store.broker,))
        thread = threading.Thread(target=lambda: taken.append(second.claim()))
        thread.start()
        name = "application_name = 'bester broker ' || :broker"
        waits = f"SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND {name}"  # noqa: S608 (own words)
        wait_until(lambda: asked(store, waits) != [])
        assert not taken
        slow.execute("COMMIT")
        thread.join(60)
        assert taken == [None]


def test_lease_is_as_old_as_the_beginning_of_its_commit(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that took longer than the lease lives is followed by another one at once, before anybody adopts."""
    now = [100.0]
    store = PostgresStore(cluster.database(), "b1", clock=lambda: now[0])
    store.open()
    try:
        transact = store._transact

        def slow(*arguments: Any) -> Any:
            try:
                return transact(*arguments)
            finally:
                now[0] += lease.LEASE_S + 1

        due = []
        for way, writes in ((transact, [keep(1)]), (slow, [keep(2)]), (transact, [])):
            monkeypatch.setattr(store, "_transact", way)
            assert store.commit(writes).ok
            due.append(store.is_due)
        assert due == [False, True, False]
    finally:
        store.close()


@pytest.mark.parametrize("asks", [False, True])
def test_broker_whose_table_is_locked_keeps_its_lease(cluster: Cluster, asks: bool) -> None:
    """As while an index is made: another broker, with nothing to write there, goes on and would adopt this one."""
    now = [100.0]
    with closing(PostgresStore(cluster.database(), "b1", clock=lambda: now[0])) as store:
        store.open()
        assert store._held.connection is not None
        store._held.connection.execute("SET lock_timeout = 10")
        until = "SELECT until FROM broker WHERE ns = :ns"
        with connect(store.database, "a test") as other, other.transaction():
            other.execute(f"LOCK TABLE entry IN {'ACCESS EXCLUSIVE' if asks else 'SHARE'} MODE".encode())
            for is_due in (False, True):
                now[0] += lease.RENEW_S + 1 if is_due else 0
                before = asked(store, until)
                if asks:
                    with pytest.raises(BesterError, match="lock timeout"):
                        numbers(store)
                else:
                    assert store.commit([keep(1)]).busy
                assert (asked(store, until) > before, store.is_due) == (is_due, False)
        assert store.commit([keep(2)]).ok, "the count of commits holds"
        assert numbers(store) == [2]


def test_namespaces_of_one_database_are_apart(store: PostgresStore) -> None:
    with closing(PostgresStore(store.database, f"{store.broker}-other")) as other:
        other.open()
        here, there = (RecordRemote(entry(9, lane_of("s2", "t"), id=id_), "queued") for id_ in ("m.0.0", "n.0.0"))
        for each, note in ((store, here), (other, there)):
            assert each.commit([keep(1, id="a.0.0"), keep(2), note, Bury(letter("x"))]).repeated == {}
        other.commit([End(1, "delivered"), End(2, "delivered", True), PurgeOutcomes(NOW_S + 99, 0), MarkSent(BOB, 7)])
        assert (numbers(store), numbers(other)) == ([1, 2], [])
        assert (store.read(outcomes("a")), other.read(outcomes("a"))) == ({"bob": "queued"},) * 2  # of any namespace
        assert other.read(FindEntry("m.0.0", "s2")) is None
        assert [len(each.read(dead())) for each in (store, other)] == [1, 1]


# --- connections ----------------------------------------------------------------------------------------------------


def test_status_says_no_more_that_the_database_is_away_once_the_lease_is_renewed(
    far: PostgresStore, cable: Cable
) -> None:
    """An idle broker writes nothing else for long."""
    router = Router(Settings("s1"), epoch="e", first_token=1, now=0.0, wall_s=0.0)
    driver, figures = StoreDriver(router, far, lambda effects: None), router.figures.store
    cable.pull_out()
    far._held.renewed_at -= lease.RENEW_S
    driver.tick()
    assert figures.failing
    cable.plug_in()

    def is_back() -> bool:
        """Renew the lease, which is due, and return whether that was possible."""
        driver.tick()
        return not far.away

    wait_until(is_back)
    assert figures.failing is None


def test_connection_that_was_closed_is_made_anew(far: PostgresStore, cable: Cable) -> None:
    far.commit([keep(1)])
    cable.pull_out()
    cable.plug_in()
    assert far.commit([keep(2)]).ok
    assert numbers(far) == [1, 2]
    assert far.away == ""


def refused_while_connecting(far: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of why messages are refused at the moment of each new connection; empty where none are."""
    seen: list[str] = []
    connect_anew = connect

    def watched(database: Database, name: str) -> psycopg.Connection[Any]:
        seen.append(far.away)
        return connect_anew(database, name)

    monkeypatch.setattr("bester.broker.postgres.connect", watched)
    return seen


def test_database_that_has_come_back_is_not_away_while_the_connection_is_made_anew(
    far: PostgresStore, cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that stood still meets a connection that was closed meanwhile, and refuses nothing for that."""
    far.commit([keep(1)])
    cable.pull_out()
    cable.plug_in()
    seen = refused_while_connecting(far, monkeypatch)
    assert far.commit([keep(2)]).ok
    assert seen == [""] and numbers(far) == [1, 2]


def test_log_says_what_an_away_database_means_whenever_that_is_noticed(
    far: PostgresStore, cable: Cable, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is found closed before it is used, and a new one cannot be made."""
    far.commit([keep(1)])
    cable.pull_out()
    assert not far.commit([keep(2)]).ok
    assert "nothing can be kept until the broker is connected again" in caplog.text
    assert far.away in caplog.text


def test_away_database_is_told_with_the_reason_that_it_cannot_be_reached(far: PostgresStore, cable: Cable) -> None:
    """Also while no try is made, and whatever had ended the old connection."""
    far.commit([keep(1)])
    cable.pull_out()
    tried = far.commit([keep(2)])
    waits = far.commit([keep(3)])
    assert "No such file" in tried.why and tried.why in waits.why


def test_database_that_is_away_is_noticed_at_once_and_nothing_is_lost(
    far: PostgresStore, cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.commit([keep(1), keep(2)])
    cable.pull_out()
    groups: list[list[Write]] = [[keep(3), End(1, "delivered")], [keep(4)]]
    for writes in groups:
        result = far.commit(writes)
        assert (result.ok, result.code) == (False, "storage-unavailable")
        assert "\n" not in result.why and "; " in result.why
    assert far.away
    with pytest.raises(BesterError):
        numbers(far)
    cable.plug_in()
    monkeypatch.setattr("bester.broker.store.leased.AGAIN_S", 0.0)
    wait_until(lambda: far.commit([]).ok)
    assert far.away == ""
    assert numbers(far) == [2]


@pytest.mark.parametrize("word", [b"BEGIN", b"COMMIT"])
def test_nothing_is_refused_where_a_connection_broke_in_a_commit_and_the_next_is_good(
    far: PostgresStore, cable: Cable, monkeypatch: pytest.MonkeyPatch, word: bytes
) -> None:
    far.commit([keep(1)])
    seen = refused_while_connecting(far, monkeypatch)
    cable.cut, cable.word = "before", word
    assert far.commit([keep(2)]).ok
    assert (cable.cut, seen, far.away, numbers(far)) == ("", [""], "", [1, 2])


def test_question_whose_connection_broke_is_asked_again(
    far: PostgresStore, cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.commit([keep(1)])
    monkeypatch.setattr("bester.broker.store.leased.AGAIN_S", 0.0)
    seen = refused_while_connecting(far, monkeypatch)
    cable.cut, cable.word = "before", b"SELECT held"
    assert numbers(far) == [1]
    assert (cable.cut, seen, far.away) == ("", [""], "")


@pytest.mark.parametrize("cut", ["before", "after"])
def test_group_whose_connection_broke_is_written_once(far: PostgresStore, cable: Cable, cut: str) -> None:
    far.commit([keep(1, id="a.0.0"), keep(2, id="b.0.0"), End(2, "delivered")])
    cable.cut = cut
    group: list[Write] = [
        keep(3), keep(4, id="a.0.0"), keep(5, id="b.0.0"), keep(6), End(6, "x", forget=True), End(3, "delivered"),
        keep(7), keep(8, id="s1/b/7.0.0"),
    ]  # fmt: skip
    result = far.commit(group)
    assert cable.cut == "", "the connection was cut"
    assert (result.ok, result.repeated) == (True, {4: None, 5: "delivered", 8: None})
    assert numbers(far) == [1, 7]
    assert far.commit([keep(9)]).ok
    assert far.read(outcomes("s1/b/3")) == {"bob": "delivered"}


def test_group_whose_fate_is_open_waits_for_the_database(far: PostgresStore, cable: Cable) -> None:
    results: list[Committed] = []
    here, nowhere = far.database, Database("postgresql://bester@/postgres?host=/nowhere", far.database.schema)
    cable.cut, far.database = "after", nowhere
    thread = threading.Thread(target=lambda: results.append(far.commit([keep(1)])))
    thread.start()
    wait_until(lambda: "/nowhere" in far.away and "No such file" in far.away)
    assert not results
    far.database = here
    thread.join(30)
    assert results[0].ok
    assert numbers(far) == [1]


def test_group_whose_fate_is_open_ends_with_the_store(far: PostgresStore, cable: Cable) -> None:
    results: list[Committed] = []
    far.database, cable.cut = Database("postgresql://bester@/postgres?host=/nowhere", far.database.schema), "before"
    thread = threading.Thread(target=lambda: results.append(far.commit([keep(1)])))
    thread.start()
    wait_until(lambda: far.away != "")
    far.close()
    thread.join(30)
    assert not results[0].ok


@pytest.mark.parametrize("connects_again", [False, True])
def test_database_that_has_lost_commits_is_written_no_more(
    far: PostgresStore, cable: Cable, connects_again: bool
) -> None:
    far.commit([keep(1)])
    asked(far, "UPDATE broker SET commits = commits - 1 WHERE ns = :ns")
    if connects_again:
        cable.pull_out()
        cable.plug_in()
    assert not far.commit([keep(2)]).ok
    assert "the database was set back, or is a copy; this process must end" in far.fenced
    assert asked(far, "SELECT number FROM entry WHERE ns = :ns") == [(1,)]


@pytest.mark.parametrize(("connects_again", "adopted"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("reads", [False, True])
def test_database_that_has_lost_a_start_gives_its_numbers_another_epoch(
    far: PostgresStore, cable: Cable, connects_again: bool, reads: bool, adopted: bool
) -> None:
    """`adopted`: as on a standby that was promoted without this start, where another broker has adopted this one."""
    asked(far, "UPDATE broker SET life = life - 1, commits = commits - 1 WHERE ns = :ns")
    if not adopted:
        asked(far, "UPDATE broker SET lease = lease - 1 WHERE ns = :ns")
    ((before,),) = asked(far, "SELECT epoch FROM broker WHERE ns = :ns")
    if connects_again:
        cable.pull_out()
        cable.plug_in()
    if reads:
        with pytest.raises(BesterError):
            far.read(Fetch(BOB, 0, LOTS, LOTS))
    else:
        assert not far.commit([keep(1)]).ok
    assert "the database was set back, or is a copy; this process must end" in far.fenced
    with closing(PostgresStore(cable.database, far.broker)) as second:
        asked(far, "UPDATE broker SET until = 'epoch' WHERE ns = :ns")
        found = second.open()
        assert (found.life, found.epoch != before) == (1, True)


def test_schema_that_is_removed_under_a_broker_is_named(cluster: Cluster) -> None:
    database = cluster.database()
    with closing(PostgresStore(database, "b1")) as store:
        store.open()
        with connect(database, "a test") as other:
            other.execute(f"DROP SCHEMA {database.schema} CASCADE".encode())
        result = store.commit([keep(1)])
        assert (result.ok, result.code) == (False, "storage-unavailable")
        assert result.why.endswith("something was removed from the schema: stop the server and restore a backup")


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "code", "busy"),
    [
        ("53100", "storage-full", False), ("23514", "storage-full", False), ("40001", "storage-unavailable", True),
        ("25006", "storage-unavailable", False), ("57014", "storage-unavailable", False),
        ("42501", "storage-unavailable", False),
    ],
)  # fmt: skip
def test_refusal_of_the_database_has_its_code(state: str, code: str, busy: bool, store: PostgresStore) -> None:
    mend = refusing(store, "INSERT", "entry", state)
    result = store.commit([keep(1)])
    assert (result.ok, result.code, result.busy) == (False, code, busy)
    mend()
    assert store.commit([keep(2)]).ok
    assert numbers(store) == [2]


@pytest.mark.parametrize("function", ["hold", "held"])
def test_statement_behind_a_failed_one_is_good_afterwards(function: str, store: PostgresStore) -> None:
    """The library prepares a statement at its sixth execution, whatever becomes of those before it."""
    for number in range(1, 9):
        asked(store, f"ALTER FUNCTION {function} RENAME TO elsewhere")
        try:
            if function == "hold":
                assert not store.commit([keep(100 + number)]).ok
            else:
                with pytest.raises(BesterError):
                    store.read(Fetch(BOB, 0, LOTS, LOTS))
        finally:
            asked(store, f"ALTER FUNCTION elsewhere RENAME TO {function}")
        result = store.commit([keep(number)])
        assert result.ok, result.why
        assert numbers(store) == list(range(1, number + 1))


def test_long_names_are_kept(store: PostgresStore) -> None:
    names = [f"{chr(0x10000 + number)}" * 500 + "\ud800" * 500 for number in range(3)]
    kept = [entry(number, mailbox(name[:128]), id=f"{name}.0.0", target=name) for number, name in enumerate(names, 1)]
    assert store.commit([Enqueue(each) for each in kept]).ok
    assert [store.read(Fetch(each.queue, 0, 9, LOTS)) for each in kept] == [[each] for each in kept]
    assert [store.read(outcomes(name)) for name in names] == [{name: "queued"} for name in names]
    assert store.commit([Enqueue(kept[0]._replace(number=9))]).repeated == {9: None}


# --- schemas --------------------------------------------------------------------------------------------------------


def test_schema_of_a_newer_bester_is_left_alone(cluster: Cluster) -> None:
    database = cluster.database()
    with connect(database, "a test") as made:
        migrate(made, database)
        made.execute("UPDATE version SET number = number + 1")
        with pytest.raises(ConfigError, match=rf"written by a newer Bester \(version {len(STEPS) + 1}"):
            migrate(made, database)


def test_schema_of_another_program_is_left_alone(cluster: Cluster) -> None:
    database = cluster.database()
    with connect(database, "a test") as made:
        made.execute(f"CREATE SCHEMA {database.schema} CREATE TABLE version (number text)".encode())
        with pytest.raises(ConfigError, match="holds another program's tables"):
            migrate(made, database)


def test_schema_is_made_once_by_many_at_once(cluster: Cluster) -> None:
    database = cluster.database()
    failures: list[Exception] = []

    def make() -> None:
        try:
            with connect(database, "a test") as made:
                migrate(made, database)
        except (psycopg.Error, BesterError) as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with connect(database, "a test") as made:
        assert made.execute("SELECT number FROM version").fetchall() == [(len(STEPS),)]


def test_views_show_what_is_kept(store: PostgresStore) -> None:
    store.commit(
        [keep(1), keep(2, lane_of("s2", "t")), keep(3), End(3, "delivered"), Bury(letter("x")), MarkSent(BOB, 1)]
    )
    found = asked(
        store,
        "SELECT \"user\", server, id, was_sent, convert_from(body, 'UTF8') FROM queued "
        "WHERE broker = :broker ORDER BY id",
    )
    assert found == [("bob", None, "s1/b/1.0.0", True, '"hi"'), (None, "s2", "s1/b/2.0.0", False, '"hi"')]
    assert asked(store, "SELECT id, outcome FROM outcomes WHERE broker = :broker") == [("s1/b/3.0.0", "delivered")]
    assert asked(store, "SELECT id, reason FROM dead_letters WHERE broker = :broker") == [("x", "handler-lost")]
    assert asked(store, "SELECT living, starts FROM brokers WHERE broker = :broker") == [(True, 1)]
