"""Adoption in stores that brokers share: what a broker without a lease has left is moved, once and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import count, zip_longest
from typing import Any

import pytest

from bester.broker.postgres import Database, connect
from bester.broker.store.lease import LEASE_S
from bester.broker.store.memory_shared import SharedMemory
from bester.broker.store.postgres import PostgresStore
from bester.broker.store.postgres_writing import Group
from bester.broker.store_brokers import Adopted, AdoptionSeen, Brokers
from bester.broker.store_requests import (
    About,
    Adopt,
    Bury,
    ClockState,
    Disown,
    End,
    Enqueue,
    Fetch,
    FindBrokers,
    FindEntry,
    LaneOutcomes,
    MarkSent,
    RecordRemote,
    RecordType,
    SaveClock,
    SaveHeld,
    SaveLane,
    SaveName,
    SavePeer,
    Snapshot,
    Write,
    lane,
    mailbox,
)
from bester.broker.wire.codes import BesterError
from bester.broker.wire.outcomes import OUTCOME_TYPE
from tests.postgres_server import Cluster
from tests.unit.postgres_cable import Cable
from tests.unit.store_stand import BOB, LETTERS, LOTS, NOW_S, asked, dead, entry, keep, letter, outcomes

FIRST = 1_000
CAT, ALICE = mailbox("cat"), mailbox("alice")


class Pair:
    """Two brokers of one server; `run_out` lets the lease of one run out. `now` is the time of their clocks."""

    def __init__(self, one: Any, two: Any, run_out: Callable[[Any], None], now: list[float]) -> None:
        self.one, self.two, self.run_out, self.now = one, two, run_out, now
        self.firsts = count(FIRST, 10_000)
        one.open()
        self.snapshot: Snapshot = two.open()
        clock = SaveClock(ClockState(NOW_S, 0.0, "", 0.0))
        for store in (one, two):
            self.write(store, clock)

    def write(self, store: Any, *writes: Write) -> dict[int, str | None]:
        result = store.commit(writes)
        assert result.ok, result.why
        return dict(result.repeated)

    def adopt(self, limit: int = 100, *, first: int | None = None) -> Adopted:
        found: Adopted = self.two.read(Adopt(next(self.firsts) if first is None else first, limit, NOW_S))
        return found

    def end(self) -> None:
        for store in (self.one, self.two):
            store.close()


@pytest.fixture(params=["memory", "postgresql"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    now = [0.0]
    if request.param == "memory":
        shared = SharedMemory(lambda: now[0])

        def run_out(store: Any) -> None:
            store.until_s = -1.0

        found = Pair(
            shared.namespace("b1", dead_letters=LETTERS), shared.namespace("b2", dead_letters=LETTERS), run_out, now
        )
    else:
        database: Database = request.getfixturevalue("cluster").database()

        def stop(store: Any) -> None:
            asked(store, "UPDATE broker SET until = clock_timestamp() WHERE ns = :ns")

        one, two = (PostgresStore(database, name, dead_letters=LETTERS, clock=lambda: now[0]) for name in ("b1", "b2"))
        found = Pair(one, two, stop, now)
    yield found
    found.end()


def of(store: Any, box: str = BOB) -> list[Any]:
    """Return the ready messages of a queue."""
    found: list[Any] = store.read(Fetch(box, 0, LOTS, LOTS))
    return found


def test_living_broker_is_left_alone(pair: Pair) -> None:
    pair.write(pair.one, keep(1))
    assert pair.snapshot.is_shared
    found: Brokers = pair.two.read(FindBrokers())
    assert (found.abandoned, [(each.name, each.state) for each in found.all]) == (
        "",
        [("b1", "lives"), ("b2", "lives")],
    )
    assert found.adoptions == ()
    assert pair.adopt() == Adopted()
    assert [each.number for each in of(pair.one)] == [1]


def test_broker_that_is_just_back_leaves_others_the_time_to_come_back(pair: Pair) -> None:
    pair.write(pair.one, keep(1))
    pair.now[0] += LEASE_S + 1.0
    for store in (pair.one, pair.two):  # the database was away, or locked
        pair.run_out(store)
    assert pair.two.read(FindBrokers()).abandoned == "", "a read that has waited as long"
    assert pair.adopt() == Adopted()
    pair.write(pair.two)
    assert pair.two.read(FindBrokers()).abandoned == ""
    assert pair.adopt() == Adopted()
    pair.write(pair.one, keep(2))

    pair.run_out(pair.one)
    for _ in range(2):
        pair.now[0] += LEASE_S / 2
        pair.write(pair.two)
    pair.run_out(pair.one)
    assert pair.two.read(FindBrokers()).abandoned == "b1"
    assert pair.adopt().snapshot.queues[BOB].messages == 2


def test_clock_of_the_database_that_was_set_lets_no_lease_run_out(pair: Pair) -> None:
    pair.write(pair.one, keep(1))
    assert pair.two.read(FindBrokers()).abandoned == ""
    pair.now[0] -= LEASE_S  # that of the database is ahead by so much
    pair.run_out(pair.one)
    assert pair.two.read(FindBrokers()).abandoned == ""
    assert pair.adopt() == Adopted()


def test_empty_namespace_is_not_adopted(pair: Pair) -> None:
    pair.run_out(pair.one)
    assert pair.two.read(FindBrokers()).abandoned == ""
    assert pair.adopt() == Adopted()
    pair.write(pair.one, keep(1))  # its lease was not taken


def test_messages_come_behind_those_of_their_queue_and_in_order(pair: Pair) -> None:
    pair.write(pair.one, *(keep(number, body=b"%d" % number, id=f"s1/a/{number}.0.0") for number in (3, 1, 2)))
    pair.write(pair.one, keep(4, CAT, body=b"shared", id="x.0.0"), keep(5, BOB, body=b"shared", id="x.0.1"))
    pair.write(pair.two, keep(9, body=b"9"))
    pair.run_out(pair.one)
    assert pair.two.read(FindBrokers()).abandoned == "b1"
    adopted = pair.adopt()
    assert (adopted.broker, adopted.outcomes, adopted.is_more) == ("b1", 0, False)
    assert [(each.number >= FIRST, each.body) for each in of(pair.two)] == [
        (False, b"9"), (True, b"1"), (True, b"2"), (True, b"3"), (True, b"shared"),
    ]  # fmt: skip
    assert [each.body for each in of(pair.two, CAT)] == [b"shared"]
    moved = adopted.snapshot
    assert {key: (state.messages, state.size_bytes, state.sent_upto) for key, state in moved.queues.items()} == {
        BOB: (4, 9, 0), CAT: (1, 6, 0),
    }  # fmt: skip
    assert moved.queues[BOB].lowest == of(pair.two)[1].number
    assert moved.shares[BOB] == {mailbox("alice"): (4, 9)}
    assert moved.next_expiry_s == pytest.approx(NOW_S + 1, abs=60)
    assert pair.adopt() == Adopted()


def test_process_that_was_stopped_for_long_can_write_and_read_nothing(pair: Pair) -> None:
    pair.write(pair.one, keep(1))
    pair.run_out(pair.one)
    pair.adopt()
    assert not pair.one.commit([keep(2)]).ok
    assert pair.one.fenced
    with pytest.raises(BesterError, match="another process has taken the lease"):
        of(pair.one)
    assert [each.id for each in of(pair.two)] == ["s1/b/1.0.0"]


def test_broker_that_comes_back_finds_an_empty_namespace_with_its_epoch(pair: Pair) -> None:
    pair.write(pair.one, keep(1), MarkSent(BOB, 1), RecordType("chat"), SaveName("s1"))
    pair.run_out(pair.one)
    pair.adopt()
    pair.one.close()
    snapshot = pair.one.open()
    assert (snapshot.queues, snapshot.lanes, snapshot.life) == ({}, (), 2)
    assert (snapshot.types, snapshot.names) == (("chat",), ("s1",))
    pair.write(pair.one, keep(1))
    assert [len(of(store)) for store in (pair.one, pair.two)] == [1, 1]


@pytest.mark.parametrize("sent", [0, 2, 3])
def test_messages_that_may_have_been_sent_are_marked(pair: Pair, sent: int) -> None:
    pair.write(pair.one, keep(1), keep(2), keep(3, meta={"repeated": True}), MarkSent(BOB, sent))
    pair.run_out(pair.one)
    pair.adopt()
    assert [each.meta.get("repeated", False) for each in of(pair.two)] == [sent >= 1, sent >= 2, True]


def test_message_that_both_have_is_kept_once_and_marked(pair: Pair) -> None:
    pair.write(pair.one, keep(1, id="a.0.0"), keep(2, id="b.0.0"), keep(3, id="c.0.0"), End(2, "delivered"))
    pair.write(pair.two, keep(7, id="a.0.0"), keep(8, id="b.0.0"), keep(9, id="c.0.0"), End(9, "delivered"))
    pair.run_out(pair.one)
    adopted = pair.adopt()
    assert (adopted.snapshot.queues, adopted.outcomes) == ({}, 0)
    assert [(each.number, each.meta.get("repeated")) for each in of(pair.two)] == [(7, True), (8, True)]
    assert pair.adopt() == Adopted()


def test_message_that_is_submitted_again_at_another_broker_is_marked_where_it_waits(pair: Pair) -> None:
    """The first broker was killed, and is back within its lease: its own copy may come behind the other one."""
    pair.write(pair.one, keep(1, id="a.0.0"), keep(2, id="b.0.0"), keep(3, id="c.0.0"), End(3, "delivered"))
    again = keep(9, id="a.0.0")
    pair.write(pair.two, again._replace(entry=again.entry._replace(meta={"repeated": True})), keep(10, id="b.0.0"))
    marks = [(each.id, each.meta.get("repeated", False)) for store in (pair.one, pair.two) for each in of(store)]
    assert marks == [("a.0.0", True), ("b.0.0", False), ("a.0.0", True), ("b.0.0", False)]


def test_brokers_that_mark_each_others_copies_wait_for_neither(cluster: Cluster) -> None:
    """Each one's group marks the other's copy of a message and ends its own copy of another one, statement by statement
    at the same time: the two stood still until PostgreSQL had found the deadlock."""
    database = cluster.database()
    stores = [PostgresStore(database, name) for name in ("b1", "b2")]
    with ExitStack() as stack:
        turns: list[Iterator[None]] = []
        for store, mine, other in zip(stores, ("a.0.0", "b.0.0"), ("b.0.0", "a.0.0"), strict=True):
            stack.enter_context(closing(store))
            store.open()
            assert store.commit([keep(1, id=mine)]).ok
            connection = stack.enter_context(connect(database, "a test"))
            connection.execute("SET lock_timeout = 5000")
            group = Group(store._held.lease.ns, serial=1, sharing=False, dead_letters=LETTERS, to_forget=None)
            about_it = keep(3, ALICE, id=f"{other}.o", type=OUTCOME_TYPE)._replace(about=About(other, BOB, False))
            group.add([keep(2, id=other, meta={"repeated": True}), about_it, End(1, "delivered")])
            turns.append(_steps(connection, group))
        for _ in zip_longest(*turns):
            pass
        assert [len(of(store)) for store in stores] == [1, 1]


def _steps(connection: Any, group: Group) -> Iterator[None]:
    """Carry out a group in a transaction, a statement at each step. The last step is the commit."""
    with connection.transaction():
        for statement in group.statements:
            connection.execute(statement.text.encode(), statement.values, binary=True)
            yield


def test_large_namespace_is_moved_in_parts(pair: Pair) -> None:
    body = b"the same for all"
    pair.write(pair.one, *(keep(number, body=body) for number in range(1, 8)), SaveLane("s2", "t", "e", 3, {4: "x"}))
    pair.run_out(pair.one)
    first = pair.adopt(5)
    assert (first.is_more, len(of(pair.two))) == (True, 5)
    assert first.snapshot.lanes == (SaveLane("s2", "t", "e", 3, {4: "x"}),)
    second = pair.adopt(5)
    assert (second.is_more, second.snapshot.queues[BOB].messages) == (False, 2)
    assert [each.id for each in of(pair.two)] == [f"s1/b/{number}.0.0" for number in range(1, 8)]
    assert {each.body for each in of(pair.two)} == {body}


def test_start_in_the_middle_of_an_adoption_waits_for_its_end(cluster: Cluster) -> None:
    """Half of a mailbox at each of two brokers would be delivered in no order."""
    database = cluster.database()
    with closing(PostgresStore(database, "b1")) as one, closing(PostgresStore(database, "b2")) as two:
        two.open()
        for in_time in (True, False):
            one.open()
            assert one.commit([keep(number) for number in range(1, 8)]).ok
            one.close()
            adopted: Adopted = two.read(Adopt(FIRST * (1 + in_time), 5, NOW_S))
            assert adopted.is_more
            held = one.claim()
            assert held is not None
            assert (held.why, held.state) == (
                f"{database.where}: waiting until broker 'b2' has adopted what broker 'b1' has left",
                (),
            )
            if in_time:
                rest: Adopted = two.read(Adopt(FIRST * 3, 5, NOW_S))
                assert not rest.is_more
                assert not one.open().queues
                assert one.commit([End(number, "delivered", True) for number in range(1, 8)]).ok
                one.close()
            else:  # the adopter has ended
                asked(two, "UPDATE adoption SET at = at - INTERVAL '1 minute'")
                assert one.open().queues[BOB].messages == 2


def test_namespace_is_adopted_by_one_broker(cluster: Cluster) -> None:
    database = cluster.database()
    with ExitStack() as stack:
        one, two, three = (stack.enter_context(closing(PostgresStore(database, name))) for name in ("b1", "b2", "b3"))
        for store in (one, two, three):
            store.open()
        assert one.commit([keep(number) for number in range(1, 8)]).ok
        one.close()
        assert two.read(Adopt(FIRST, 2, NOW_S)).is_more
        assert three.read(FindBrokers()).abandoned == ""
        assert three.read(Adopt(FIRST, 2, NOW_S)) == Adopted()
        assert two.read(Adopt(FIRST * 2, 2, NOW_S)).is_more
        asked(two, "UPDATE adoption SET at = at - INTERVAL '1 minute'")  # the adopter has ended
        assert three.read(FindBrokers()).abandoned == "b1"
        assert not three.read(Adopt(FIRST, 5, NOW_S)).is_more
        assert [len(of(store)) for store in (two, three)] == [4, 3]


def test_messages_that_wait_are_moved_before_old_outcomes(cluster: Cluster) -> None:
    """A broker has a million outcomes, and messages that came last; its next start waits for the messages alone."""
    database = cluster.database()
    with closing(PostgresStore(database, "b1")) as one, closing(PostgresStore(database, "b2")) as two:
        for store in (one, two):
            store.open()
        assert one.commit([*(keep(number) for number in range(1, 9)), *(End(n, "delivered") for n in range(1, 6))]).ok
        one.close()
        first: Adopted = two.read(Adopt(FIRST, 4, NOW_S))
        assert (first.is_more, first.outcomes) == (True, 1)
        assert [each.id for each in of(two)] == [f"s1/b/{number}.0.0" for number in range(6, 9)]
        assert one.claim() is None


def test_adoption_is_told_of_as_one_whatever_its_parts(pair: Pair) -> None:
    pair.write(pair.one, *(keep(number, id=f"s1/b/{number}.0.0") for number in range(1, 6)), Bury(letter("a")))
    pair.write(pair.one, End(1, "failed:expired"))
    pair.run_out(pair.one)
    first = pair.adopt(3)
    assert (first.dead_letters, first.is_more) == (1, True)
    assert not pair.adopt(3).is_more
    found: Brokers = pair.two.read(FindBrokers())
    assert [each._replace(ago_s=0.0) for each in found.adoptions] == [AdoptionSeen("b1", "b2", 0.0, 4, 1, 1)]
    assert 0 <= found.adoptions[0].ago_s < LOTS
    assert [(each.name, each.state) for each in found.all] == [("b1", "dead"), ("b2", "lives")]
    pair.one.close()
    pair.one.open()
    pair.write(pair.one, keep(7, id="s1/b/7.0.0"))
    assert pair.one.read(FindBrokers()).adoptions[0][:2] == ("b1", "b2"), "any broker of the server tells"


def test_inbound_lanes_are_united(pair: Pair) -> None:
    pair.write(pair.one, SaveLane("s2", "t", "e", 3, {3: "delivered", 5: "queued 1"}), SaveLane("s2", "u", "e", 0, {}))
    pair.write(pair.one, SaveLane("s3", "t", "old", 9, {9: "delivered"}, {"b": LaneOutcomes(2, {2: "x", 5: "x"})}))
    mine = SaveLane("s3", "t", "new", 1, {1: "sent"}, {"b": LaneOutcomes(4, {6: "y"})})
    pair.write(pair.two, SaveLane("s2", "t", "e", 4, {6: "delivered"}), mine)
    pair.run_out(pair.one)
    assert pair.two.read(FindBrokers()).abandoned == "b1"
    adopted = pair.adopt()
    assert sorted(adopted.snapshot.lanes) == [
        SaveLane("s2", "t", "e", 4, {5: "queued 1", 6: "delivered"}),
        SaveLane("s2", "u", "e", 0, {}),
        mine._replace(others={"old": LaneOutcomes(9, {9: "delivered"}), "b": LaneOutcomes(4, {5: "x", 6: "y"})}),
    ]
    pair.two.close()
    assert sorted(pair.two.open().lanes) == sorted(adopted.snapshot.lanes)


def test_outcomes_notes_and_dead_letters_go_along(pair: Pair) -> None:
    note = RecordRemote(entry(3, lane("s2", "t"), id="n.0.0", target="s2"), "queued")
    pair.write(pair.one, keep(1, id="m.0.0"), keep(2, id="m.0.1", target="cat"), End(1, "failed:expired"), note)
    pair.write(pair.one, Bury(letter("a")), Bury(letter("b")), SavePeer("h:1", True), SaveHeld("s9", True))
    pair.write(pair.two, Bury(letter("a")), SavePeer("h:1", False))
    assert pair.two.read(outcomes("m")) == {"bob": "failed:expired", "cat": "queued"}  # of whichever broker
    pair.run_out(pair.one)
    adopted = pair.adopt()
    assert (adopted.outcomes, adopted.snapshot.remote) == (2, {"s2": 1})
    assert adopted.snapshot.held == frozenset({"s9"})
    assert dict(adopted.snapshot.peers) == {"h:1": False}
    assert pair.two.read(outcomes("m")) == {"bob": "failed:expired", "cat": "queued"}
    assert pair.two.read(FindEntry("n.0.0", "s2"))[1] == "queued"
    assert sorted(each.id for each in pair.two.read(dead())) == ["a", "b"]
    assert pair.adopt() == Adopted()


def late(number: int, *, failed: bool) -> Enqueue:
    """Return the outcome of the message of id m.0.0 in bob's mailbox, for alice."""
    told = entry(number, ALICE, id="m.0.0.outcome.0", target="alice", sender=None)
    return Enqueue(told, About("m.0.0", BOB, failed))


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("failed:expired", "delivered", [False, True]),  # while the other copy waits nothing is lost
        ("delivered", "failed:expired", [True, False]),
        ("delivered", "delivered", [True, False]),
        ("failed:expired", "failed:expired", [False, True]),
    ],
)
def test_outcome_of_a_message_that_two_brokers_have_is_told_by_one(
    pair: Pair, first: str, second: str, told: list[bool]
) -> None:
    pair.write(pair.one, keep(1, id="m.0.0"))
    pair.write(pair.two, keep(1, id="m.0.0", meta={"repeated": True}))
    assert pair.two.read(outcomes("m")) == {"bob": "queued"}
    ends = [(pair.one, first), (pair.two, second)]
    for (store, outcome), is_told in zip(ends, told, strict=True):
        repeated = pair.write(store, End(1, outcome), late(2, failed=outcome != "delivered"))
        assert repeated == ({} if is_told else {2: None})
        assert len(of(store, ALICE)) == is_told
        if store is pair.one:
            assert pair.two.read(outcomes("m")) == {"bob": "delivered" if first == "delivered" else "queued"}
    assert pair.one.read(outcomes("m")) == {"bob": "delivered" if "delivered" in (first, second) else first}


