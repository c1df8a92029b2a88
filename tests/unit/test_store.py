"""What every store must do, tried on the one on disk and the one in memory."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bester.broker import database
from bester.broker.store import commits, memory, reading, sqlite
from bester.broker.store.memory import MemoryStore
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import (
    NAMES,
    Bury,
    ClockState,
    DeadLetter,
    DeadLetterPage,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindDeadLetters,
    FindEntry,
    FindExpired,
    FindOutcomes,
    MarkSent,
    PurgeOutcomes,
    QueueState,
    Read,
    RecordRemote,
    RecordType,
    Rewrite,
    SaveClock,
    SaveLane,
    SaveName,
    SavePeer,
    Snapshot,
    Unbury,
    Write,
    lane,
    mailbox,
)

BOB = mailbox("bob")
NOW_S = 1_700_000_000.0
LOTS = 1_000_000
LETTERS = 3
STRANGE = "k\ud800l\udfff\ufdd0d800 é\x00'\";--\N{PILE OF POO}"
"""Half pairs, what stands for them on disk, and what has meant something to databases before."""


class Stand:
    """A store of either kind; `again` is the end of the process, without a word of farewell, and its next start."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._path = directory / "store.db"
        self._old: list[SqliteStore] = []
        self.store: SqliteStore | MemoryStore
        if kind == "sqlite":
            self.store = SqliteStore(self._path, dead_letters=LETTERS)
        else:
            self.store = MemoryStore(dead_letters=LETTERS)
        self.first = self.store.open()

    def again(self) -> Snapshot:
        if isinstance(self.store, MemoryStore):
            self.store = self.store.copy()
        else:
            self._old.append(self.store)  # still open: nothing was tidied up when the new one comes
            self.store = SqliteStore(self._path, dead_letters=LETTERS)
        return self.store.open()

    def write(self, *writes: Write) -> frozenset[int]:
        result = self.store.commit(writes)
        assert result.ok, result.why
        return frozenset(result.repeated)

    def read(self, read: Read) -> Any:
        return self.store.read(read)

    def waiting(self, box: str = BOB) -> list[int]:
        return [entry.number for entry in self.read(Fetch(box, 0, LOTS, LOTS))]

    def close(self) -> None:
        for store in (*self._old, self.store):
            store.close()


connect = database.connect


class _Full:
    """A connection to a database on a full disk: it reads."""

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


@pytest.fixture(params=["sqlite", "memory"])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    with TemporaryDirectory(prefix="b-") as directory:
        stand = Stand(request.param, Path(directory))
        yield stand
        stand.close()


def entry(number: int, box: str = BOB, body: bytes = b'"hi"', **fields: Any) -> Entry:
    there = Entry(
        number, box, f"s1/b/{number}.0.0", "bob", "chat", body, "alice", NOW_S + number, {"root": f"s1/b/{number}"}
    )
    return there._replace(**fields)


def keep(number: int, *args: Any, **fields: Any) -> Enqueue:
    return Enqueue(entry(number, *args, **fields))


def outcomes(message: str, sender: str = "alice") -> FindOutcomes:
    return FindOutcomes(message, sender, None, 0)


def letter(id_: str, type_: str = "chat") -> DeadLetter:
    return DeadLetter(id_, type_, b"[1]", "handler-lost", NOW_S, {"root": id_, "attempts": 3, "bytes": 3})


def dead(id_: str | None = None, type_: str | None = None, limit: int = 10, *, bodies: bool = True) -> FindDeadLetters:
    return FindDeadLetters(id_, type_, limit, None, 0, {}, bodies)


# --- what is there at the start ---


