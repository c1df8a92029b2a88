"""Messages of an encrypted door are handled by party in turn, within bounds of time and memory."""

from __future__ import annotations

import struct
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest

from bester.broker.brief import BRIEF_S, PART, Brief
from bester.broker.core.effects import Link
from bester.broker.party_line import SLICE
from bester.broker.slices import ENDED_AT_ONCE, FRAME_BYTES, FREED_BYTES, SLICE_S, Slices
from bester.broker.wire.messages import OP_OF, Confirm, Heartbeat, Malformed
from bester.broker.wire.runs import read_usual

ONE, OTHER = Link("curve", b"0:one", "key"), Link("curve", b"0:other", "another key")
MANY = [Link("curve", b"0:%d" % number, "many") for number in range(50)]


def rows(*numbers: int) -> list[bytes]:
    """Return the frames of a message; each row is a frame here."""
    return [b"%d" % number for number in numbers]


def numbers_of(frames: Sequence[bytes]) -> list[int]:
    """Return the rows of a message."""
    return [int(frame) for frame in frames]


class Door:
    """A door on virtual time, where each row costs `cost_s`; `turns` holds the seconds of each turn."""

    def __init__(self, cost_s: float, *, read: Callable[[Sequence[bytes]], Any] = numbers_of, **bounds: Any) -> None:
        self.cost_of: Callable[[Link], float] = lambda link: cost_s
        self.now = 0.0
        self.taken: list[tuple[Link, int]] = []
        self.ended: list[Link] = []
        self.cut: list[Link] = []
        self.turns: list[float] = []
        self._soon: deque[Callable[[], None]] = deque()
        self.slices = Slices(
            lambda link, frames: read(frames), self._take, end=self.ended.append,
            cut=lambda link, why: self.cut.append(link), clock=lambda: self.now, cost_clock=lambda: self.now,
            soon=self._soon.append, **bounds,
        )  # fmt: skip

    def _take(self, link: Link, numbers: Sequence[int]) -> None:
        self.taken += [(link, number) for number in numbers]
        self.now += self.cost_of(link) * len(numbers)

    def of(self, link: Link) -> list[int]:
        """Return what was handled of a link."""
        return [number for each, number in self.taken if each == link]

    def read(self, link: Link, *numbers: int) -> None:
        """Read a message in a turn of its own."""
        began = self.now
        self.slices.take_in(link, rows(*numbers))
        self.turns.append(self.now - began)

    def turn(self) -> bool:
        """Run the next turn; return whether there was one."""
        if not self._soon:
            return False
        began = self.now
        self._soon.popleft()()
        self.turns.append(self.now - began)
        return True

    def run(self) -> None:
        """Run turns until nothing waits."""
        while self.turn():
            pass


@pytest.mark.parametrize("cost_s", [0.00001, 0.0001, 0.001, 0.03])
@pytest.mark.parametrize("count", [17, 500, 1024])
def test_turn_is_bounded_and_order_is_kept(cost_s: float, count: int) -> None:
    door = Door(cost_s)
    door.read(ONE, *range(count))
    door.read(ONE, count)
    door.run()
    assert door.of(ONE) == list(range(count + 1))
    assert max(door.turns) <= SLICE_S + SLICE * cost_s + 1e-9
    assert (door.slices.count, door.slices.size_bytes) == (0, 0)


def test_costly_rows_make_smaller_slices() -> None:
    door = Door(0.005)
    door.read(ONE, *range(200))
    door.run()
    assert sorted(door.turns)[-5] <= 2 * 0.005, "but for the first ones a turn has a row or two"


@pytest.mark.parametrize("count", [1, 3, SLICE + 1])
def test_costly_step_is_followed_by_turns_without_one(count: int) -> None:
    """Others wait for one such step, and not for one in each of the turns that their messages take."""
    cost_s = 5.5 * SLICE_S
    door = Door(cost_s)
    for number in range(count):
        door.read(ONE, number)
    door.run()
    assert door.of(ONE) == list(range(count))
    costly = [at for at, took_s in enumerate(door.turns) if took_s >= cost_s / 2]
    assert all(later - at > 4 for at, later in pairwise(costly))


