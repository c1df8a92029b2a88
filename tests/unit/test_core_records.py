"""The states of a kept message: the table, the page that prints it, and queues that are driven through it at random."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.clock import Clock
from bester.broker.core.effects import Effects, Link, StoreRead
from bester.broker.core.queues import Queues
from bester.broker.core.record_table import SPARE_NUMBERS
from bester.broker.core.records import COUNTED, SENT_OUT, TRANSITIONS, Event, State, step_of
from bester.broker.core.settings import Settings
from bester.broker.store_requests import (
    Committed,
    End,
    Enqueue,
    Entry,
    Fetch,
    MarkSent,
    RecordRemote,
    Snapshot,
    StoredQueue,
    Write,
    lane,
    mailbox,
)

README = Path(__file__).parents[2] / "broker" / "README.md"
LANE = lane("s2", "t")
BOB = mailbox("bob")
FAR_S = 1e9


class Desk:
    """Queues without a store: a test commits, fetches and ends by hand."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.out = Effects()
        reports = Reports(self.out)
        clock = Clock(0.0, 0.0, "", None)
        self.queues = Queues(Settings("s1"), self.out, reports, clock, snapshot or Snapshot(epoch="e"), 0.0)

    def entry(self, *, key: str = LANE, expires_s: float = FAR_S, body: bytes = b"1", **meta: object) -> Entry:
        number = self.queues.reserve_numbers(1)
        return Entry(number, key, f"m{number}", "s2", "t", body, None, expires_s, dict(meta))

    def enqueue(self, *, key: str = LANE, case: Case | None = None, **fields: object) -> Entry:
        """Enqueue a message that is not committed yet."""
        entry = self.entry(key=key, **fields)  # type: ignore[arg-type]  # the fields of an entry, whatever they are
        assert self.queues.enqueue(entry, case, 0.0) is None
        return entry

    def commit(self, result: Committed | None = None) -> list[Write]:
        writes = self.out.take().writes
        self.queues.on_committed(writes, result or Committed(True), 0.0)
        return writes

    def ready(self, **fields: object) -> Entry:
        entry = self.enqueue(**fields)  # type: ignore[arg-type]  # the fields of an entry, whatever they are
        self.commit()
        return entry

    def fetch(self, *entries: Entry, now: float = 0.0, after: int | None = None) -> list[Entry]:
        """Answer a fetch with these, and return those that are to be sent."""
        queue = self.queues.get(entries[0].queue)
        assert queue is not None
        found = self.queues.on_fetched(
            Fetch(queue.key, queue.cursor if after is None else after, 64, 1), list(entries), now
        )
        assert found is not None
        for entry in found[2]:
            self.queues.end(entry, "failed:expired")
        return found[1]

    def mark(self, *entries: Entry) -> set[int]:
        queue = self.queues.get(entries[0].queue)
        assert queue is not None
        marked: list[set[int]] = []
        self.queues.mark_sent(queue, entries, lambda numbers, now: marked.append(numbers), 0.0)
        if not marked:
            marks = [write for write in self.out.writes if isinstance(write, MarkSent)]
            self.queues.on_committed(marks, Committed(True), 0.0)
        return marked[0]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Messages, of these in flight, and records."""
        state = self.queues.inspect()
        return state.messages, state.inflight, state.records


def case() -> Case:
    return Case(Kind.SUBMIT, Link("ipc", b"b"), 7, "m", "m", pending=1)


# --- the table ---


def test_readme_prints_the_table() -> None:
    rows = re.findall(r"^\| ([a-z, ]+?) \| ([a-z ]+?) \| ([a-z, ]+?) \|$", README.read_text(), re.MULTILINE)
    assert {(State(start), event): State(end) for start, event, end in rows if start != "in"} == TRANSITIONS


def test_every_state_is_reached_and_can_end() -> None:
    reached = {State.WRITING, State.RECORDING, State.READY}
    while more := {end for (start, _), end in TRANSITIONS.items() if start in reached} - reached:
        reached |= more
    assert reached == set(State)
    ending = {State.GONE}
    while more := {start for (start, _), end in TRANSITIONS.items() if end in ending} - ending:
        ending |= more
    assert ending == set(State)


def test_every_event_is_used_and_a_message_in_flight_counts() -> None:
    assert {event for _, event in TRANSITIONS} == set(get_args(Event))
    assert SENT_OUT < COUNTED


@pytest.mark.parametrize(
    ("state", "event"), [each for each in product(State, get_args(Event)) if each not in TRANSITIONS]
)
def test_illegal_event_is_loud(state: State, event: Event) -> None:
    with pytest.raises(AssertionError, match=event):
        step_of(state, event)


def test_queues_are_loud_about_illegal_events() -> None:
    desk = Desk()
    writing = desk.enqueue()
    for wrong in (
        lambda: desk.queues.end(writing, "delivered"),  # not sent: no answer can have come
        lambda: desk.queues.requeue(writing.number),
        lambda: desk.fetch(writing),
    ):
        with pytest.raises(AssertionError):
            wrong()
    desk.commit()
    assert desk.fetch(writing) == [writing]
    desk.queues.end(writing, "delivered")
    another = desk.ready()
    assert desk.fetch(another) == [another]
    desk.queues.end(another, "delivered")
    with pytest.raises(AssertionError):
        desk.queues.requeue(another.number)


# --- walks through it ---


def test_ready_message_has_no_record() -> None:
    desk = Desk()
    entry = desk.enqueue()
    assert desk.counts == (1, 0, 1)
    desk.commit()
    assert desk.counts == (1, 0, 0)
    assert desk.fetch(entry) == [entry]
    assert desk.counts == (1, 1, 1)
    desk.queues.requeue(entry.number)
    assert desk.counts == (1, 0, 0)


def test_in_flight_message_is_not_fetched_again_and_a_requeued_one_comes_first() -> None:
    desk = Desk()
    first, second = desk.ready(), desk.ready()
    queue = desk.queues.get(LANE)
    assert queue is not None
    assert desk.fetch(first, second) == [first, second]
    assert (queue.ready, desk.queues.ack_floor(queue)) == (0, first.number)
    assert desk.fetch(first, second) == []
    desk.queues.requeue(first.number)
    assert (queue.ready, queue.cursor, desk.queues.ack_floor(queue)) == (1, first.number - 1, first.number)
    assert desk.fetch(second, after=second.number) == []  # asked for before that; what was requeued comes first
    assert desk.fetch(first, second) == [first]
    desk.queues.end(second, "delivered")
    assert desk.queues.ack_floor(queue) == first.number
    desk.queues.end(first, "delivered")
    assert desk.queues.get(LANE) is None


@pytest.mark.parametrize("unsent", [True, False])
def test_mark_of_a_message_that_was_not_delivered_lasts_until_it_is_sent(unsent: bool) -> None:
    desk = Desk()
    entry, other = desk.ready(), desk.ready()
    desk.fetch(entry)
    assert desk.mark(entry) == set()
    desk.queues.requeue(entry.number, unsent=unsent)
    assert desk.counts == (2, 0, int(unsent))
    desk.fetch(entry)
    desk.queues.requeue(entry.number)  # fetched and not sent: the delivery is as unknown as before
    desk.fetch(entry, other)
    assert desk.mark(entry, other) == (set() if unsent else {entry.number})
    desk.queues.requeue(entry.number)
    desk.fetch(entry)
    assert desk.mark(entry) == {entry.number}


def test_message_that_may_have_been_delivered_elsewhere_is_always_marked() -> None:
    desk = Desk()
    entry = desk.ready(repeated=True)
    for _ in range(2):
        desk.fetch(entry)
        assert desk.mark(entry) == {entry.number}
        desk.queues.requeue(entry.number, unsent=True)


@pytest.mark.parametrize("how", ["committed", "rejected", "there already"])
def test_late_answer_to_a_message_that_is_being_written(how: str) -> None:
    desk = Desk()
    owed = case()
    entry = desk.enqueue(case=owed)
    desk.queues.keep_inflight(entry.number)
    assert desk.queues.is_inflight(entry.number)
    desk.queues.end(entry, "delivered")
    assert desk.counts == (0, 0, 1)
    assert not desk.queues.is_inflight(entry.number)
    result = {"committed": Committed(True), "rejected": Committed(False)}.get(
        how, Committed(True, {entry.number: None})
    )
    assert [type(write) for write in desk.commit(result)] == [Enqueue, End]
    assert owed.recipients == {"s2": "delivered" if how == "rejected" else "queued"}
    assert desk.counts == (0, 0, 0)


@pytest.mark.parametrize("asked", [True, False])
def test_message_queued_elsewhere_that_cannot_be_written_leaves_a_note(asked: bool) -> None:
    desk = Desk()
    owed = case()
    entry = desk.enqueue(case=owed)
    desk.queues.keep_inflight(entry.number)
    desk.queues.end(entry, "queued", entry._replace(body=b"") if asked else None)
    desk.commit(Committed(False))
    assert owed.recipients == (None if asked else {"s2": "queued"}), "the report waits for the note"
    assert desk.queues.is_recording(entry.id) is asked
    notes = desk.commit(Committed(True))
    assert owed.recipients == {"s2": "queued"}
    assert notes == ([RecordRemote(entry._replace(number=entry.number + 1, body=b""), "queued")] if asked else [])
    assert not desk.queues.is_recording(entry.id)
    assert desk.counts == (0, 0, 0)


@pytest.mark.parametrize("result", [Committed(False), Committed(True, {1: "delivered"})])
def test_message_in_flight_that_was_not_written_is_not_kept(result: Committed) -> None:
    desk = Desk()
    entry = desk.enqueue()
    assert entry.number == 1
    desk.queues.keep_inflight(entry.number)
    desk.commit(result)
    assert desk.counts == (0, 0, 0)
    assert not desk.queues.is_inflight(entry.number)


def test_message_that_is_being_written_may_be_requeued() -> None:
    desk = Desk()
    entry = desk.enqueue(repeated=True)
    desk.queues.keep_inflight(entry.number)
    desk.queues.requeue(entry.number)
    assert desk.counts == (1, 0, 1)
    desk.commit()
    assert desk.counts == (1, 0, 0)
    assert desk.fetch(entry) == [entry]


@pytest.mark.parametrize("ok", [True, False])
def test_message_that_is_queued_elsewhere_is_reported_at_the_commit_in_any_case(ok: bool) -> None:
    desk = Desk()
    owed = case()
    desk.queues.record_remote(desk.entry(), "queued", owed)
    assert desk.queues.inspect().recording == 1
    assert [type(write) for write in desk.commit(Committed(ok))] == [RecordRemote]
    assert owed.recipients == {"s2": "queued"}
    assert desk.counts == (0, 0, 0)


def test_expired_message_is_ended_once_by_two_reads_of_one_turn() -> None:
    desk = Desk()
    entry = desk.ready(expires_s=5.0)
    desk.ready()
    assert desk.fetch(entry, now=5.0) == []
    assert desk.queues.on_expired([entry], None, 5.0) == []
    assert desk.fetch(entry, now=5.0) == []
    assert desk.counts == (1, 0, 1)
    assert [type(write) for write in desk.commit()] == [End]
    assert desk.counts == (1, 0, 0)


def test_expired_message_in_flight_is_left_to_its_delivery() -> None:
    desk = Desk()
    entry = desk.ready(expires_s=5.0)
    desk.fetch(entry)
    assert desk.queues.on_expired([entry], None, 6.0) == []
    desk.queues.requeue(entry.number)
    assert desk.queues.on_expired([entry], None, 7.0) == [entry]


# --- faults that the table has shown ---


@pytest.mark.parametrize("how", ["expired", "fetched", "lost"])
def test_mark_of_a_message_that_is_not_sent_again_is_forgotten(how: str) -> None:
    desk = Desk()
    desk.ready(key=BOB)
    for _ in range(3):
        entry = desk.ready(expires_s=5.0)
        desk.fetch(entry)
        desk.mark(entry)
        desk.queues.requeue(entry.number, unsent=True)
        if how == "expired":
            for each in desk.queues.on_expired([entry], None, 5.0):
                desk.queues.end(each, "failed:expired")
        elif how == "fetched":
            assert desk.fetch(entry, now=5.0) == []
        else:
            assert desk.queues.on_fetched(Fetch(LANE, entry.number - 1, 64, 1), [], 0.0) is None
        desk.commit()
    assert desk.counts == (1, 0, 0)


def test_mark_of_a_message_that_could_not_be_written_is_forgotten() -> None:
    desk = Desk()
    entry = desk.enqueue()
    desk.queues.keep_inflight(entry.number)
    desk.queues.requeue(entry.number, unsent=True)
    desk.commit(Committed(False))
    assert desk.counts == (0, 0, 0)


def test_read_of_a_queue_that_was_dropped_says_nothing_about_a_later_one() -> None:
    """The later one was counted with the bytes that its own read might bring, for good."""
    desk = Desk()
    found: list[Entry] = []

    def fetch() -> StoreRead:
        queue = desk.queues.get(BOB)
        assert queue is not None
        desk.queues.fetch(queue, 64, lambda queue, entries, now: found.extend(entries))
        return desk.out.take().reads[0]

    first = desk.ready(key=BOB)
    early = fetch()
    desk.queues.end(first, "failed:expired")
    desk.commit()
    second = desk.ready(key=BOB, body=b"22")
    late = fetch()
    early.on_answer([], 0.0)
    state = desk.queues.inspect()
    assert (state.messages, state.size_bytes) == (1, 2)
    desk.queues.fetch(desk.queues.get(BOB), 64, lambda *_: None)  # type: ignore[arg-type]
    assert desk.out.take().reads == [], "one read at a time"
    late.on_answer([second], 0.0)
    state = desk.queues.inspect()
    assert (found, state.inflight, state.mailbox_inflight_bytes) == ([second], 1, 2)


@pytest.mark.parametrize("inflight", [0, 1, 2])
def test_messages_that_are_being_written_are_not_lost_with_those_that_the_disk_has_lost(inflight: int) -> None:
    desk = Desk(Snapshot(epoch="e", queues={LANE: StoredQueue(5, 50, 1, 0)}, life=1))
    sent = [Entry(number, LANE, f"m{number}", "s2", "t", b"1" * 10, None, FAR_S, {}) for number in range(inflight)]
    if sent:
        assert desk.fetch(*sent) == sent
    late = desk.enqueue(body=b"22")
    assert desk.queues.on_fetched(Fetch(LANE, 0, 64, 1), [], 0.0) is None
    state = desk.queues.inspect()
    assert (state.messages, state.size_bytes, state.inflight) == (1 + inflight, 2 + 10 * inflight, inflight)
    desk.commit()
    assert desk.fetch(late) == [late]
    for entry in [*sent, late]:
        desk.queues.end(entry, "delivered")
    desk.commit()
    assert (desk.counts, desk.queues.get(LANE)) == ((0, 0, 0), None)


@pytest.mark.parametrize("others", [0, 1])
def test_expired_message_that_was_not_counted_is_ended_all_the_same(others: int) -> None:
    """A disk with more messages than were counted must not be asked for the same expired message at every tick."""
    desk = Desk()
    entry = desk.entry(expires_s=5.0)
    for _ in range(others):
        desk.ready(key=BOB)
    for each in desk.queues.on_expired([entry], None, 5.0):
        desk.queues.end(each, "failed:expired")
    assert End(entry.number, "failed:expired", forget=True) in desk.commit()
    assert desk.counts == (others, 0, 0)


@pytest.mark.parametrize("key", [BOB, LANE])
def test_numbers_in_flight_take_no_more_memory_the_longer_a_queue_is_in_use(key: str) -> None:
    desk = Desk()
    first = desk.ready(key=key)
    desk.fetch(first)
    queue = desk.queues.get(key)
    assert queue is not None
    for _ in range(5 * SPARE_NUMBERS):
        entry = desk.ready(key=key)
        desk.fetch(entry)
        desk.queues.end(entry, "delivered")
        desk.commit()
    assert len(queue.numbers) <= SPARE_NUMBERS + 5
    assert desk.queues.ack_floor(queue) == first.number


def test_highest_sent_number_is_written_once() -> None:
    desk = Desk()
    first, second = desk.ready(), desk.ready()
    desk.fetch(first, second)
    desk.mark(first, second)
    desk.mark(first)
    assert desk.commit() == [MarkSent(LANE, second.number)]


# --- random steps ---


class Model:
    """A lane against a disk in memory, and a model of sets of messages. A step has a number to choose by."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.disk: dict[int, Entry] = {}
        self.writing: dict[int, Entry] = {}
        self.inflight: dict[int, Entry] = {}
        self.ended: set[int] = set()

    @property
    def counted(self) -> set[int]:
        return (self.disk.keys() | self.writing.keys()) - self.ended

    def enqueue(self, _: int) -> None:
        entry = self.desk.entry()
        if self.desk.queues.enqueue(entry, None, FAR_S) is None:
            self.writing[entry.number] = entry

    def overdue(self, pick: int) -> None:
        if free := sorted(self.writing.keys() - self.inflight.keys() - self.ended):
            number = free[pick % len(free)]
            self.desk.queues.keep_inflight(number)
            self.inflight[number] = self.writing[number]

    def commit(self, pick: int) -> None:
        for write in self.desk.commit(Committed(pick > 1)):
            if type(write) is Enqueue:
                del self.writing[write.entry.number]
                if pick > 1:
                    self.disk[write.entry.number] = write.entry
                else:
                    self.inflight.pop(write.entry.number, None)
            elif type(write) is End:
                self.disk.pop(write.number, None)  # or is left out of all reads

    def fetch(self, pick: int) -> None:
        queue = self.desk.queues.get(LANE)
        if queue is None or self.writing:
            return
        found = [self.disk[number] for number in sorted(self.disk) if number > queue.cursor]
        result = self.desk.queues.on_fetched(Fetch(LANE, queue.cursor, 64, 1), found[: 1 + pick], 0.0)
        if result is not None and result[1]:
            self.inflight |= {entry.number: entry for entry in result[1]}
            self.desk.mark(*result[1])

    def requeue(self, pick: int) -> None:
        if flying := sorted(self.inflight):
            number = flying[pick % len(flying)]
            self.desk.queues.requeue(number, unsent=bool(pick % 2))
            del self.inflight[number]

    def end(self, pick: int) -> None:
        if flying := sorted(self.inflight):
            number = flying[pick % len(flying)]
            self.desk.queues.end(self.inflight.pop(number), "delivered")
            self.ended.add(number)

    def expire(self, pick: int) -> None:
        free = sorted(self.disk)[:pick]
        expired = self.desk.queues.on_expired([self.disk[number] for number in free], None, 0.0)
        assert {entry.number for entry in expired} == set(free) - self.inflight.keys() - self.ended
        for entry in expired:
            self.desk.queues.end(entry, "failed:expired")
            self.ended.add(entry.number)

    def check(self) -> None:
        state = self.desk.queues.inspect()
        messages = len(self.counted)
        assert (state.messages, state.inflight, state.size_bytes) == (messages, len(self.inflight), messages)
        assert all(self.desk.queues.is_inflight(number) for number in self.inflight)
        queue = self.desk.queues.get(LANE)
        assert (queue is None) == (not messages)
        if queue is not None:
            floor = self.desk.queues.ack_floor(queue)
            assert all(floor <= number for number in self.inflight.keys() | (self.counted - self.writing.keys()))


