"""Stores of every kind: outcomes, dead letters, and the cost of reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.broker.store import memory_letters, postgres_reading, postgres_writing, reading, sqlite
from bester.broker.store.memory import MemoryStore
from bester.broker.store_requests import (
    Bury,
    DeadLetter,
    DeadLetterPage,
    End,
    Enqueue,
    Fetch,
    FindDeadLetters,
    FindEntry,
    FindExpired,
    LaneOutcomes,
    MarkSent,
    PurgeOutcomes,
    RecordRemote,
    RecordType,
    SaveLane,
    Unbury,
    lane,
    mailbox,
)
from tests.unit.store_stand import BOB, KINDS, LETTERS, LOTS, NOW_S, Stand, dead, entry, keep, letter, outcomes

STRANGE = "k\ud800l\udfff\ufdd0d800 é\x00'\";--\N{PILE OF POO}"
"""Half surrogate pairs, their written form, and characters with a meaning to databases."""


@pytest.fixture(params=KINDS)
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    with TemporaryDirectory(prefix="b-") as directory:
        stand = Stand(request.param, Path(directory), request)
        yield stand
        stand.close()


# --- outcomes -------------------------------------------------------------------------------------------------------


def test_outcomes_are_read_for_the_sender_alone(stand: Stand) -> None:
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
def test_worst_outcome_of_one_target_is_read(ends: tuple[str | None, ...], stand: Stand) -> None:
    for number, outcome in enumerate(ends, 1):
        stand.write(keep(number, id=f"m.0.{number}"), *([End(number, outcome)] if outcome else []))
    assert stand.read(outcomes("m")) == {"bob": "failed:expired"}
    number = ends.index("failed:expired") + 1
    stand.write(End(number, "delivered"))
    assert stand.read(outcomes("m")) == {"bob": "queued"}


def test_entry_of_a_lane_is_found_by_its_id(stand: Stand) -> None:
    stand.write(keep(1, lane("s2", "chat"), id="m.0.0"), keep(2, lane("s22", "chat"), id="m.0.1"), keep(3, id="m.0.2"))
    entry_, outcome = stand.read(FindEntry("m.0.0", "s2"))
    assert (entry_, outcome) == (entry(1, lane("s2", "chat"), b"", id="m.0.0"), None)
    stand.write(End(1, "delivered"))
    assert stand.read(FindEntry("m.0.0", "s2")) == (entry_, "delivered")
    assert stand.read(FindEntry("m.0.1", "s2")) is None
    assert stand.read(FindEntry("m.0.2", "s2")) is None
    assert stand.read(FindEntry("m.0.0", "s")) is None


def test_expired_messages_are_found_with_the_time_of_the_next(stand: Stand) -> None:
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


def test_old_outcomes_are_purged(stand: Stand) -> None:
    stand.write(keep(1, id="m.0.0"), keep(2, id="m.0.1", target="eve"), End(1, "delivered"), End(2, "delivered"))
    stand.write(PurgeOutcomes(NOW_S + 2, 1000))
    assert stand.read(outcomes("m")) == {"eve": "delivered"}


def test_ready_message_is_not_purged(stand: Stand) -> None:
    stand.write(keep(1), PurgeOutcomes(NOW_S + 1000, 1000))
    assert stand.waiting() == [1]


def test_latest_outcomes_are_kept_above_the_bound(stand: Stand) -> None:
    stand.write(*(keep(number) for number in range(1, 8)))
    stand.write(*(End(number, "delivered") for number in range(1, 7)))
    stand.write(PurgeOutcomes(NOW_S - 1000, 2))
    known = [number for number in range(1, 8) if stand.read(outcomes(f"s1/b/{number}"))]
    assert known == [5, 6, 7]  # ready messages do not count


def test_outcomes_forgotten_at_the_bound_are_counted_and_expired_ones_are_not(stand: Stand) -> None:
    stand.write(*(keep(number, expires_s=NOW_S + 10 * (number > 1)) for number in range(1, 8)))
    stand.write(*(End(number, "delivered") for number in range(1, 7)))
    result = stand.store.commit([PurgeOutcomes(NOW_S + 5, 2)])
    assert result.forgotten == {"outcomes": 3}
    assert stand.store.commit([PurgeOutcomes(NOW_S + 5, 2)]).forgotten == {}


@pytest.mark.parametrize("more", [1, 2, LETTERS])
def test_dead_letters_dropped_at_the_bound_are_counted(stand: Stand, more: int) -> None:
    letters = [Bury(DeadLetter(f"m{number}", "t", b"", "timeout", NOW_S, {})) for number in range(LETTERS + more)]
    assert stand.store.commit(letters[:LETTERS]).forgotten == {}
    assert stand.store.commit(letters[LETTERS:]).forgotten == {"dead_letters": more}
    assert stand.store.commit(letters[-1:]).forgotten == {}


def test_time_of_a_commit_is_known_where_there_is_a_disk(stand: Stand) -> None:
    took_s = stand.store.commit([keep(1)]).sync_s
    assert (took_s is None) == isinstance(stand.store, MemoryStore)
    assert took_s is None or took_s > 0


def test_oldest_outcome_is_purged_first_whatever_its_time_to_live(stand: Stand) -> None:
    stand.write(*(keep(number, expires_s=NOW_S + 100 - number) for number in range(1, 5)))
    stand.write(*(End(number, "delivered") for number in (4, 2, 3, 1)))
    stand.write(PurgeOutcomes(NOW_S - 1000, 2))
    assert [number for number in range(1, 5) if stand.read(outcomes(f"s1/b/{number}"))] == [3, 4]


def test_outcome_queued_at_another_server_is_kept_until_it_expires(stand: Stand) -> None:
    far = lane("s2", "t")
    stand.write(*(RecordRemote(entry(number, far), "queued") for number in (1, 2, 3)), keep(4), keep(5))
    stand.write(End(4, "delivered"), End(5, "delivered"), PurgeOutcomes(NOW_S - 1000, 1))
    known = [number for number in range(1, 6) if stand.read(outcomes(f"s1/b/{number}"))]
    assert known == [1, 2, 3, 5]
    stand.write(End(1, "delivered"), PurgeOutcomes(NOW_S + 2.5, 1))  # an outcome that has come back is like any other
    assert [number for number in range(1, 6) if stand.read(outcomes(f"s1/b/{number}"))] == [3, 5]


def test_ids_of_a_server_are_not_those_of_a_message(stand: Stand) -> None:
    stand.write(keep(1, id="s1.example/b/1.0.0"), keep(2, id="s1.example/b/1.1.0.2.0", target="eve"))
    assert stand.read(outcomes("s1")) == {}
    assert stand.read(outcomes("s1.example/b/1")) == {"bob": "queued", "eve": "queued"}
    assert stand.read(outcomes("s1.example/b/1.1.0")) == {"eve": "queued"}
    assert stand.read(outcomes("s1.example/b/1.1")) == {"eve": "queued"}


# --- dead letters ---------------------------------------------------------------------------------------------------


def heavy(id_: str, size: int) -> Bury:
    return Bury(DeadLetter(id_, "t", b"x" * size, "timeout", NOW_S, {}))


def test_heavy_dead_letters_go_oldest_first(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory_letters, sqlite, postgres_writing):
        monkeypatch.setattr(module, "LETTER_BYTES", 100)
    stand.write(heavy("a", 40), heavy("b", 40), heavy("c", 40))
    stand.write(PurgeOutcomes(0.0, 1000))
    assert [each.id for each in stand.read(FindDeadLetters(None, None, 100))] == ["c", "b"]


@pytest.mark.parametrize("before", [0, 101])
def test_dead_letters_of_the_commit_that_weighs_them_count(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    for module in (memory_letters, sqlite, postgres_writing):
        monkeypatch.setattr(module, "LETTER_BYTES", 100)
    if before:
        stand.write(heavy("before", before))
    stand.write(PurgeOutcomes(0.0, 1000), heavy("a", 60), heavy("b", 60))
    stand.write(PurgeOutcomes(0.0, 1000))
    assert [each.id for each in stand.read(FindDeadLetters(None, None, 100))] == ["b"]


def test_bodies_read_at_once_are_bounded(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (memory_letters, reading, postgres_reading):
        monkeypatch.setattr(module, "READ_BYTES", 100)
    stand.write(heavy("a", 40), heavy("b", 40), heavy("heavy", 400))
    assert [each.id for each in stand.read(FindDeadLetters(None, None, 100))] == ["heavy"]
    stand.write(Unbury("heavy"), heavy("c", 40))
    assert [each.id for each in stand.read(FindDeadLetters(None, None, 100))] == ["c", "b"]
    assert len(stand.read(FindDeadLetters(None, None, 100, bodies=False))) == 3


@pytest.mark.parametrize("bodies", [True, False])
def test_page_is_bounded_by_its_bodies_read_or_not(stand: Stand, monkeypatch: pytest.MonkeyPatch, bodies: bool) -> None:
    for module in (memory_letters, reading, postgres_reading):
        monkeypatch.setattr(module, "LETTER_PAGE_BYTES", 100)
    stand.write(heavy("a", 40), heavy("b", 60), heavy("heavy", 400))
    first: DeadLetterPage = stand.read(FindDeadLetters(None, None, 9, bodies, True))
    assert ([each.id for each in first.letters], first.left) == (["a", "b"], 1)
    second: DeadLetterPage = stand.read(FindDeadLetters(None, None, 9, bodies, True, first.after, first.upto))
    assert ([each.id for each in second.letters], second.left) == (["heavy"], 0)


def test_dead_letters_are_listed_latest_first(stand: Stand) -> None:
    stand.write(Bury(letter("a")), Bury(letter("b", "mail")), Bury(letter("c")))
    assert stand.read(dead()) == [letter("c"), letter("b", "mail"), letter("a")]
    assert stand.read(dead(limit=2)) == [letter("c"), letter("b", "mail")]
    assert stand.read(dead(type_="chat")) == [letter("c"), letter("a")]
    assert stand.read(dead(id_="b")) == [letter("b", "mail")]
    assert stand.read(dead(id_="x")) == []
    assert stand.read(dead(id_="b", bodies=False)) == [letter("b", "mail")._replace(body=b"")]


def test_dead_letters_are_paged_oldest_first(stand: Stand) -> None:
    stand.write(Bury(letter("b")), Bury(letter("a", "mail")), Bury(letter("c")))

    def pile(
        after: int = 0, upto: int = 0, limit: int = 2, type_: str | None = None, id_: str | None = None
    ) -> DeadLetterPage:
        found: DeadLetterPage = stand.read(FindDeadLetters(id_, type_, limit, True, True, after, upto))
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


def test_dead_letter_of_the_same_id_is_replaced_and_the_latest(stand: Stand) -> None:
    again = letter("a")._replace(reason="timeout", body=b"2")
    stand.write(Bury(letter("a")), Bury(letter("b")), Bury(again))
    assert stand.read(dead()) == [again, letter("b")]
    stand.write(Unbury("a"), Unbury("x"))
    assert stand.read(dead()) == [letter("b")]
    assert stand.again().dead == 1


def test_oldest_dead_letter_is_dropped_above_the_bound(stand: Stand) -> None:
    stand.write(*(Bury(letter(id_)) for id_ in "abcde"))
    assert [each.id for each in stand.read(dead())] == ["e", "d", "c"]
    stand.write(Bury(letter("c")), Bury(letter("f")))
    assert [each.id for each in stand.read(dead())] == ["f", "c", "e"]


# --- names from strangers -------------------------------------------------------------------------------------------


def test_any_text_is_written_and_read_back(stand: Stand) -> None:
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
        SaveLane(STRANGE, STRANGE, STRANGE, 0, {1: STRANGE}, {STRANGE + "2": LaneOutcomes(1, {2: STRANGE})}),
        MarkSent(mailbox(STRANGE), 1),
        Bury(letter(STRANGE, STRANGE)),
    )
    found = stand.again()
    assert set(found.queues) == {BOB, mailbox(STRANGE), lane("s2", STRANGE)}
    assert found.queues[mailbox(STRANGE)].sent_upto == 1
    assert found.types == (STRANGE,)
    others = {STRANGE + "2": LaneOutcomes(1, {2: STRANGE})}
    assert found.lanes == (SaveLane(STRANGE, STRANGE, STRANGE, 0, {1: STRANGE}, others),)
    assert stand.read(Fetch(mailbox(STRANGE), 0, 1, LOTS)) == [strange]
    assert stand.read(outcomes(STRANGE, STRANGE)) == {STRANGE: "queued", huge: "queued"}
    assert stand.read(FindEntry(STRANGE + ".0.1", "s2")) == (mine._replace(body=b""), None)
    assert stand.read(dead(id_=STRANGE)) == [letter(STRANGE, STRANGE)]
    assert stand.write(Enqueue(strange._replace(number=4))) == {4}


# --- the cost of reads in memory ------------------------------------------------------------------------------------


def test_read_of_the_store_in_memory_costs_what_it_answers() -> None:
    store = MemoryStore()
    store.open()
    store.commit([keep(number, mailbox(f"u{number % 10}")) for number in range(1, 20_001)])
    reads = (
        Fetch(mailbox("u5"), 10_000, 5, LOTS), FindExpired(NOW_S + 5, 10, LOTS), outcomes("s1/b/77"),
        FindEntry("s1/b/77.0.0", "s2"),
    )  # fmt: skip
    start_s = time.process_time()
    for _ in range(500):
        for read in reads:
            store.read(read)
    assert time.process_time() - start_s < 4.0  # a tenth of a second; half a minute where each read looks at everything
