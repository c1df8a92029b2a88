"""Stores, in a file and in memory alike: writes read back in order, after a restart too."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bester.broker import database
from bester.broker.store import commits, sqlite
from bester.broker.store.memory import MemoryStore
from bester.broker.store.postgres import PostgresStore
from bester.broker.store_requests import (
    NAMES,
    Bury,
    ClockState,
    End,
    Enqueue,
    Fetch,
    FindExpired,
    MarkSent,
    PurgeOutcomes,
    RecordRemote,
    RecordType,
    Rewrite,
    SaveClock,
    SaveLane,
    SaveName,
    SavePeer,
    Snapshot,
    StoredQueue,
    Unbury,
    Write,
    lane,
    mailbox,
)
from bester.broker.wire.outcomes import OUTCOME_TYPE
from tests.unit.store_stand import (
    BOB,
    KINDS,
    LOTS,
    NOW_S,
    Stand,
    dead,
    entry,
    keep,
    letter,
    outcomes,
    read_only,
    refusing,
)

connect = database.connect


class _Full:
    """A connection to a database on a full disk, which can still be read."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.full = True

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if self.full and not statement.startswith(("SELECT", "PRAGMA", "BEGIN", "ROLLBACK")):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise error
        return self._db.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


@pytest.fixture(params=KINDS)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    with TemporaryDirectory(prefix="b-") as directory:
        stand = Stand(request.param, Path(directory), request)
        yield stand
        stand.close()