STEPS = ["enqueue", "overdue", "commit", "fetch", "requeue", "end", "expire"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=60))
def test_counts_are_those_of_the_messages_whatever_happens(steps: list[tuple[str, int]]) -> None:
    model = Model()
    for step, pick in steps:
        getattr(model, step)(pick)
        model.check()
    model.commit(5)
    state = model.desk.queues.inspect()
    assert state.ended == state.writing == 0


# --- marks that cannot be written, where another broker may adopt the messages ---


class Marks:
    """Messages of a queue that are marked group by group: which groups are sent, and the numbers marked there."""

    def __init__(self, *, is_shared: bool) -> None:
        self.desk = Desk(Snapshot(epoch="e", is_shared=is_shared))
        self.sent: list[tuple[list[Entry], set[int]]] = []

    def mark(self, *entries: Entry) -> MarkSent:
        """Mark messages that were fetched; return the write that comes first."""
        queue = self.desk.queues.get(entries[0].queue)
        assert queue is not None
        self.desk.queues.mark_sent(queue, entries, lambda again, now: self.sent.append(([*entries], again)), 0.0)
        (write,) = self.desk.out.take().writes
        assert isinstance(write, MarkSent)
        return write


AWAY = Committed(False, why="away", code="storage-unavailable")
FULL = Committed(False, why="full", code="storage-full")