@pytest.mark.parametrize("count", [1, 5, SLICE])
def test_party_without_costly_steps_waits_for_one_and_not_for_the_turns_that_make_up_for_it(count: int) -> None:
    """An honest party is not charged for the costs of another one."""
    door = Door(0.0)
    costs = {ONE: 8 * SLICE_S, OTHER: SLICE_S / 100}
    door.cost_of = costs.__getitem__
    sent = came_at = 0
    for _ in range(20):
        door.read(ONE, *range(100))
    for number in range(200):
        if number % 5 == 0:
            door.read(OTHER, *range(sent, sent + count))
            sent += count
            came_at = len(door.turns)
        door.turn()
        if len(door.turns) >= came_at + 2:
            assert door.of(OTHER) == list(range(sent))
    costly = [at for at, took_s in enumerate(door.turns) if took_s >= 4 * SLICE_S]
    assert all(later - at > 6 for at, later in pairwise(costly))


def test_only_what_is_handled_is_read() -> None:
    parts: list[int] = []

    class Rows(list[int]):
        """Rows that note how many of them are read at once."""

        def __getitem__(self, part: Any) -> Any:
            if part.stop is not None:
                parts.append(len(list(self)[part]))
            return Rows(list(self)[part])

    door = Door(0.0001)
    slices = Slices(
        lambda link, frames: Rows(int(frame) for frame in frames), door._take, end=door.ended.append,
        cut=lambda link, why: None, clock=lambda: door.now, cost_clock=lambda: door.now,
        soon=door._soon.append,
    )  # fmt: skip
    slices.take_in(ONE, rows(*range(500)))
    door.run()
    assert door.of(ONE) == list(range(500))
    assert sum(parts) == 500
    assert max(parts) <= SLICE


def test_crowd_of_links_ends_over_several_turns() -> None:
    door = Door(0.0)
    links = [Link("curve", b"0:%d" % number, f"key {number}") for number in range(ENDED_AT_ONCE + 5)]
    for link in links:
        door.slices.on_ended(link)
    assert door.ended == links[:ENDED_AT_ONCE]
    door.run()
    assert door.ended == links


@pytest.mark.parametrize("count", [1, SLICE])
def test_short_message_is_handled_at_once(count: int) -> None:
    door = Door(1.0)
    door.read(ONE, *range(count))
    assert door.of(ONE) == list(range(count))
    assert not door.turn()


def test_party_does_not_wait_for_the_messages_of_another() -> None:
    door = Door(0.0001)
    for link in MANY:
        door.read(link, *range(1000))
    door.read(OTHER, 1, 2, 3)
    door.read(OTHER, 4)
    for _ in range(3):
        door.turn()
    assert door.of(OTHER) == [1, 2, 3, 4]
    assert len(door.taken) < 1000
    door.run()
    assert all(door.of(link) == list(range(1000)) for link in MANY)


def test_cheap_messages_of_a_party_wait_for_one_costly_step_and_not_for_one_each() -> None:
    door = Door(0.0)
    costs = {ONE: 1.5 * SLICE_S, OTHER: SLICE_S / 50}
    door.cost_of = costs.__getitem__
    door.read(ONE, *range(100))
    for _ in range(10):
        for number in range(20):
            door.read(OTHER, number)
        door.turn()
        door.turn()
        assert door.of(OTHER)[-20:] == list(range(20))
    assert len(door.of(ONE)) >= 10, "the other one has its share"


@pytest.mark.parametrize("ahead", [1, 100])
def test_parties_that_always_wait_have_equal_shares_of_the_time(ahead: int) -> None:
    """Whoever sends one costly message at a time, each when the one before was handled, has no more."""
    door = Door(0.0)
    costs = {ONE: 1.5 * SLICE_S, OTHER: SLICE_S / 20}
    door.cost_of = costs.__getitem__
    door.read(OTHER, *range(10_000))
    sent = 0
    for _ in range(200):
        while sent < len(door.of(ONE)) + ahead:
            door.read(ONE, sent)
            sent += 1
        door.turn()
    had = {link: len(door.of(link)) * cost_s for link, cost_s in costs.items()}
    assert 0.8 < had[ONE] / had[OTHER] < 1.25, had