def test_outcome_is_told_where_another_broker_may_end_its_copy_at_the_same_time(cluster: Cluster) -> None:
    database = cluster.database()
    with closing(PostgresStore(database, "b1")) as one, closing(PostgresStore(database, "b2")) as two:
        for store in (one, two):
            store.open()
            assert store.commit([keep(1, id="m.0.0")]).ok
        assert one.commit([End(1, "delivered"), late(2, failed=False)]).ok
        with connect(database, "a test") as other, other.transaction():
            other.execute("SELECT 1 FROM entry WHERE ns = (SELECT ns FROM broker WHERE name = 'b1') FOR UPDATE")
            assert two.commit([End(1, "delivered"), late(2, failed=False)]).repeated == {}
        assert len(of(two, ALICE)) == 1, "nobody has waited"


def test_note_of_another_broker_is_moved_to_the_one_that_gets_the_outcome(pair: Pair) -> None:
    queue = lane("s2", "t")
    pair.write(pair.one, RecordRemote(entry(1, queue, id="n.0.0"), "queued"), keep(2, queue, id="w.0.0"))
    assert pair.two.read(FindEntry("x.0.0", "s2", 90)) is None
    assert pair.two.read(FindEntry("n.0.0", "s3", 91)) is None
    found, outcome = pair.two.read(FindEntry("n.0.0", "s2", 92))
    assert (found.number, found.id, found.sender, outcome) == (92, "n.0.0", "alice", "queued")
    assert pair.two.read(FindEntry("n.0.0", "s2", 93))[0].number == 92
    found, outcome = pair.two.read(FindEntry("w.0.0", "s2", 94))  # which the first one still has to send
    assert (found.id, outcome) == ("w.0.0", None)
    assert [each.number for each in of(pair.one, queue)] == [2]
    pair.write(pair.two, End(92, "delivered"))
    pair.write(pair.one, RecordRemote(entry(5, queue, id="n.0.0"), "queued"))  # submitted at both
    for store in (pair.one, pair.two):
        assert store.read(outcomes("n")) == {"bob": "delivered"}