def test_a_life_that_cannot_be_counted_has_a_name_of_its_own_until_it_is(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.write(keep(1))
    with monkeypatch.context() as full:
        if isinstance(stand.store, MemoryStore):
            stand.store.broken = True
            stand.store.commit([keep(2)])
        else:
            # SQLite's own way to say that there is no room, from the first statement of a life on.
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
            stand.store._db.full = False  # type: ignore[attr-defined]  # see _Full
        stand.write(keep(4))
    after = stand.again()
    assert (after.epoch, after.life, after.full) == (starts[-1].epoch, stand.first.life + 2, None)
    assert stand.waiting() == [1, 4]


def test_a_new_store_is_empty_and_in_its_first_life(stand: Stand) -> None:
    assert stand.first.epoch != Snapshot().epoch
    assert stand.first == Snapshot(epoch=stand.first.epoch, life=1)


def test_lives_are_counted_and_the_name_stays(stand: Stand) -> None:
    assert stand.again().life == 2
    assert stand.again().life == 3
    assert stand.again().epoch == stand.first.epoch


def test_two_stores_have_two_names() -> None:
    assert MemoryStore().open().epoch != MemoryStore().open().epoch


def test_what_was_committed_is_there_after_an_end_without_notice(stand: Stand) -> None:
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
    assert found.queues == {BOB: QueueState(2, 8, 5, 5), other: QueueState(1, 1, 6, 0)}
    assert found.types == ("chat", "alpha")
    assert sorted(found.lanes) == [
        SaveLane("s2", "chat", "e2", 4, {4: "queued"}),
        SaveLane("s2", "mail", "e1", 0, {}),
    ]
    assert found.next_expiry_s == NOW_S + 5
    assert found.dead == 1


def test_what_has_ended_is_in_no_box_at_the_start(stand: Stand) -> None:
    stand.write(keep(1), keep(2), RecordRemote(entry(3, lane("s2", "chat")), "queued"), MarkSent(BOB, 2))
    stand.write(End(1, "delivered"), End(2, "delivered", forget=True))
    found = stand.again()
    assert found.queues == {}
    assert found.next_expiry_s is None


def test_up_to_where_something_was_handed_never_goes_back(stand: Stand) -> None:
    stand.write(keep(9), MarkSent(BOB, 7), MarkSent(BOB, 4))
    assert stand.again().queues[BOB].sent_upto == 7


def test_the_last_state_of_the_clock_is_there_again(stand: Stand) -> None:
    assert stand.first.clock is None
    stand.write(SaveClock(ClockState(1.5, -2.0, "boot", 3.0)), SaveClock(ClockState(2.5, 1e9, "b\udcff", -4.0)))
    assert stand.again().clock == ClockState(2.5, 1e9, "b\udcff", -4.0)
    stand.write(SaveClock(ClockState(3.5, 0.0, "", 0.0)))
    assert stand.again().clock == ClockState(3.5, 0.0, "", 0.0)


def test_names_are_there_again_the_latest_last_and_no_more_than_so_many(stand: Stand) -> None:
    stand.write(SaveName("a"), SaveName("b"), SaveName("a"))
    assert stand.again().names == ("b", "a")
    stand.write(*[SaveName(f"n{number}") for number in range(NAMES)])
    stand.write(SaveName("n3"))
    names = stand.again().names
    assert len(names) == NAMES
    assert names[-2:] == (f"n{NAMES - 1}", "n3")


def test_whether_a_peer_reports_is_there_again(stand: Stand) -> None:
    stand.write(SavePeer("h:1", True), SavePeer("h:2", False), SavePeer("h:1", False), SavePeer("h:2", True))
    assert stand.again().peers == {"h:1": False, "h:2": True}


def test_what_a_full_disk_could_not_take_of_clock_names_and_peers_is_written_later(stand: Stand) -> None:
    if isinstance(stand.store, MemoryStore):
        stand.store.broken = True
        assert not stand.store.commit([SaveName("n"), SaveClock(ClockState(1.0, 1.0, "b", 1.0))]).ok
        assert not stand.store.commit([SavePeer("h:1", True), SaveClock(ClockState(2.0, 2.0, "b", 2.0))]).ok
        stand.store.broken = False
        stand.write()
        found = stand.again()
        assert (found.names, found.peers, found.clock) == (("n",), {"h:1": True}, ClockState(2.0, 2.0, "b", 2.0))


# --- boxes ---


def test_an_entry_comes_back_as_it_was(stand: Stand) -> None:
    kept = entry(1, meta={"path": ["s1/chat"], "push": True, "left": 3, "peer": None, "deep": {"a": [1, 2.5]}})
    stand.write(Enqueue(kept), Enqueue(kept._replace(number=2, id="x", sender=None, body=bytes(range(256)))))
    first, second = stand.read(Fetch(BOB, 0, 10, LOTS))
    assert first == kept
    assert (second.sender, second.body, type(second.body)) == (None, bytes(range(256)), bytes)


def test_a_box_is_read_in_windows_in_the_order_of_numbers(stand: Stand) -> None:
    stand.write(*(keep(number, body=b"x" * 10) for number in range(1, 8)), keep(8, mailbox("eve")))
    assert stand.waiting() == [1, 2, 3, 4, 5, 6, 7]
    assert [each.number for each in stand.read(Fetch(BOB, 2, 3, LOTS))] == [3, 4, 5]
    assert [each.number for each in stand.read(Fetch(BOB, 2, 10, 25))] == [3, 4]
    assert [each.number for each in stand.read(Fetch(BOB, 2, 10, 20))] == [3, 4]
    assert [each.number for each in stand.read(Fetch(BOB, 2, 10, 1))] == [3]  # at least one, or it would wait for ever
    assert stand.read(Fetch(BOB, 7, 10, LOTS)) == []
    assert stand.read(Fetch("user/nobody", 0, 10, LOTS)) == []


def test_a_box_is_not_another_whose_name_begins_the_same(stand: Stand) -> None:
    stand.write(keep(1, mailbox("bob")), keep(2, mailbox("bo")), keep(3, mailbox("bob/x")))
    assert stand.waiting(mailbox("bo")) == [2]
    assert stand.waiting() == [1]


def test_what_has_ended_is_not_fetched(stand: Stand) -> None:
    stand.write(keep(1), keep(2), keep(3), End(2, "delivered"))
    assert stand.waiting() == [1, 3]


def test_new_meta_is_kept(stand: Stand) -> None:
    stand.write(keep(1), Rewrite(1, {"repeated": True}), Rewrite(99, {}))
    assert stand.read(Fetch(BOB, 0, 1, LOTS))[0].meta == {"repeated": True}


def test_what_was_given_is_not_what_is_kept(stand: Stand) -> None:
    meta = {"path": ["a"]}
    stand.write(keep(1, meta=meta))
    meta["path"].append("b")
    stand.read(Fetch(BOB, 0, 1, LOTS))[0].meta["path"].append("c")
    assert stand.read(Fetch(BOB, 0, 1, LOTS))[0].meta == {"path": ["a"]}


# --- repetitions ---


def test_the_same_id_in_the_same_box_is_a_repetition(stand: Stand) -> None:
    assert stand.write(keep(1, id="a"), keep(2, id="b")) == frozenset()
    assert stand.write(keep(3, id="a"), keep(4, id="c"), keep(5, id="b"), keep(6, id="c")) == {3, 5, 6}
    assert stand.waiting() == [1, 2, 4]


def test_it_is_one_when_the_first_has_ended_too(stand: Stand) -> None:
    stand.write(keep(1, id="a"), End(1, "delivered"))
    assert stand.write(keep(2, id="a")) == {2}
    assert stand.waiting() == []
    stand.again()
    assert stand.write(keep(3, id="a"), RecordRemote(entry(4, id="a"), "queued")) == {3, 4}


def test_it_is_none_in_another_box_or_after_the_first_was_forgotten(stand: Stand) -> None:
    stand.write(keep(1, id="a"))
    assert stand.write(keep(2, mailbox("eve"), id="a")) == frozenset()
    stand.write(End(1, "delivered", forget=True))
    assert stand.write(keep(3, id="a")) == frozenset()


def test_what_waits_takes_the_mark_of_a_repetition_that_may_have_been_delivered(stand: Stand) -> None:
    plain, marked = {"origin": "s1"}, {"repeated": True}
    stand.write(*(keep(number, id=id_, meta=plain) for number, id_ in enumerate("abc", 1)))
    stand.write(keep(4, id="a", meta=marked), keep(5, id="b", meta=plain))
    stand.write(keep(6, id="d", meta=plain), keep(7, id="d", meta=marked))
    expected = [plain | marked, plain, plain, plain | marked]
    for _ in range(2):
        assert [each.meta for each in stand.read(Fetch(BOB, 0, 9, LOTS))] == expected
        stand.again()


def test_what_has_ended_takes_no_mark(stand: Stand) -> None:
    stand.write(keep(1, id="a"), End(1, "delivered"))
    assert stand.write(keep(2, id="a", meta={"repeated": True})) == {2}
    assert stand.waiting() == []


def test_many_repetitions_at_once(stand: Stand) -> None:
    stand.write(*(keep(number, id=f"i{number}") for number in range(1, 1201)))
    again = [keep(2000 + number, id=f"i{number}") for number in range(1, 2401)]
    assert stand.write(*again) == set(range(2001, 3201))


# --- what became of it ---


def test_outcomes_are_told_to_the_sender_alone(stand: Stand) -> None:
    stand.write(
        keep(1, id="m.0.0", target="bob"),
        keep(2, id="m.0.1", target="eve"),
        keep(3, id="m.0.2", target="dan", sender="mallory"),
        keep(4, id="m.0.3", target="ann", sender=None),
        keep(5, id="m.1.0.0.0", target="far"),
        keep(6, id="m", target="itself"),
        keep(7, id="mm.0.0", target="other"),
        keep(8, id="m/0.0", target="neighbour"),
        RecordRemote(entry(9, lane("s2", "t"), id="m.2.0", target="s2"), "queued"),
        End(2, "delivered"),
        End(5, "failed:expired"),
    )
    mine = {"bob": "queued", "eve": "delivered", "far": "failed:expired", "s2": "queued"}
    assert stand.read(outcomes("m")) == mine
    assert stand.read(outcomes("m", "mallory")) == {"dan": "queued"}
    assert stand.read(outcomes("m", "bob")) == {}
    assert stand.read(outcomes("nothing")) == {}
    stand.write(End(9, "delivered"))
    assert stand.read(outcomes("m"))["s2"] == "delivered"


@pytest.mark.parametrize("ends", [("delivered", "failed:expired", None), ("failed:expired", None, "delivered")])
def test_of_several_outcomes_with_one_target_the_worst_is_told(ends: tuple[str | None, ...], stand: Stand) -> None:
    for number, outcome in enumerate(ends, 1):
        stand.write(keep(number, id=f"m.0.{number}"), *([End(number, outcome)] if outcome else []))
    assert stand.read(outcomes("m")) == {"bob": "failed:expired"}
    number = ends.index("failed:expired") + 1
    stand.write(End(number, "delivered"))
    assert stand.read(outcomes("m")) == {"bob": "queued"}


def test_an_entry_of_a_lane_is_found_by_its_id(stand: Stand) -> None:
    stand.write(keep(1, lane("s2", "chat"), id="m.0.0"), keep(2, lane("s22", "chat"), id="m.0.1"), keep(3, id="m.0.2"))
    entry_, outcome = stand.read(FindEntry("m.0.0", "s2", None))
    assert (entry_, outcome) == (entry(1, lane("s2", "chat"), b"", id="m.0.0"), None)
    stand.write(End(1, "delivered"))
    assert stand.read(FindEntry("m.0.0", "s2", None)) == (entry_, "delivered")
    assert stand.read(FindEntry("m.0.1", "s2", None)) is None
    assert stand.read(FindEntry("m.0.2", "s2", None)) is None
    assert stand.read(FindEntry("m.0.0", "s", None)) is None


def test_what_is_over_is_found_with_its_body_and_when_the_next_is(stand: Stand) -> None:
    for number, after_s in ((1, 30), (2, 10), (3, 20), (4, 40), (5, 10)):
        stand.write(keep(number, expires_s=NOW_S + after_s, body=b"12"))
    stand.write(End(5, "delivered"))
    assert stand.read(FindExpired(NOW_S + 9, 10, LOTS)) == ([], NOW_S + 10)
    found, next_s = stand.read(FindExpired(NOW_S + 30, 10, LOTS))
    assert [each.number for each in found] == [2, 3, 1]
    assert found[0].body == b"12"
    assert next_s == NOW_S + 40
    found, next_s = stand.read(FindExpired(NOW_S + 30, 2, LOTS))
    assert ([each.number for each in found], next_s) == ([2, 3], NOW_S + 30)
    found, next_s = stand.read(FindExpired(NOW_S + 30, 10, 1))
    assert ([each.number for each in found], next_s) == ([2], NOW_S + 20)
    found, next_s = stand.read(FindExpired(NOW_S + 99, 10, LOTS))
    assert ([each.number for each in found], next_s) == ([2, 3, 1, 4], None)


def test_outcomes_are_forgotten_when_their_time_is_over(stand: Stand) -> None:
    stand.write(keep(1, id="m.0.0"), keep(2, id="m.0.1", target="eve"), End(1, "delivered"), End(2, "delivered"))
    stand.write(PurgeOutcomes(NOW_S + 2, 1000))
    assert stand.read(outcomes("m")) == {"eve": "delivered"}


def test_what_waits_is_not_forgotten(stand: Stand) -> None:
    stand.write(keep(1), PurgeOutcomes(NOW_S + 1000, 1000))
    assert stand.waiting() == [1]


def test_of_many_outcomes_the_latest_are_remembered(stand: Stand) -> None:
    stand.write(*(keep(number) for number in range(1, 8)))
    stand.write(*(End(number, "delivered") for number in range(1, 7)))
    stand.write(PurgeOutcomes(NOW_S - 1000, 2))
    known = [number for number in range(1, 8) if stand.read(outcomes(f"s1/b/{number}"))]
    assert known == [5, 6, 7]  # what waits is not among those that are counted


def test_it_is_the_oldest_that_goes_however_long_it_was_to_be_kept(stand: Stand) -> None:
    stand.write(*(keep(number, expires_s=NOW_S + 100 - number) for number in range(1, 5)))
    stand.write(*(End(number, "delivered") for number in (4, 2, 3, 1)))
    stand.write(PurgeOutcomes(NOW_S - 1000, 2))
    assert [number for number in range(1, 5) if stand.read(outcomes(f"s1/b/{number}"))] == [3, 4]


def test_what_waits_at_another_server_is_remembered_until_its_time_is_over(stand: Stand) -> None:
    far = lane("s2", "t")
    stand.write(*(RecordRemote(entry(number, far), "queued") for number in (1, 2, 3)), keep(4), keep(5))
    stand.write(End(4, "delivered"), End(5, "delivered"), PurgeOutcomes(NOW_S - 1000, 1))
    known = [number for number in range(1, 6) if stand.read(outcomes(f"s1/b/{number}"))]
    assert known == [1, 2, 3, 5]
    stand.write(End(1, "delivered"), PurgeOutcomes(NOW_S + 2.5, 1))  # what has come back is like any other
    assert [number for number in range(1, 6) if stand.read(outcomes(f"s1/b/{number}"))] == [3, 5]


def test_a_server_is_not_asked_for_as_though_it_were_a_message(stand: Stand) -> None:
    stand.write(keep(1, id="s1.example/b/1.0.0"), keep(2, id="s1.example/b/1.1.0.2.0", target="eve"))
    assert stand.read(outcomes("s1")) == {}
    assert stand.read(outcomes("s1.example/b/1")) == {"bob": "queued", "eve": "queued"}
    assert stand.read(outcomes("s1.example/b/1.1.0")) == {"eve": "queued"}
    assert stand.read(outcomes("s1.example/b/1.1")) == {"eve": "queued"}


# --- dead letters ---


def heavy(id_: str, size: int) -> Bury:
    return Bury(DeadLetter(id_, "t", b"x" * size, "timeout", NOW_S, {}))


def test_heavy_dead_letters_go_oldest_first(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, sqlite):
        monkeypatch.setattr(module, "LETTER_BYTES", 100)
    stand.write(heavy("a", 40), heavy("b", 40), heavy("c", 40))
    stand.write(PurgeOutcomes(0.0, 1000))
    assert [each.id for each in stand.read(FindDeadLetters(None, None, 100, None, 0, {}))] == ["c", "b"]


def test_not_too_many_bodies_are_read_at_once(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory, reading):
        monkeypatch.setattr(module, "READ_BYTES", 100)
    stand.write(heavy("a", 40), heavy("b", 40), heavy("heavy", 400))
    assert [each.id for each in stand.read(FindDeadLetters(None, None, 100, None, 0, {}))] == ["heavy"]
    stand.write(Unbury("heavy"), heavy("c", 40))
    assert [each.id for each in stand.read(FindDeadLetters(None, None, 100, None, 0, {}))] == ["c", "b"]
    assert len(stand.read(FindDeadLetters(None, None, 100, None, 0, {}, bodies=False))) == 3


def test_dead_letters_are_listed_latest_first(stand: Stand) -> None:
    stand.write(Bury(letter("a")), Bury(letter("b", "mail")), Bury(letter("c")))
    assert stand.read(dead()) == [letter("c"), letter("b", "mail"), letter("a")]
    assert stand.read(dead(limit=2)) == [letter("c"), letter("b", "mail")]
    assert stand.read(dead(type_="chat")) == [letter("c"), letter("a")]
    assert stand.read(dead(id_="b")) == [letter("b", "mail")]
    assert stand.read(dead(id_="x")) == []
    assert stand.read(dead(id_="b", bodies=False)) == [letter("b", "mail")._replace(body=b"")]


def test_they_are_piled_oldest_first_and_gone_through_part_by_part(stand: Stand) -> None:
    stand.write(Bury(letter("b")), Bury(letter("a", "mail")), Bury(letter("c")))

    def pile(
        after: int = 0, upto: int = 0, limit: int = 2, type_: str | None = None, id_: str | None = None
    ) -> DeadLetterPage:
        found: DeadLetterPage = stand.read(FindDeadLetters(id_, type_, limit, None, 0, {}, True, True, after, upto))
        return found

    first = pile()
    assert (first.letters, first.left) == ([letter("b"), letter("a", "mail")], 1)
    stand.write(Unbury("a"), Unbury("b"), Bury(letter("d")))
    second = pile(first.after, first.upto)
    assert (second.letters, second.left) == ([letter("c")], 0)
    assert (pile(second.after, second.upto).letters, pile(second.after, second.upto).left) == ([], 0)
    assert (pile(type_="chat", limit=1).letters, pile(type_="chat", limit=1).left) == ([letter("c")], 1)
    assert (pile(id_="d").letters, pile(id_="d").left) == ([letter("d")], 0)
    assert (pile(id_="x").letters, pile(type_="mail").left) == ([], 0)


def test_one_of_the_same_id_is_replaced_and_is_the_latest(stand: Stand) -> None:
    again = letter("a")._replace(reason="timeout", body=b"2")
    stand.write(Bury(letter("a")), Bury(letter("b")), Bury(again))
    assert stand.read(dead()) == [again, letter("b")]
    stand.write(Unbury("a"), Unbury("x"))
    assert stand.read(dead()) == [letter("b")]
    assert stand.again().dead == 1


def test_above_the_bound_the_oldest_makes_room(stand: Stand) -> None:
    stand.write(*(Bury(letter(id_)) for id_ in "abcde"))
    assert [each.id for each in stand.read(dead())] == ["e", "d", "c"]
    stand.write(Bury(letter("c")), Bury(letter("f")))
    assert [each.id for each in stand.read(dead())] == ["f", "c", "e"]


# --- names from strangers ---


def test_any_text_can_be_a_name(stand: Stand) -> None:
    huge = "n" * 300_000
    strange = entry(
        1, mailbox(STRANGE), id=STRANGE + ".0.0", target=STRANGE, type=STRANGE, sender=STRANGE,
        meta={STRANGE: [STRANGE], "peer": STRANGE},
    )  # fmt: skip
    mine = entry(3, lane("s2", STRANGE), id=STRANGE + ".0.1", target=huge, sender=STRANGE)
    stand.write(
        Enqueue(strange),
        keep(2),
        Enqueue(mine),
        RecordType(STRANGE),
        SaveLane(STRANGE, STRANGE, STRANGE, 0, {1: STRANGE}),
        MarkSent(mailbox(STRANGE), 1),
        Bury(letter(STRANGE, STRANGE)),
    )
    found = stand.again()
    assert set(found.queues) == {BOB, mailbox(STRANGE), lane("s2", STRANGE)}
    assert found.queues[mailbox(STRANGE)].sent_upto == 1
    assert found.types == (STRANGE,)
    assert found.lanes == (SaveLane(STRANGE, STRANGE, STRANGE, 0, {1: STRANGE}),)
    assert stand.read(Fetch(mailbox(STRANGE), 0, 1, LOTS)) == [strange]
    assert stand.read(outcomes(STRANGE, STRANGE)) == {STRANGE: "queued", huge: "queued"}
    assert stand.read(FindEntry(STRANGE + ".0.1", "s2", None)) == (mine._replace(body=b""), None)
    assert stand.read(dead(id_=STRANGE)) == [letter(STRANGE, STRANGE)]
    assert stand.write(Enqueue(strange._replace(number=4))) == {4}


# --- groups ---


def test_writes_take_effect_in_their_order(stand: Stand) -> None:
    stand.write(keep(1, id="a"), End(1, "delivered", forget=True), keep(2, id="a"), End(2, "x"), keep(3, id="b"))
    assert stand.waiting() == [3]
    stand.write(End(4, "delivered"), keep(4))
    assert stand.waiting() == [3, 4]


def test_an_empty_group_is_good(stand: Stand) -> None:
    assert stand.write() == frozenset()


def broken(stand: Stand) -> Callable[[], None]:
    """See that nothing can be written; returns what mends it."""
    if isinstance(stand.store, MemoryStore):
        memory = stand.store
        memory.broken = True
        return lambda: setattr(memory, "broken", False)
    db = stand.store._db
    db.execute("PRAGMA query_only = 1")  # SQLite's own refusal, on a file that is well
    return lambda: db.execute("PRAGMA query_only = 0").close()


def test_a_group_that_cannot_be_written_is_not_written_and_the_reason_is_told(stand: Stand) -> None:
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


def test_what_takes_away_is_held_back_and_written_with_the_next_group(stand: Stand) -> None:
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


def test_it_is_written_with_a_group_of_nothing_too(stand: Stand) -> None:
    stand.write(keep(1))
    mend = broken(stand)
    assert not stand.store.commit([End(1, "delivered")]).ok
    mend()
    stand.write()
    assert stand.again().queues == {}


def test_what_has_ended_while_nothing_could_be_written_is_not_read_again(stand: Stand) -> None:
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


def test_what_is_held_back_does_not_grow_without_end(stand: Stand) -> None:
    broken(stand)
    for _ in range(50):
        stand.store.commit([End(1, "delivered"), MarkSent(BOB, 1), Rewrite(1, {}), PurgeOutcomes(NOW_S, 1000), keep(2)])
    assert len(stand.store._held_back) == 4


def dead_ids(stand: Stand) -> list[str]:
    return [each.id for each in stand.read(dead(limit=LOTS, bodies=False))]


def test_a_dead_letter_is_held_back_with_the_end_that_takes_its_body_away(stand: Stand) -> None:
    stand.write(keep(1), keep(2))
    mend = broken(stand)
    buried = Bury(letter("a"))
    assert not stand.store.commit([buried, End(1, "failed:expired"), keep(3)]).ok
    mend()
    stand.write()
    assert (stand.waiting(), stand.read(dead())) == ([2], [buried.letter])
    assert stand.again().dead == 1


def test_where_there_is_no_room_for_it_other_ends_go_without(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.write(*(keep(number) for number in range(1, 5)))
    if isinstance(stand.store, MemoryStore):
        stand.store.full = True
    else:
        monkeypatch.setattr(sqlite, "room_beside", lambda path: (1, 2**40))
    assert not stand.store.commit([End(1, "failed:expired"), Bury(letter("a"))]).ok
    assert not stand.store.commit([End(2, "delivered"), keep(9)]).ok
    assert stand.waiting() == [3, 4]  # neither is read again
    assert stand.again().queues[BOB].lowest == 1  # of the first the body is still there, and nowhere else


def test_letters_that_wait_for_room_have_a_bound(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "LETTERS_HELD_BACK", 3)
    monkeypatch.setattr(commits, "LETTERS_HELD_BACK_BYTES", 10)
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


# --- what no store can hold ---

HUGE = 2**64


class Odd:
    """Nothing that can be packed."""


@pytest.mark.parametrize(
    "poison",
    [
        keep(HUGE), keep(9, meta={"n": HUGE}), keep(9, meta={"n": Odd()}), RecordRemote(entry(HUGE), "queued"),
        SaveLane("s2", "t", "e", HUGE, {}), Bury(letter("p")._replace(meta={"n": Odd()})), End(HUGE, "delivered"),
        Rewrite(2, {"n": Odd()}), MarkSent(BOB, HUGE),
    ],
    ids=lambda write: type(write).__name__,
)  # fmt: skip
def test_what_no_store_can_hold_fails_its_group_and_no_other(poison: Write, stand: Stand) -> None:
    stand.write(keep(1), keep(2), keep(3))
    result = stand.store.commit([keep(8), End(1, "delivered"), poison, Rewrite(3, {"n": 1}), Bury(letter("a"))])
    assert (result.ok, result.repeated) == (False, {})
    assert "; " in result.why and "\n" not in result.why
    assert stand.waiting() == [2, 3]
    assert (stand.read(Fetch(BOB, 2, 1, LOTS))[0].meta, dead_ids(stand)) == ({"n": 1}, ["a"])
    assert stand.store._held_back == {}
    stand.write(keep(4))
    assert stand.again().queues[BOB].messages == 3


def test_nor_does_it_fail_a_later_one_when_it_was_held_back_for_another_reason(stand: Stand) -> None:
    stand.write(keep(1), keep(2))
    mend = broken(stand)
    stand.store.commit([End(1, "delivered"), MarkSent(BOB, HUGE), Rewrite(2, {"n": Odd()})])
    mend()
    stand.write(keep(3))
    assert stand.waiting() == [2, 3]


# --- what questions cost in memory ---


def test_a_question_to_the_store_in_memory_costs_what_it_answers() -> None:
    store = MemoryStore()
    store.open()
    store.commit([keep(number, mailbox(f"u{number % 10}")) for number in range(1, 20_001)])
    reads = (
        Fetch(mailbox("u5"), 10_000, 5, LOTS), FindExpired(NOW_S + 5, 10, LOTS), outcomes("s1/b/77"),
        FindEntry("s1/b/77.0.0", "s2", None),
    )  # fmt: skip
    start_s = time.process_time()
    for _ in range(500):
        for read in reads:
            store.read(read)
    assert time.process_time() - start_s < 4.0  # a tenth of a second; half a minute where each looks at everything