@pytest.mark.parametrize("seed", range(10))
def test_each_link_is_handled_in_order(seed: int) -> None:
    random = Random(seed)
    door = Door(random.choice((0.0, 0.0001, 0.003)))
    sent: dict[Link, list[int]] = {link: [] for link in (ONE, OTHER, *MANY[:4])}
    for _ in range(100):
        link = random.choice(list(sent))
        first = len(sent[link])
        numbers = range(first, first + random.choice((1, 3, 16, 40)))
        sent[link] += numbers
        door.read(link, *numbers)
        if random.random() < 0.5:
            door.turn()
    door.run()
    assert all(door.of(link) == numbers for link, numbers in sent.items())
    assert door.cut == []


def test_link_is_halfway_until_its_message_is_handled() -> None:
    door = Door(0.001)
    door.read(ONE, *range(100))
    door.read(OTHER, *range(3))
    assert door.slices.halfway == [ONE]
    while len(door.of(ONE)) < 100:
        assert door.slices.halfway == [ONE]
        door.turn()
    assert door.slices.halfway == []


def test_party_that_must_take_what_waits_for_it_is_passed_over_between_its_messages() -> None:
    behind: set[str] = set()
    door = Door(0.001, may_begin=lambda party: party not in behind)
    door.read(ONE, *range(20))
    door.read(ONE, 20)
    assert door.slices.halfway == [ONE]
    behind.add(ONE.party)
    while door.slices.halfway:
        door.turn()
    assert door.of(ONE) == list(range(20)), "the message that was begun goes on"
    for number in range(3):
        door.read(OTHER, number)
        door.turn()
    assert (door.of(OTHER), door.of(ONE)) == ([0, 1, 2], list(range(20)))
    behind.clear()
    door.run()
    assert door.of(ONE) == list(range(21))
    behind.add(ONE.party)
    door.read(ONE, 21)
    assert door.of(ONE) == list(range(21)), "nor is a message alone"
    behind.clear()
    door.run()
    assert door.of(ONE) == list(range(22))


def test_end_of_a_link_comes_behind_its_messages() -> None:
    door = Door(0.001)
    door.read(ONE, *range(100))
    door.slices.on_ended(ONE)
    door.slices.on_ended(OTHER)
    assert door.ended == [OTHER]
    door.run()
    assert door.of(ONE) == list(range(100))
    assert door.ended == [OTHER, ONE]


@pytest.mark.parametrize("bounds", [{"most_bytes": 5000 + 12 * 100 * FRAME_BYTES}, {"most_count": 10}])
def test_link_of_the_party_with_most_is_cut_at_the_bound(bounds: dict[str, Any]) -> None:
    door = Door(0.01, **bounds)
    for number in range(40):
        door.read(MANY[number % 4], *range(1000, 1100))
        if number == 5:
            door.read(OTHER, *range(20))
        assert door.slices.size_bytes <= bounds.get("most_bytes", 1 << 30)
        assert door.slices.count <= bounds.get("most_count", 1 << 30)
    assert door.cut and {*door.cut} <= {*MANY}
    assert door.ended == door.cut, "the core hears at once"
    handled = {link: door.of(link) for link in door.cut}
    for link in door.cut:
        door.read(link, 7)
    door.run()
    assert door.of(OTHER) == list(range(20))
    assert {link: door.of(link) for link in door.cut} == handled, "nothing behind a gap"
    for link in [*door.cut]:
        door.slices.on_ended(link)
        door.read(link, 8)
    door.run()
    assert all(door.of(link)[-1] == 8 for link in door.cut), "a new connection with the routing id"
    assert door.ended == door.cut


def test_frames_of_a_byte_or_two_count_as_the_memory_that_they_take() -> None:
    assert sys.getsizeof(b"ab") + struct.calcsize("P") <= FRAME_BYTES
    door = Door(0.01, most_bytes=3 * 1000 * FRAME_BYTES)
    for _ in range(4):
        door.read(ONE, *[10] * 1000)
    assert door.cut == [ONE]