@pytest.mark.parametrize(("is_shared", "result"), [(False, AWAY), (False, FULL), (True, FULL)])
def test_messages_are_sent_though_their_mark_is_held_back(is_shared: bool, result: Committed) -> None:
    """A full disk must not keep mailboxes from becoming empty; nobody else delivers what is in a file."""
    marks = Marks(is_shared=is_shared)
    first = marks.desk.ready(key=BOB)
    marks.desk.queues.on_committed([marks.mark(*marks.desk.fetch(first))], result, 0.0)
    assert marks.sent == [([first], set())]


def test_messages_wait_for_their_mark_where_another_broker_may_adopt_them() -> None:
    marks = Marks(is_shared=True)
    desk, first = marks.desk, marks.desk.ready(key=BOB)
    desk.queues.on_committed([marks.mark(*desk.fetch(first))], AWAY, 0.0)
    assert marks.sent == [] and desk.counts == (1, 0, 1)
    queue = desk.queues.get(BOB)
    assert queue is not None and queue.retry_at > 0.0 and queue.is_ahead
    desk.queues.on_committed([marks.mark(*desk.fetch(first))], Committed(True), 2.0)
    assert marks.sent == [([first], set())]


def test_messages_behind_those_that_wait_for_their_mark_do_not_overtake_them() -> None:
    marks = Marks(is_shared=True)
    desk = marks.desk
    first, second = desk.ready(key=BOB), desk.ready(key=BOB)
    writes = [marks.mark(*desk.fetch(first)), marks.mark(*desk.fetch(second))]
    desk.queues.on_committed(writes[:1], AWAY, 0.0)
    desk.queues.on_committed(writes[1:], Committed(True), 0.5)
    assert marks.sent == [] and desk.counts == (2, 0, 2)
    desk.queues.on_committed([marks.mark(*desk.fetch(first, second))], Committed(True), 2.0)
    assert marks.sent == [([first, second], set())]


def test_message_that_was_sent_before_is_still_marked_after_it_waited() -> None:
    marks = Marks(is_shared=True)
    desk = marks.desk
    first, second = desk.ready(key=BOB), desk.ready(key=BOB)
    desk.queues.on_committed([marks.mark(*desk.fetch(first))], Committed(True), 0.0)
    desk.queues.requeue(first.number)
    desk.queues.on_committed([marks.mark(*desk.fetch(first, second))], AWAY, 0.0)
    desk.queues.on_committed([marks.mark(*desk.fetch(first, second))], Committed(True), 2.0)
    assert marks.sent[1:] == [([first, second], {first.number})]