# --- snapshots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stand", ["sqlite", "memory"], indirect=True)  # without its database no broker starts
def test_life_that_cannot_be_counted_has_an_epoch_of_its_own(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.write(keep(1))
    with monkeypatch.context() as full:
        if isinstance(stand.store, MemoryStore):
            stand.store.broken = True
            stand.store.commit([keep(2)])
        else:
            # SQLite's own error for a disk without room, from the first statement of a life on.
            full.setattr(database, "connect", lambda *args, **more: _Full(connect(*args, **more)))
        starts = (
            [stand.store.open() for _ in range(3)]
            if isinstance(stand.store, MemoryStore)
            else [stand.again() for _ in range(3)]
        )
        assert all(start.full for start in starts)
        assert [start.life for start in starts] == [stand.first.life + 1] * 3
        assert len({stand.first.epoch, *(start.epoch for start in starts)}) == 4, "no number is given twice under one"
        assert all(start.queues[BOB].messages == 1 for start in starts)
        assert stand.waiting() == [1]
        assert not stand.store.commit([keep(3)]).ok
        if isinstance(stand.store, MemoryStore):
            stand.store.broken = False
        else:
            stand.store._db.full = False  # see _Full
        stand.write(keep(4))
    after = stand.again()
    assert (after.epoch, after.life, after.full) == (starts[-1].epoch, stand.first.life + 2, None)
    assert stand.waiting() == [1, 4]


def test_new_store_is_empty_and_in_its_first_life(stand: Stand) -> None:
    assert stand.first.epoch != Snapshot().epoch
    shared = isinstance(stand.store, PostgresStore)
    assert stand.first == Snapshot(epoch=stand.first.epoch, life=1, is_shared=shared)


def test_lives_are_counted_and_the_epoch_stays(stand: Stand) -> None:
    assert stand.again().life == 2
    assert stand.again().life == 3
    assert stand.again().epoch == stand.first.epoch


def test_two_stores_have_two_epochs() -> None:
    assert MemoryStore().open().epoch != MemoryStore().open().epoch


def test_commits_survive_a_crash(stand: Stand) -> None:
    other = lane("s2", "mail/x")
    stand.write(
        keep(5, body=b"12345"),
        keep(7, body=b"123"),
        keep(6, other, body=b"1"),
        MarkSent(BOB, 5),
        MarkSent("user/gone", 9),
        RecordType("chat"),
        RecordType("alpha"),
        RecordType("chat"),
        Bury(letter("a")),
        SaveLane("s2", "chat", "e1", 3, {3: "delivered", 5: "failed:expired"}),
        SaveLane("s2", "mail", "e1", 0, {}),
        SaveLane("s2", "chat", "e2", 4, {4: "queued"}),
    )
    found = stand.again()
    assert found.queues == {BOB: StoredQueue(2, 8, 5, 5), other: StoredQueue(1, 1, 6, 0)}
    assert found.types == ("chat", "alpha")
    assert sorted(found.lanes) == [
        SaveLane("s2", "chat", "e2", 4, {4: "queued"}),
        SaveLane("s2", "mail", "e1", 0, {}),
    ]
    assert found.next_expiry_s == NOW_S + 5
    assert found.dead == 1


def test_ended_message_is_in_no_queue_at_the_start(stand: Stand) -> None:
    stand.write(keep(1), keep(2), RecordRemote(entry(3, lane("s2", "chat")), "queued"), MarkSent(BOB, 2))
    stand.write(End(1, "delivered"), End(2, "delivered", forget=True))
    found = stand.again()
    assert found.queues == {}
    assert found.next_expiry_s is None


def test_highest_sent_number_never_goes_back(stand: Stand) -> None:
    stand.write(keep(9), MarkSent(BOB, 7), MarkSent(BOB, 4))
    assert stand.again().queues[BOB].sent_upto == 7


def test_last_state_of_the_clock_is_in_the_snapshot(stand: Stand) -> None:
    assert stand.first.clock is None
    stand.write(SaveClock(ClockState(1.5, -2.0, "boot", 3.0)), SaveClock(ClockState(2.5, 1e9, "b\udcff", -4.0)))
    assert stand.again().clock == ClockState(2.5, 1e9, "b\udcff", -4.0)
    stand.write(SaveClock(ClockState(3.5, 0.0, "", 0.0)))
    assert stand.again().clock == ClockState(3.5, 0.0, "", 0.0)


def test_names_are_in_the_snapshot_latest_last_and_bounded(stand: Stand) -> None:
    stand.write(SaveName("a"), SaveName("b"), SaveName("a"))
    assert stand.again().names == ("b", "a")
    stand.write(*[SaveName(f"n{number}") for number in range(NAMES)])
    stand.write(SaveName("n3"))
    names = stand.again().names
    assert len(names) == NAMES
    assert names[-2:] == (f"n{NAMES - 1}", "n3")


def test_finding_on_a_native_server_is_in_the_snapshot(stand: Stand) -> None:
    stand.write(SavePeer("h:1", True), SavePeer("h:2", False), SavePeer("h:1", False), SavePeer("h:2", True))
    assert stand.again().peers == {"h:1": False, "h:2": True}


def test_clock_names_and_peers_are_written_after_a_full_disk(stand: Stand) -> None:
    if isinstance(stand.store, MemoryStore):
        stand.store.broken = True
        assert not stand.store.commit([SaveName("n"), SaveClock(ClockState(1.0, 1.0, "b", 1.0))]).ok
        assert not stand.store.commit([SavePeer("h:1", True), SaveClock(ClockState(2.0, 2.0, "b", 2.0))]).ok
        stand.store.broken = False
        stand.write()
        found = stand.again()
        assert (found.names, found.peers, found.clock) == (("n",), {"h:1": True}, ClockState(2.0, 2.0, "b", 2.0))


# --- queues ---------------------------------------------------------------------------------------------------------


def test_entry_reads_back_unchanged(stand: Stand) -> None:
    kept = entry(1, meta={"path": ["s1/chat"], "push": True, "left": 3, "peer": None, "deep": {"a": [1, 2.5]}})
    stand.write(Enqueue(kept), Enqueue(kept._replace(number=2, id="x", sender=None, body=bytes(range(256)))))
    first, second = stand.read(Fetch(BOB, 0, 10, LOTS))
    assert first == kept
    assert (second.sender, second.body, type(second.body)) == (None, bytes(range(256)), bytes)


def test_queue_is_read_in_windows_by_number(stand: Stand) -> None:
    stand.write(*(keep(number, body=b"x" * 10) for number in range(1, 8)), keep(8, mailbox("eve")))
    assert stand.waiting() == [1, 2, 3, 4, 5, 6, 7]
    assert [each.number for each in stand.read(Fetch(BOB, 2, 3, LOTS))] == [3, 4, 5]
    assert [each.number for each in stand.read(Fetch(BOB, 2, 10, 25))] == [3, 4]
    assert [each.number for each in stand.read(Fetch(BOB, 2, 10, 20))] == [3, 4]
    assert [each.number for each in stand.read(Fetch(BOB, 2, 10, 1))] == [
        3
    ]  # at least one, or a large one would be ready for ever
    assert stand.read(Fetch(BOB, 7, 10, LOTS)) == []
    assert stand.read(Fetch("user/nobody", 0, 10, LOTS)) == []


def test_queues_with_a_common_beginning_are_apart(stand: Stand) -> None:
    stand.write(keep(1, mailbox("bob")), keep(2, mailbox("bo")), keep(3, mailbox("bob/x")))
    assert stand.waiting(mailbox("bo")) == [2]
    assert stand.waiting() == [1]


def test_ended_message_is_not_fetched(stand: Stand) -> None:
    stand.write(keep(1), keep(2), keep(3), End(2, "delivered"))
    assert stand.waiting() == [1, 3]


def test_rewritten_meta_is_kept(stand: Stand) -> None:
    stand.write(keep(1), Rewrite(1, {"repeated": True}), Rewrite(99, {}))
    assert stand.read(Fetch(BOB, 0, 1, LOTS))[0].meta == {"repeated": True}


def test_store_keeps_a_copy_of_what_it_is_given(stand: Stand) -> None:
    meta = {"path": ["a"]}
    stand.write(keep(1, meta=meta))
    meta["path"].append("b")
    stand.read(Fetch(BOB, 0, 1, LOTS))[0].meta["path"].append("c")
    assert stand.read(Fetch(BOB, 0, 1, LOTS))[0].meta == {"path": ["a"]}


# --- duplicates -----------------------------------------------------------------------------------------------------


def test_same_id_in_the_same_queue_is_a_duplicate(stand: Stand) -> None:
    assert stand.write(keep(1, id="a"), keep(2, id="b")) == frozenset()
    assert stand.write(keep(3, id="a"), keep(4, id="c"), keep(5, id="b"), keep(6, id="c")) == {3, 5, 6}
    assert stand.waiting() == [1, 2, 4]


def test_same_id_is_a_duplicate_of_an_ended_message(stand: Stand) -> None:
    stand.write(keep(1, id="a"), End(1, "delivered"))
    assert stand.write(keep(2, id="a")) == {2}
    assert stand.waiting() == []
    stand.again()
    assert stand.write(keep(3, id="a"), RecordRemote(entry(4, id="a"), "queued")) == {3, 4}


def test_same_id_in_another_queue_or_after_a_purge_is_new(stand: Stand) -> None:
    stand.write(keep(1, id="a"))
    assert stand.write(keep(2, mailbox("eve"), id="a")) == frozenset()
    stand.write(End(1, "delivered", forget=True))
    assert stand.write(keep(3, id="a")) == frozenset()


def test_ready_message_takes_over_the_mark_of_a_duplicate(stand: Stand) -> None:
    plain, marked = {"origin": "s1"}, {"repeated": True}
    stand.write(*(keep(number, id=id_, meta=plain) for number, id_ in enumerate("abc", 1)))
    stand.write(keep(4, id="a", meta=marked), keep(5, id="b", meta=plain))
    stand.write(keep(6, id="d", meta=plain), keep(7, id="d", meta=marked))
    expected = [plain | marked, plain, plain, plain | marked]
    for _ in range(2):
        assert [each.meta for each in stand.read(Fetch(BOB, 0, 9, LOTS))] == expected
        stand.again()


def test_ended_message_takes_over_no_mark(stand: Stand) -> None:
    stand.write(keep(1, id="a"), End(1, "delivered"))
    assert stand.write(keep(2, id="a", meta={"repeated": True})) == {2}
    assert stand.waiting() == []


def test_many_duplicates_at_once(stand: Stand) -> None:
    stand.write(*(keep(number, id=f"i{number}") for number in range(1, 1201)))
    again = [keep(2000 + number, id=f"i{number}") for number in range(1, 2401)]
    assert stand.write(*again) == set(range(2001, 3201))


# --- groups ---------------------------------------------------------------------------------------------------------


def test_writes_take_effect_in_order(stand: Stand) -> None:
    stand.write(keep(1, id="a"), End(1, "delivered", forget=True), keep(2, id="a"), End(2, "x"), keep(3, id="b"))
    assert stand.waiting() == [3]
    stand.write(End(4, "delivered"), keep(4))
    assert stand.waiting() == [3, 4]


def test_empty_group_is_committed(stand: Stand) -> None:
    assert stand.write() == frozenset()


def broken(stand: Stand) -> Callable[[], None]:
    """Make every write fail; return the function that mends that."""
    if isinstance(stand.store, MemoryStore):
        memory = stand.store
        memory.broken = True
        return lambda: setattr(memory, "broken", False)
    if isinstance(stand.store, PostgresStore):
        return read_only(stand.store)
    db = stand.store._db
    db.execute("PRAGMA query_only = 1")  # SQLite's own refusal, on a sound file
    return lambda: db.execute("PRAGMA query_only = 0").close()


def test_failed_group_is_not_written_and_has_its_reason(stand: Stand) -> None:
    stand.write(keep(1))
    mend = broken(stand)
    result = stand.store.commit([keep(2), SaveLane("s2", "t", "e", 1, {}), RecordRemote(entry(3), "queued")])
    assert not result.ok
    assert not result.repeated
    assert "; " in result.why and "\n" not in result.why
    mend()
    assert stand.write(keep(4)) == frozenset()
    assert stand.waiting() == [1, 4]
    found = stand.again()
    assert (found.dead, found.lanes) == (0, ())


def test_deletions_of_a_failed_group_are_written_with_the_next(stand: Stand) -> None:
    stand.write(*(keep(number) for number in range(1, 6)), Bury(letter("a")))
    mend = broken(stand)
    assert not stand.store.commit([End(1, "failed:expired"), keep(6), Unbury("a")]).ok
    assert not stand.store.commit([End(1, "delivered"), Rewrite(3, {"n": 1}), RecordType("chat"), MarkSent(BOB, 2)]).ok
    assert not stand.store.commit([Rewrite(3, {"n": 2})]).ok
    mend()
    stand.write(keep(7))
    assert stand.waiting() == [2, 3, 4, 5, 7]
    assert stand.read(outcomes("s1/b/1")) == {"bob": "delivered"}
    assert stand.read(Fetch(BOB, 2, 1, LOTS))[0].meta == {"n": 2}
    found = stand.again()
    assert (found.dead, found.types, found.queues[BOB].sent_upto) == (0, ("chat",), 2)


def test_writes_held_back_are_written_with_an_empty_group(stand: Stand) -> None:
    stand.write(keep(1))
    mend = broken(stand)
    assert not stand.store.commit([End(1, "delivered")]).ok
    mend()
    stand.write()
    assert stand.again().queues == {}


def test_ended_message_is_not_read_while_its_end_is_held_back(stand: Stand) -> None:
    eve = mailbox("eve")
    stand.write(*(keep(number) for number in range(1, 8)), keep(8, eve))
    broken(stand)
    assert not stand.store.commit([End(number, "delivered") for number in (1, 2, 3, 5, 8)]).ok
    assert [each.number for each in stand.read(Fetch(BOB, 0, 2, LOTS))] == [4]
    assert [each.number for each in stand.read(Fetch(BOB, 4, 2, LOTS))] == [6]
    assert stand.read(Fetch(eve, 0, 2, LOTS)) == []
    found, next_s = stand.read(FindExpired(NOW_S + 5, 4, LOTS))
    assert [each.number for each in found] == [4]
    assert next_s > NOW_S + 5


def test_writes_held_back_are_bounded(stand: Stand) -> None:
    broken(stand)
    for _ in range(50):
        stand.store.commit([End(1, "delivered"), MarkSent(BOB, 1), Rewrite(1, {}), PurgeOutcomes(NOW_S, 1000), keep(2)])
    assert stand.store.held_back == 4


def dead_ids(stand: Stand) -> list[str]:
    return [each.id for each in stand.read(dead(limit=LOTS, bodies=False))]


def test_dead_letter_is_held_back_with_its_end(stand: Stand) -> None:
    stand.write(keep(1), keep(2))
    mend = broken(stand)
    buried = Bury(letter("a"))
    assert not stand.store.commit([buried, End(1, "failed:expired"), keep(3)]).ok
    mend()
    stand.write()
    assert (stand.waiting(), stand.read(dead())) == ([2], [buried.letter])
    assert stand.again().dead == 1


def test_other_ends_are_written_without_the_dead_letter(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.write(*(keep(number) for number in range(1, 5)))
    if isinstance(stand.store, MemoryStore):
        stand.store.full = True
    elif isinstance(stand.store, PostgresStore):
        refusing(stand.store, "INSERT", "letter", "53100")
    else:
        monkeypatch.setattr(sqlite, "room_beside", lambda path: (1, 2**40))
    assert not stand.store.commit([End(1, "failed:expired"), Bury(letter("a"))]).ok
    assert not stand.store.commit([End(2, "delivered"), keep(9)]).ok
    assert stand.waiting() == [3, 4]  # neither message is read again
    assert stand.again().queues[BOB].lowest == 1  # the body of the first is still there, and nowhere else


def test_dead_letters_held_back_are_bounded(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "GROWING_HELD_BACK", 3)
    monkeypatch.setattr(commits, "GROWING_HELD_BACK_BYTES", 10)
    stand.write(keep(1))
    mend = broken(stand)
    stand.store.commit([Bury(letter("a")), End(1, "failed:expired")])
    for id_ in "bcd":
        stand.store.commit([Bury(letter(id_))])
    stand.store.commit([Bury(letter("e")._replace(body=b"x" * 6)), Unbury("c")])
    mend()
    stand.write()
    assert dead_ids(stand) == ["e", "d"]
    assert stand.waiting() == []


def late(number: int, **fields: Any) -> Enqueue:
    return keep(number, mailbox("alice"), type=OUTCOME_TYPE, **fields)


def test_late_outcomes_and_notes_outlive_a_failed_group(stand: Stand) -> None:
    stand.write(keep(1))
    mend = broken(stand)
    note = RecordRemote(entry(4, lane("s2", "chat"), body=b""), "queued")
    failed = stand.store.commit([End(1, "delivered"), late(2), keep(3), note])
    assert not failed.ok
    assert (set(failed.kept), list(failed.late)) == ({2, 4}, [])
    assert stand.waiting() == []
    mend()
    assert stand.read(Fetch(mailbox("alice"), 0, 9, LOTS)) == [], "no read finds it before a result has told of it"
    told = stand.store.commit([keep(5)])
    assert told.ok
    assert ([each.entry.number for each in told.late], list(told.dropped)) == ([2, 4], [])
    assert ([each.number for each in stand.read(Fetch(mailbox("alice"), 0, 9, LOTS))], stand.waiting()) == ([2], [5])
    assert not stand.store.commit([]).late


def test_duplicate_among_late_outcomes_is_told(stand: Stand) -> None:
    stand.write(late(1, id="same"))
    mend = broken(stand)
    stand.store.commit([late(2, id="same")])
    mend()
    assert [each.number for each in stand.read(Fetch(mailbox("alice"), 0, 9, LOTS))] == [1]
    told = stand.store.commit([])
    assert ([each.entry.number for each in told.late], dict(told.repeated)) == ([2], {2: None})


def test_end_of_a_message_waits_for_its_late_outcome(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.write(keep(1), keep(2))
    if isinstance(stand.store, MemoryStore):
        stand.store.full = True
    elif isinstance(stand.store, PostgresStore):
        refusing(stand.store, "INSERT", "entry", "53100")
    else:
        monkeypatch.setattr(sqlite, "room_beside", lambda path: (1, 2**40))
    assert stand.store.commit([End(1, "delivered"), late(3)]).kept == {3}
    assert not stand.store.commit([End(2, "delivered"), keep(4)]).ok
    assert stand.again().queues[BOB].lowest == 1, "killed now, the message is delivered again, and so its outcome"


def test_late_outcomes_held_back_are_bounded(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "GROWING_HELD_BACK", 2)
    mend = broken(stand)
    told = [stand.store.commit([late(number)]) for number in (1, 2, 3)][-1]
    assert [each.entry.number for each in told.dropped] == [1]
    mend()
    told = stand.store.commit([])
    assert ([each.entry.number for each in told.late], list(told.dropped)) == ([2, 3], [])


def test_late_outcome_that_no_store_can_hold_is_dropped(stand: Stand) -> None:
    mend = broken(stand)
    first = stand.store.commit([late(1, meta={"n": HUGE}), late(2)])
    mend()
    told = stand.store.commit([keep(3)])
    assert told.ok
    dropped = [*first.dropped, *told.dropped]  # some find out before they write, and some when they do
    assert ([each.entry.number for each in told.late], [each.entry.number for each in dropped]) == ([2], [1])


# --- unwritable values ----------------------------------------------------------------------------------------------


HUGE = 2**64


class Odd:
    """A value that cannot be packed."""


@pytest.mark.parametrize(
    "poison",
    [
        keep(HUGE), keep(9, meta={"n": HUGE}), keep(9, meta={"n": Odd()}), RecordRemote(entry(HUGE), "queued"),
        SaveLane("s2", "t", "e", HUGE, {}), Bury(letter("p")._replace(meta={"n": Odd()})), End(HUGE, "delivered"),
        Rewrite(2, {"n": Odd()}), MarkSent(BOB, HUGE),
    ],
    ids=lambda write: type(write).__name__,
)  # fmt: skip
def test_unwritable_value_fails_its_group_alone(poison: Write, stand: Stand) -> None:
    stand.write(keep(1), keep(2), keep(3))
    result = stand.store.commit([keep(8), End(1, "delivered"), poison, Rewrite(3, {"n": 1}), Bury(letter("a"))])
    assert (result.ok, result.repeated) == (False, {})
    assert "; " in result.why and "\n" not in result.why
    assert stand.waiting() == [2, 3]
    assert (stand.read(Fetch(BOB, 2, 1, LOTS))[0].meta, dead_ids(stand)) == ({"n": 1}, ["a"])
    assert stand.store.held_back == 0
    stand.write(keep(4))
    assert stand.again().queues[BOB].messages == 3


def test_unwritable_value_held_back_fails_no_later_group(stand: Stand) -> None:
    stand.write(keep(1), keep(2))
    mend = broken(stand)
    stand.store.commit([End(1, "delivered"), MarkSent(BOB, HUGE), Rewrite(2, {"n": Odd()})])
    mend()
    stand.write(keep(3))
    assert stand.waiting() == [2, 3]