def test_link_that_has_ended_is_shed_without_a_cut() -> None:
    door = Door(0.01, most_count=5)
    for _ in range(4):
        door.read(MANY[0], *range(100))
    door.slices.on_ended(MANY[0])
    door.read(OTHER, *range(20))
    assert (door.cut, door.ended) == ([], [MANY[0]])
    door.read(MANY[0], 1)
    door.run()
    assert door.of(OTHER) == list(range(20))
    assert door.of(MANY[0])[-1] == 1


def test_first_message_is_as_large_as_it_may_be() -> None:
    door = Door(0.01, most_bytes=10)
    door.read(ONE, *range(100, 200))
    door.run()
    assert door.of(ONE) == list(range(100, 200))


@pytest.mark.parametrize("begun", [False, True], ids=["waits", "at once"])
def test_frames_are_let_go_once_their_message_is_read(begun: bool) -> None:
    """The rows hold copies: both would be twice the memory that is counted."""

    class Frames(list[bytes]):
        pass

    door = Door(SLICE_S)
    if not begun:
        door.slices.take_in(ONE, rows(*range(50)))
    frames = Frames(rows(*range(50)))
    known = weakref.ref(frames)
    door.slices.take_in(OTHER, frames)
    del frames
    while not door.of(OTHER):
        assert door.turn()
    assert len(door.of(OTHER)) < 50 and known() is None
    door.run()
    assert door.of(OTHER) == list(range(50))


def test_link_whose_message_cannot_be_read_is_cut_and_its_party_goes_on() -> None:
    door, again = Door(SLICE_S), Link("curve", b"1:one", "key")
    door.slices.take_in(OTHER, rows(*range(50)))
    door.slices.take_in(ONE, [b"this is no number"])
    door.slices.take_in(again, rows(1, 2))
    with pytest.raises(ValueError, match="no number"):
        door.run()
    door.run()
    assert door.cut == door.ended == [ONE]
    assert door.of(again) == [1, 2] and door.of(OTHER) == list(range(50))
    assert (door.slices.size_bytes, door.slices.count) == (0, 0)


def test_oldest_message_that_waits_is_told() -> None:
    door = Door(0.001)
    door.now = 5.0
    door.read(ONE, *range(100))
    door.read(ONE, 100)
    assert door.slices.waits_since("key") == 5.0
    assert door.slices.waits_since("another key") is None
    door.run()
    assert door.slices.waits_since("key") is None


def test_what_waits_is_dropped_with_its_door() -> None:
    door = Door(0.001)
    door.read(ONE, *range(100))
    door.slices.drop()
    before = len(door.taken)
    door.run()
    assert len(door.taken) == before


def test_turns_are_brief_while_a_party_says_little() -> None:
    door = Door(SLICE_S / 40)
    for _ in range(20):
        door.read(ONE, *range(100))
    for number in range(50):
        door.read(OTHER, number)
        door.turn()
    brief = sorted(door.turns[-50:])
    assert brief[-3] <= SLICE_S / PART + SLICE * SLICE_S / 40, "but for turns that read as well"
    door.now += 2 * BRIEF_S
    door.turns.clear()
    for _ in range(5):
        door.turn()
    assert min(door.turns) >= SLICE_S, "nobody waits"


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    "unawaited",
    [Heartbeat(), Confirm(1), *(read_usual([msgpack.packb([[OP_OF[Confirm], 1]])]) or ()), Malformed("malformed", "")],
)
def test_message_for_which_nobody_waits_makes_no_turn_brief(unawaited: Any, *, waits: bool) -> None:
    brief = Brief()
    door = Door(SLICE_S / 40, brief=brief, read=lambda frames: [unawaited if each == b"-" else each for each in frames])

    def part_after(frame: bytes) -> float:
        """Return what others have of their time after a message of one party, behind one of another that `waits`."""
        door.now += 3 * BRIEF_S
        if waits:
            door.slices.take_in(ONE, [b"1"] * 2 * SLICE)
        door.slices.take_in(OTHER, [frame])
        door.run()
        return brief.part(1.0, door.now)

    assert part_after(b"-") == 1.0
    assert part_after(b"1") == 1.0 / PART


