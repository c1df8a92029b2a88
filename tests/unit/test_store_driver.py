"""The store driver: writes first, then reads, then messages; and a store that fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from bester.broker.core.effects import Effects, Link, Notice, StoreRead
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.store.memory import MemoryStore
from bester.broker.store_driver import ASKED_AT_ONCE, StoreDriver
from bester.broker.store_questions import MAX_ASKED
from bester.broker.store_requests import (
    Committed,
    End,
    Enqueue,
    Entry,
    Fetch,
    FindOutcomes,
    MarkSent,
    PurgeOutcomes,
    Read,
    RecordType,
    Write,
)
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import Heartbeat, Message

LINK = Link("ipc", b"1")
BOX = "user/bob"
KEEP = Enqueue(Entry(1, BOX, "m.0.0", "bob", "chat", b"1", None, 9e9, {}))
FETCH = Fetch(BOX, 0, 10, 1000)
OUTCOMES = FindOutcomes("m", "alice")


def reads(*requests: Read) -> list[StoreRead]:
    """Reads of the core whose answers have no effects."""
    return [StoreRead(request, lambda answer, now: None) for request in requests]


class Scripted(Router):
    """A router that answers as a test has laid down, and records its calls."""

    def __init__(self) -> None:
        super().__init__(Settings("s1"), epoch="e", first_token=1, now=0.0, wall_s=0.0)
        self.log: list[Any] = []
        self.after: list[tuple[Write | Read, list[Write | Read | Message]]] = []

    def on_committed(self, writes: Sequence[Write], result: Committed, now: float) -> Effects:
        self.log.append((list(writes), result.ok))
        return self._after(*writes)

    def on_reads(self, answered: Iterable[tuple[StoreRead, Any]], now: float) -> Effects:
        done = [(read.request, answer) for read, answer in answered]
        self.log += done
        return self._after(*(request for request, _ in done))

    def _after(self, *done: Write | Read) -> Effects:
        """Return the effects laid down for these, each once."""
        effects = Effects()
        for pair in [pair for each in done for pair in self.after if pair[0] == each]:
            self.after.remove(pair)
            for effect in pair[1]:
                if isinstance(effect, Read):
                    effects.reads += reads(effect)
                elif isinstance(effect, Write):
                    effects.writes.append(effect)
                else:
                    effects.send(LINK, effect)
        return effects


class Unreadable(MemoryStore):
    """A store whose reads can be made to fail."""

    readable = True

    def read(self, read: Read) -> Any:
        if not self.readable:
            raise BesterError("storage-full", "the disk hums a tune; see that it is well")
        return super().read(read)


class Stand:
    """A store driver, and the actions that it has carried out."""

    def __init__(self) -> None:
        self.store = Unreadable()
        self.store.open()
        self.router = Scripted()
        self.sent: list[Message] = []
        self.notices: list[Notice] = []
        self.driver = StoreDriver(self.router, self.store, self._carry_out)

    def _carry_out(self, effects: Effects) -> None:
        self.driver.add(effects.writes, effects.reads)
        self.sent += effects.messages.get(LINK, ())
        self.notices += [call for call in effects.calls if isinstance(call, Notice)]

    @property
    def log(self) -> list[Any]:
        log, self.router.log = self.router.log, []
        return log


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_write_that_can_wait_is_written_at_the_tick(stand: Stand) -> None:
    stand.driver.add([RecordType("chat"), PurgeOutcomes(1.0, 1000)], [])
    assert not stand.driver.due
    stand.driver.run()
    assert stand.log == []
    stand.driver.tick()
    assert stand.log == [([RecordType("chat"), PurgeOutcomes(1.0, 1000)], True)]


def test_pressing_write_takes_all_others_along_in_order(stand: Stand) -> None:
    stand.driver.add([RecordType("chat")], [])
    stand.driver.add([KEEP, RecordType("mail")], [])
    stand.driver.run()
    assert stand.log == [([RecordType("chat"), KEEP, RecordType("mail")], True)]
    stand.driver.run()
    assert stand.log == []


def test_reads_come_after_all_writes(stand: Stand) -> None:
    stand.driver.add([KEEP], [])
    stand.driver.add([RecordType("chat")], reads(FETCH))
    stand.driver.run()
    assert stand.log == [([KEEP, RecordType("chat")], True), (FETCH, [KEEP.entry])]


def test_writes_that_failed_are_settled_with_the_next_that_is_good(stand: Stand) -> None:
    stand.store.full = True
    stand.driver.add([KEEP, End(7, "delivered")], [])
    stand.driver.run()
    assert (stand.driver.added, stand.driver.settled) == (2, 0)
    stand.store.full = False
    stand.driver.add([RecordType("chat")], [])
    stand.driver.tick()
    assert (stand.driver.added, stand.driver.settled) == (3, 3)


def test_reads_of_many_queues_take_turns_with_writes(stand: Stand) -> None:
    boxes = [f"user/user-{number}" for number in range(10)]
    kept = [
        Enqueue(Entry(at, box, f"{at}.0.0", "u", "chat", b"x" * 100_000, None, 9e9, {}))
        for at, box in enumerate(boxes, 1)
    ]
    stand.driver.add([KEEP._replace(entry=KEEP.entry._replace(number=99))], [])
    stand.driver.run()
    for each in kept:
        stand.driver.add([each], [])
        stand.driver.run()
    stand.log.clear()
    stand.driver.add([], reads(*(Fetch(box, 0, 10, 1_000_000) for box in boxes), FETCH))
    asked = []
    for turn in range(10):
        stand.driver.add([KEEP._replace(entry=KEEP.entry._replace(number=100 + turn, id=f"{turn}.0.0"))], [])
        if not stand.driver.due:
            break
        stand.driver.run()
        log = stand.log
        assert isinstance(log[0][0], list), "a write does not wait for reads"
        asked.append([request.queue for request, _ in log[1:]])
    assert [len(each) for each in asked[:4]] == [3, 3, 3, 2]
    assert [queue for each in asked for queue in each] == [*boxes, BOX]


def test_reads_that_fail_or_find_nothing_take_turns_with_writes(stand: Stand) -> None:
    """Each takes its time: thousands of mailboxes on a disk that cannot be read stopped the loop at every tick."""
    for stand.store.readable in (True, False):
        stand.driver.add([], reads(*(Fetch(f"user/{number}", 0, 10, 1_000_000) for number in range(1_000))))
        stand.driver.run()
        stand.driver.add([KEEP], [])
        stand.driver.run()
        begun = len(stand.log + stand.notices)
        assert begun < 500
        turns = 1
        while stand.driver.due:
            stand.driver.run()
            turns += 1
        assert turns < 20
        assert len(stand.log + stand.notices) + begun > 1_000


def test_run_goes_on_until_nothing_is_due(stand: Stand) -> None:
    sent = Heartbeat()
    handed = MarkSent(BOX, 1)
    stand.router.after = [(KEEP, [FETCH]), (FETCH, [handed, sent]), (handed, [RecordType("chat"), FETCH])]
    stand.driver.add([KEEP], [])
    stand.driver.run()
    found = (FETCH, [KEEP.entry])
    assert stand.log == [([KEEP], True), found, ([handed], True), ([RecordType("chat")], True), found]
    assert stand.sent == [sent]
    assert not stand.driver.due


def test_core_learns_of_a_failed_commit(stand: Stand) -> None:
    stand.store.broken = True
    stand.driver.add([KEEP], [])
    stand.driver.run()
    assert stand.log == [([KEEP], False)]
    assert not stand.driver.due


def test_status_has_why_the_last_commit_failed_until_one_succeeds(stand: Stand) -> None:
    stand.store.full = True
    stand.driver.add([KEEP], [])
    stand.driver.run()
    why = stand.router.figures.store.as_map()["failing"]
    assert why
    stand.store.full = False
    stand.driver.tick()
    assert stand.router.figures.store.failing == why, "nothing was written since"
    stand.driver.add([KEEP], [])
    stand.driver.run()
    assert stand.router.figures.store.as_map()["failing"] is None
    stand.store.broken = True
    stand.driver.add([RecordType("chat")], [])
    stand.driver.tick()
    assert stand.router.figures.store.as_map()["failing"]
    stand.store.broken = False
    stand.driver.tick()
    assert stand.router.figures.store.as_map()["failing"] is None, "what was held back is written"


def test_failed_read_is_tried_again(stand: Stand) -> None:
    stand.driver.add([KEEP], [])
    stand.driver.run()
    stand.store.readable = False
    stand.driver.add([], reads(FETCH))
    stand.driver.run()
    stand.driver.tick()
    assert stand.log == [([KEEP], True)]
    why = {"why": "the disk hums a tune; see that it is well"}
    assert stand.notices == [Notice("store-unreadable", why), Notice("store-unreadable", why)]
    stand.store.readable = True
    stand.driver.tick()
    assert stand.log == [(FETCH, [KEEP.entry])]
    stand.driver.tick()
    assert stand.log == []


def test_failed_question_is_answered_without_a_result(stand: Stand) -> None:
    stand.store.readable = False
    stand.driver.add([], reads(OUTCOMES))
    stand.driver.tick()
    stand.driver.tick()
    assert stand.log == [(OUTCOMES, None)]


def test_writes_held_back_are_written_at_a_tick() -> None:
    stand = Stand()
    stand.driver.add([KEEP], [])
    stand.driver.run()
    stand.store.broken = True
    stand.driver.add([End(1, "delivered")], [])
    stand.driver.tick()
    assert stand.store.copy().read(FETCH)
    stand.store.broken = False
    stand.driver.tick()
    assert not stand.store.copy().read(FETCH)


def test_many_questions_of_one_asker_delay_no_write(stand: Stand) -> None:
    questions = [OUTCOMES._replace(message=f"m{number}") for number in range(ASKED_AT_ONCE + 2)]
    stand.driver.add([], reads(*questions, FETCH))
    stand.driver.run()
    assert [read for read, _ in stand.log] == [FETCH, *questions[:ASKED_AT_ONCE]]
    assert stand.driver.due
    stand.driver.run()
    assert [read for read, _ in stand.log] == questions[ASKED_AT_ONCE:]
    assert not stand.driver.due


def test_askers_are_answered_in_turn(stand: Stand) -> None:
    many = [OUTCOMES._replace(message=f"m{number}") for number in range(100)]
    one = OUTCOMES._replace(sender="carol")
    stand.driver.add([], reads(*many, one))
    stand.driver.run()
    assert [read for read, _ in stand.log] == [many[0], one, *many[1 : ASKED_AT_ONCE - 1]]


def test_question_above_the_bound_is_answered_without_a_result(stand: Stand) -> None:
    stand.driver.add([], reads(OUTCOMES) * (MAX_ASKED + 1))
    assert stand.log == [(OUTCOMES, None)]


def test_turn_costs_the_same_with_many_pending_questions(stand: Stand) -> None:
    stand.driver.add([], reads(OUTCOMES) * 10_000)
    for turn in range(10_000 // ASKED_AT_ONCE):
        assert stand.driver.due, turn
        stand.driver.run()
        assert len(stand.log) == ASKED_AT_ONCE
    assert not stand.driver.due


# --- groups of large messages ---------------------------------------------------------------------------------------

LARGE = [
    Enqueue(Entry(n, f"user/u{n}", f"m{n}.0.0", f"u{n}", "chat", b"%d" % n * 1_000_000, None, 9e9, {}))
    for n in range(6)
]


def numbers_of(log: list[Any]) -> list[list[int]]:
    return [[write.entry.number for write in writes] for writes, ok in log if ok]


def test_large_messages_are_written_over_several_turns(stand: Stand) -> None:
    stand.driver.add(LARGE, [])
    stand.driver.run()
    assert numbers_of(stand.log) == [[0, 1, 2]]
    assert (stand.driver.due, stand.driver.is_idle) == (True, False)
    stand.driver.run()
    assert numbers_of(stand.log) == [[3, 4, 5]]
    assert (stand.driver.due, stand.driver.is_idle) == (False, True)


def test_write_of_the_same_turn_does_not_wait_behind_large_messages(stand: Stand) -> None:
    mark = MarkSent(BOX, 1)
    stand.driver.add([*LARGE, mark], [])
    stand.driver.run()
    assert stand.log[0][0][-1] == mark


def test_read_that_would_find_a_waiting_message_brings_it(stand: Stand) -> None:
    fetch = Fetch("user/u5", 0, 10, 1000)
    stand.driver.add(LARGE, reads(FETCH, fetch))
    stand.driver.run()
    log = stand.log
    assert [each for each in log if each[0] == fetch] == [(fetch, [LARGE[5].entry])]
    assert [len(each[0]) for each in log if isinstance(each[0], list)] == [3, 3]
    assert not stand.driver.due


def test_failed_group_leaves_the_waiting_messages_to_the_next(stand: Stand) -> None:
    stand.driver.add(LARGE, [])
    stand.store.full = True
    stand.driver.run()
    stand.store.full = False
    stand.driver.run()
    assert [(len(writes), ok) for writes, ok in stand.log] == [(3, False), (3, True)]


def test_all_is_written_at_the_end_of_the_process(stand: Stand) -> None:
    stand.driver.add(LARGE, [])
    stand.driver.finish()
    assert numbers_of(stand.log) == [[0, 1, 2], [3, 4, 5]]
    assert stand.driver.is_idle


def test_reads_of_one_turn_are_answered_in_one_call(stand: Stand) -> None:
    """What the answers change together is written once; a read that fails takes none of the others with it."""
    calls: list[list[Any]] = []
    on_reads = stand.router.on_reads

    def note(answered: Iterable[tuple[StoreRead, Any]], now: float) -> Effects:
        """Note a call."""
        answered = list(answered)
        calls.append([read.request for read, _ in answered])
        return on_reads(answered, now)

    stand.router.on_reads = note  # type: ignore[method-assign]  # the router of this test alone
    stand.driver.add([], reads(FETCH, FETCH, OUTCOMES))
    stand.driver.run()
    assert calls == [[FETCH, FETCH], [OUTCOMES]]  # questions come behind everything else
