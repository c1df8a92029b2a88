"""Bodies that several messages have: held once, in a store of any kind, as long as one of these is kept."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.broker.store import sqlite
from bester.broker.store.backup import backup
from bester.broker.store.memory import MemoryStore
from bester.broker.store.postgres import PostgresStore
from bester.broker.store.sqlite import RESERVE_BYTES, SqliteStore
from bester.broker.store.writing import SHARED_LEAST_BYTES
from bester.broker.store_requests import (
    DAMAGED,
    Bury,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindExpired,
    PurgeOutcomes,
    RecordRemote,
    Rewrite,
    StoredQueue,
    lane,
    mailbox,
)
from tests.unit.store_stand import KINDS, LOTS, NOW_S, Stand, asked, dead, entry, letter

LARGE = b'"%s"' % (b"x" * 100_000)
FIXTURE = Path(__file__).parents[1] / "vectors" / "store-3.db"


@pytest.fixture(params=KINDS)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    with TemporaryDirectory(prefix="b-") as directory:
        stand = Stand(request.param, Path(directory), request)
        yield stand
        stand.close()


def to_many(*users: int, body: bytes = LARGE, first: int = 0) -> list[Enqueue]:
    """Return the results of one command to these users."""
    return [
        Enqueue(entry(first + user, mailbox(f"u{user}"), body, id=f"s1/b/{first}.0.{user}", target=f"u{user}"))
        for user in users
    ]


def held(stand: Stand) -> list[bytes]:
    """Return the bodies that the store holds, each as often as it is held."""
    if isinstance(stand.store, MemoryStore):
        bodies = [row.entry.body for row in stand.store._rows.values() if row.entry.body]
        return list({id(body): body for body in bodies}.values())
    if isinstance(stand.store, PostgresStore):
        in_entries = asked(stand.store, "SELECT body FROM entry WHERE ns = :ns AND body <> ''")
        return [body for (body,) in [*in_entries, *asked(stand.store, "SELECT body FROM body WHERE ns = :ns")]]
    inline = stand.store._db.execute("SELECT body FROM entry WHERE body <> x''").fetchall()
    return [body for (body,) in [*inline, *stand.store._db.execute("SELECT body FROM body")]]


def found(stand: Stand, user: int) -> list[bytes]:
    return [each.body for each in stand.read(Fetch(mailbox(f"u{user}"), 0, LOTS, LOTS))]


def test_body_of_a_command_is_held_once_and_read_by_each(stand: Stand) -> None:
    stand.write(*to_many(*range(1, 401)))
    assert held(stand) == [LARGE]
    snapshot = stand.again()
    assert held(stand) == [LARGE]
    assert [found(stand, user) for user in (1, 200, 400)] == [[LARGE]] * 3
    assert snapshot.queues[mailbox("u7")] == StoredQueue(1, len(LARGE), 7, 0), "a queue counts the body as its own"
    assert snapshot.shares[mailbox("u7")] == {mailbox("alice"): (1, len(LARGE))}


@pytest.mark.parametrize("forget", [False, True])
def test_body_is_deleted_with_the_last_message(stand: Stand, forget: bool) -> None:
    stand.write(*to_many(1, 2, 3))
    stand.write(End(2, "delivered", forget))
    stand.write(End(2, "delivered", forget), End(1, "delivered", forget))
    assert (held(stand), found(stand, 1), found(stand, 3)) == ([LARGE], [], [LARGE])
    stand.again()
    stand.write(Rewrite(3, {"repeated": True}))
    assert found(stand, 3) == [LARGE]
    stand.write(End(3, "delivered", forget))
    assert (held(stand), found(stand, 3)) == ([], [])


def test_message_that_ends_with_its_own_group_leaves_the_others_their_body(stand: Stand) -> None:
    stand.write(*to_many(1, 2), End(1, "delivered"))
    assert (held(stand), found(stand, 2)) == ([LARGE], [LARGE])


def test_bodies_of_different_commands_are_held_each(stand: Stand) -> None:
    other, single = LARGE.replace(b"x", b"y"), LARGE.replace(b"x", b"z")
    stand.write(*to_many(1, 2), *to_many(1, 3, body=other, first=10), *to_many(4, body=single, first=20))
    assert sorted(held(stand)) == [LARGE, other, single]
    assert [found(stand, user) for user in (1, 2, 3, 4)] == [[LARGE, other], [LARGE], [other], [single]]
    stand.write(End(1, "delivered"), End(2, "delivered"))
    assert sorted(held(stand)) == [other, single]


def test_rest_of_a_command_in_later_groups_has_the_same_body(stand: Stand) -> None:
    for users in ((1, 2), (3, 4), (5,)):
        stand.write(*to_many(*users))
    stand.write(*to_many(6, body=b"1", first=10))
    stand.write(*to_many(7))
    assert sorted(held(stand)) == sorted([LARGE, b"1"])
    for user in range(1, 6):
        stand.write(End(user, "delivered"))
    assert (found(stand, 7), sorted(held(stand))) == ([LARGE], sorted([LARGE, b"1"]))
    stand.write(End(7, "delivered"))
    assert held(stand) == [b"1"]


def test_rest_of_a_command_whose_beginning_has_ended_has_its_body_anew(stand: Stand) -> None:
    other = LARGE.replace(b"x", b"y")
    stand.write(*to_many(1, 2))
    stand.write(End(1, "delivered"), End(2, "delivered"))
    assert held(stand) == []
    stand.write(*to_many(3, 4))
    stand.write(*to_many(5, 6, body=other, first=10))
    stand.again()
    stand.write(*to_many(7))
    assert [found(stand, user) for user in range(3, 8)] == [[LARGE], [LARGE], [other], [other], [LARGE]]


def test_another_body_of_the_serial_is_not_taken_for_that_of_the_command(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        store.open()
        store.commit(to_many(1, 2))
        other = LARGE.replace(b"x", b"y")
        store._db.execute("UPDATE body SET body = ?", (other,))
        store.commit(to_many(3, 4))
        bodies = [store.read(Fetch(mailbox(f"u{user}"), 0, LOTS, LOTS))[0].body for user in range(1, 5)]
    assert bodies == [other, other, LARGE, LARGE]


@pytest.mark.parametrize("body", [b"1", b"", b"x" * (SHARED_LEAST_BYTES - 1), b"x" * SHARED_LEAST_BYTES])
def test_bodies_of_every_size_read_back(stand: Stand, body: bytes) -> None:
    stand.write(*to_many(1, 2, body=body))
    stand.again()
    assert [found(stand, user) for user in (1, 2)] == [[body], [body]]
    stand.write(End(1, "delivered"), End(2, "delivered"))
    assert held(stand) == []


def test_duplicates_hold_no_body(stand: Stand) -> None:
    stand.write(*to_many(1, 2))
    again = [Enqueue(each.entry._replace(number=each.entry.number + 100)) for each in to_many(1, 2, 3)]
    assert stand.write(*again[:2]) == {101, 102}
    stand.write(End(1, "delivered"))
    assert stand.write(*again) == {101, 102}, "and user 3 has a message of this body"
    assert [found(stand, user) for user in (1, 2, 3)] == [[], [LARGE], [LARGE]]
    stand.write(End(2, "delivered"), End(103, "delivered"))
    assert held(stand) == []


def test_messages_to_servers_share_and_outcomes_of_others_hold_nothing(stand: Stand) -> None:
    entries = [Entry(n, lane(f"s{n}", "t"), f"m.0.{n}", f"s{n}", "t", LARGE, None, 9e9, {}) for n in range(1, 5)]
    stand.write(*(Enqueue(each) for each in entries[:2]), *(RecordRemote(each, "queued") for each in entries[2:]))
    assert held(stand) == [LARGE]
    assert [each.body for each in stand.read(Fetch(lane("s2", "t"), 0, LOTS, LOTS))] == [LARGE]


def test_expired_messages_are_read_with_the_body_and_purged_without(stand: Stand) -> None:
    stand.write(*to_many(1, 2))
    expired, _ = stand.read(FindExpired(NOW_S + 5, 10, LOTS))
    assert [each.body for each in expired] == [LARGE, LARGE]
    stand.write(End(1, "failed:expired"), End(2, "failed:expired"))
    stand.write(PurgeOutcomes(NOW_S + 5, 100))
    assert held(stand) == []


def test_dead_letter_keeps_the_body_of_a_message_that_has_ended(stand: Stand) -> None:
    stand.write(*to_many(1, 2))
    (kept,) = stand.read(Fetch(mailbox("u1"), 0, 1, LOTS))
    stand.write(Bury(letter("a")._replace(body=kept.body)), End(1, "failed:refused"), End(2, "delivered"))
    assert held(stand) == []
    assert [each.body for each in stand.read(dead())] == [LARGE]


def test_group_that_fails_leaves_no_body(stand: Stand) -> None:
    broken = Enqueue(entry(9, meta={"x": object()}))
    assert not stand.store.commit([*to_many(1, 2), broken]).ok
    assert held(stand) == []
    stand.write(*to_many(1, 2))
    assert held(stand) == [LARGE]


def test_file_is_hardly_larger_than_the_body(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        store.open()
        store.commit(to_many(*range(400), body=b"x" * 1_000_000))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2_000_000


def test_disk_needs_room_for_the_body_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        store.open()
        monkeypatch.setattr(sqlite, "room_beside", lambda path: (RESERVE_BYTES + 1_000_000, 2**40))
        assert store.commit(to_many(*range(40))).ok
        assert not store.commit([Enqueue(entry(100 + n, body=b"%d" % n * 50_000)) for n in range(10, 50)]).ok


def test_backup_has_the_bodies(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with closing(SqliteStore(tmp_path / "data" / "store.db")) as store:
        store.open()
        store.commit(to_many(1, 2, 3))
        backup(tmp_path / "data", tmp_path / "copy")
        store.commit([End(number, "delivered") for number in (1, 2, 3)])
    with closing(SqliteStore(tmp_path / "copy" / "store.db")) as copy:
        copy.open()
        assert [each.body for each in copy.read(Fetch(mailbox("u3"), 0, 9, LOTS))] == [LARGE]
        assert copy._db.execute("SELECT count(*) FROM body").fetchone() == (1,)


def test_store_of_an_earlier_version_keeps_its_bodies_and_shares_new_ones(tmp_path: Path) -> None:
    path = Path(shutil.copy(FIXTURE, tmp_path / "store.db"))
    with closing(SqliteStore(path)) as store:
        life = store.open().life
        assert [each.body for each in store.read(Fetch(mailbox("carol"), 0, 9, LOTS))] == [b'"c2"', b'"c3"', b'"c4"']
        assert store.commit(to_many(1, 2, 3, first=life * 2**32)).ok
        assert store._db.execute("SELECT count(*) FROM body").fetchone() == (1,)
        (old,) = store.read(Fetch(mailbox("dave"), 0, 9, LOTS))
        assert store.commit([End(old.number, "delivered")]).ok
    with closing(SqliteStore(path)) as store:
        assert mailbox("dave") not in store.open().queues
        assert [each.body for each in store.read(Fetch(mailbox("u3"), 0, 9, LOTS))] == [LARGE]


def test_body_that_is_missing_damages_its_message_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(SqliteStore(path)) as store:
        store.open()
        store.commit(to_many(1, 2))
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM body")
        db.commit()
    with closing(SqliteStore(path)) as store:
        store.open()
        (entry,) = store.read(Fetch(mailbox("u1"), 0, 9, LOTS))
        assert (entry.number, entry.body, entry.meta) == (1, b"", {DAMAGED: "a body is missing"})
        assert store.commit([End(1, "delivered"), End(2, "delivered")]).ok