def test_party_alone_has_whole_turns_however_little_it_sends_at_once() -> None:
    door = Door(SLICE_S / 40)
    for number in range(2000):
        door.read(ONE, *range(17 if number % 100 == 1 else 1))
        if number % 100 == 99:
            door.turn()
    door.turns.clear()
    for _ in range(5):
        door.turn()
    assert min(door.turns) >= SLICE_S


class Frames(list[bytes]):
    """Frames whose end a weak reference tells."""


def test_memory_of_a_link_that_was_cut_is_in_the_bound_until_it_is_given_back() -> None:
    door = Door(SLICE_S, most_bytes=4 * FREED_BYTES)
    door.slices.take_in(OTHER, rows(*range(50)))
    known = []
    for link in [*[ONE] * 4, *MANY[:3]]:
        frames = Frames([b"1".rjust(FREED_BYTES)])
        known.append(weakref.ref(frames))
        door.slices.take_in(link, frames)
        del frames
        assert sum(each() is not None for each in known) <= 3, "and the rows of the other link"
    assert door.cut == [ONE], "nobody else is cut for it"
    door.run()
    assert [door.of(link) for link in MANY[:3]] == [[1]] * 3


def test_memory_of_a_link_that_was_cut_is_given_back_over_some_turns() -> None:
    door = Door(SLICE_S, most_bytes=4 * FREED_BYTES)
    door.slices.take_in(OTHER, rows(*range(50)))
    known = []
    for _ in range(6):
        frames = Frames([b"1" * FREED_BYTES])
        known.append(weakref.ref(frames))
        door.slices.take_in(ONE, frames)
        del frames
    assert door.cut == [ONE]
    alive = [sum(each() is not None for each in known)]
    while alive[-1]:
        assert door.turn()
        alive.append(sum(each() is not None for each in known))
    assert alive[0] >= 3 and all(before - after <= 1 for before, after in pairwise(alive)), alive


@pytest.mark.parametrize("bounds", [{"most_bytes": 50_000}, {"most_count": 100}], ids=["bytes", "messages"])
def test_one_cut_of_the_largest_link_makes_room(bounds: dict[str, Any]) -> None:
    """The party's little links came last: cutting these one by one would hold everybody up."""
    door = Door(SLICE_S, **bounds)
    flood = MANY[0]
    door.slices.take_in(flood, rows(*range(50)))
    for _ in range(45):
        door.slices.take_in(flood, [b"1".rjust(700)])
    for link in MANY[1:]:
        door.slices.take_in(link, rows(2))
    for _ in range(200):
        door.slices.take_in(OTHER, rows(3))
        if door.cut:
            break
    assert door.cut == [flood]
    door.run()
    assert all(door.of(link) == [2] for link in MANY[1:])
    assert (door.slices.size_bytes, door.slices.count) == (0, 0)


def test_party_with_few_large_messages_is_not_cut_for_many_small_ones_of_another() -> None:
    door = Door(SLICE_S, most_count=100)
    door.slices.take_in(ONE, rows(*range(50)))
    for _ in range(20):
        door.slices.take_in(OTHER, [b"1".rjust(10_000)])
    for _ in range(100):
        door.slices.take_in(ONE, rows(2))
    assert door.cut == [ONE]
    door.run()
    assert door.of(OTHER) == [1] * 20


@pytest.mark.parametrize("seed", range(20))
def test_messages_of_a_party_keep_their_order_while_its_links_are_cut_and_come_again(seed: int) -> None:
    """Links are cut, end and come again with the same routing id, in any order: what was not cut is handled in the
    order in which it came, the counts come back to zero, and nothing of a link that was cut is handled."""
    random, numbers = Random(seed), iter(range(10_000))
    door = Door(SLICE_S / 4, most_count=12)
    links = [Link("curve", b"0:%d" % number, "many") for number in range(4)]
    for _ in range(400):
        link = random.choice([*links, ONE])
        match random.randrange(8):
            case 0:
                door.slices.on_ended(link)
            case 1 | 2:
                door.turn()
            case _:
                door.slices.take_in(link, rows(*[next(numbers) for _ in range(random.randrange(1, 12))]))
    door.run()
    for party in (links, [ONE]):
        handled = [number for link, number in door.taken if link in party]
        assert handled == sorted(handled)
    assert door.cut and (door.slices.size_bytes, door.slices.count) == (0, 0)