def note(number: int, left: int, *so_far: str) -> RecordRemote:
    """Return the note of a message that is queued at s2; `so_far`: the worst of the outcomes that were counted."""
    meta = {"left": left, **({"worst": so_far[0]} if so_far else {})}
    return RecordRemote(entry(number, lane("s2", "t"), id="n.0.0", target="s2", meta=meta), "queued")


FATES: Any = [
    (note(1, 2), note(7, 3), ("queued", 3, None)),
    (note(1, 1, "delivered"), note(7, 2), ("queued", 1, "delivered")),
    (note(1, 2), note(7, 1, "failed:expired"), ("queued", 1, "failed:expired")),
    (note(1, 2, "failed:expired"), note(7, 1, "delivered"), ("queued", 1, "failed:expired")),
    (note(1, 0, "delivered")._replace(outcome="delivered"), note(7, 2), ("delivered", 0, "delivered")),
    (note(1, 2), note(7, 0, "delivered")._replace(outcome="delivered"), ("delivered", 0, "delivered")),
]


@pytest.mark.parametrize(("theirs", "mine", "united"), FATES)
@pytest.mark.parametrize("adopts", [False, True])
def test_notes_of_a_message_that_was_submitted_at_two_brokers_are_counted_as_one(
    pair: Pair, theirs: RecordRemote, mine: RecordRemote, united: tuple[str, int, str | None], *, adopts: bool
) -> None:
    """The other server sends each outcome once, to whichever broker: of two notes neither would come to its end."""
    pair.write(pair.one, theirs)
    pair.write(pair.two, mine)
    if adopts:
        pair.run_out(pair.one)
        assert pair.adopt().outcomes == 0
    found, outcome = pair.two.read(FindEntry("n.0.0", "s2", 92))
    assert (found.number, outcome, found.meta["left"], found.meta.get("worst")) == (7, *united)
    if mine.outcome == "queued" and not adopts:
        assert pair.one.read(FindEntry("n.0.0", "s2")) is None
    assert pair.two.read(outcomes("n")) == {"s2": united[0]}


def test_expiry_is_moved_to_the_time_of_the_store(pair: Pair) -> None:
    pair.write(pair.one, SaveClock(ClockState(NOW_S - 5_000, 0.0, "", 0.0)), keep(1))
    pair.run_out(pair.one)
    pair.adopt()
    (kept,) = of(pair.two)
    assert kept.expires_s == pytest.approx(NOW_S + 1 + 5_000, abs=60)


def test_sender_whose_account_was_removed_stays_disowned(pair: Pair) -> None:
    pair.write(pair.one, keep(1, id="a.0.0"), keep(2, id="b.0.0", sender="cat"), keep(3, id="c.0.0", sender="dan"))
    pair.write(pair.one, Disown("alice", 1, NOW_S), keep(4, id="d.0.0"))
    pair.write(pair.two, Disown("cat", 5, NOW_S), Disown("alice", 5, NOW_S))  # the first broker was away
    pair.run_out(pair.one)
    adopted = pair.adopt()
    assert [each.sender for each in of(pair.two)] == [None, None, "dan", "alice"]
    assert {name: at_s for name, (_, at_s) in adopted.snapshot.disowned.items()} == {"alice": NOW_S, "cat": NOW_S}


@pytest.mark.parametrize("cut", ["before", "after"])
def test_adoption_whose_connection_broke_is_done_once(cluster: Cluster, cut: str) -> None:
    database = cluster.database()
    with closing(PostgresStore(database, "b1")) as one:
        one.open()
        one.commit([keep(1), keep(2), SaveLane("s2", "t", "e", 0, {1: "x"})])
        asked(one, "UPDATE broker SET until = clock_timestamp() WHERE ns = :ns")
        cable = Cable(database)
        with closing(cable), closing(PostgresStore(cable.database, "b2")) as two:
            two.open()
            adopt = Adopt(FIRST, 9, NOW_S)
            cable.cut = cut
            if cut == "before":
                with pytest.raises(BesterError):
                    two.read(adopt)
            found = two.read(adopt)
            assert cable.cut == "", "the connection was cut"
            assert found.snapshot.queues[BOB].messages == 2
            assert found.snapshot.lanes == (SaveLane("s2", "t", "e", 0, {1: "x"}),)
            assert two.commit([keep(5)]).ok
            assert [each.number for each in of(two)] == [5, FIRST, FIRST + 1]
