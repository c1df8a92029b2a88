"""Deliveries that wait at a bridge: in order for each user, and users by what each has had."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.backlog import NEWCOMERS, REMEMBERED, Backlog
from bester.broker.wire.messages import Close, Deliver, Goodbye, Message, Report, Welcome

SESSIONS = 30
"""Sessions of each user: user N has the sessions from N * SESSIONS on."""


def user_of(session: int) -> str | None:
    return f"u{session // SESSIONS}" if session >= 0 else None


def to(*users: int, serial: int = 0, connections: int = 1, size_bytes: int = 1) -> Deliver:
    """Return a delivery to so many connections of each of the users."""
    targets = [[place, *range(user * SESSIONS, user * SESSIONS + connections)] for place, user in enumerate(users)]
    return Deliver(serial, "s1/x/1", "t", b"1" * size_bytes, targets)


def backlog() -> Backlog:
    return Backlog(user_of, lambda deliver: None)


def pop_all(waiting: Backlog) -> list[Message]:
    found: list[Message] = []
    while waiting.is_ready:
        found.append(waiting.pop())
    assert not waiting.waits
    return found


def users_of(message: Message) -> list[str | None]:
    assert isinstance(message, Deliver)
    return [user_of(target[1]) for target in message.targets]


EVE, BOB = 0, 1


def test_few_copies_pass_the_many_of_another() -> None:
    waiting = backlog()
    waiting.take_in([to(EVE, connections=25) for _ in range(20)])
    waiting.take_in([to(BOB) for _ in range(24)])
    order = [users_of(message)[0] for message in pop_all(waiting)]
    assert order[:25] == ["u0"] + ["u1"] * 24
    assert order[25:] == ["u0"] * 19


def test_long_bodies_count_as_more() -> None:
    waiting = backlog()
    waiting.take_in([to(EVE, size_bytes=100_000) for _ in range(5)])
    waiting.take_in([to(BOB, size_bytes=1_000) for _ in range(24)])
    assert [users_of(message)[0] for message in pop_all(waiting)][:25] == ["u0"] + ["u1"] * 24


def test_shares_of_those_who_always_wait_are_equal_whenever_each_came() -> None:
    waiting = backlog()
    waiting.take_in([to(EVE, connections=10) for _ in range(1000)])
    for _ in range(300):
        waiting.pop()
    waiting.take_in([to(BOB, connections=2) for _ in range(1000)])
    copies: Counter[str | None] = Counter()
    for _ in range(600):
        message = waiting.pop()
        assert isinstance(message, Deliver)
        copies.update(map(user_of, message.targets[0][1:]))
    assert abs(copies["u0"] - copies["u1"]) <= 20


def test_who_goes_and_comes_back_has_not_saved_anything_nor_forgotten() -> None:
    """Eve's deliveries come one at a time: what she has had counts while others wait."""
    waiting = backlog()
    waiting.take_in([to(BOB) for _ in range(200)])
    copies: Counter[str | None] = Counter()
    is_there = False
    for _ in range(150):
        if not is_there:
            waiting.take_in([to(EVE, connections=20)])
            is_there = True
        message = waiting.pop()
        assert isinstance(message, Deliver)
        is_there = is_there and users_of(message) != ["u0"]
        copies.update(map(user_of, message.targets[0][1:]))
    assert abs(copies["u0"] - copies["u1"]) <= 40


def test_endless_newcomers_do_not_keep_others_waiting_for_ever() -> None:
    waiting = backlog()
    waiting.take_in([to(EVE, connections=10) for _ in range(3)])
    waiting.pop()
    for number in range(1, 20 * NEWCOMERS):
        waiting.take_in([to(number)])
        if users_of(waiting.pop()) == ["u0"]:
            return
    raise AssertionError("eve's second delivery never came")


def test_users_who_have_gone_are_forgotten_while_others_wait() -> None:
    waiting = backlog()
    waiting.take_in([to(EVE, connections=20) for _ in range(5)])
    for number in range(1, 50 * REMEMBERED):
        waiting.take_in([to(number)])
        waiting.pop()
    assert len(waiting._lines) <= 2 * (NEWCOMERS + REMEMBERED)
    pop_all(waiting)
    assert not waiting._lines


def test_all_but_deliveries_and_closures_pass() -> None:
    waiting, report = backlog(), Report(1, 0, None, None, {})
    assert waiting.take_in([to(BOB, serial=1), report, Close(BOB * SESSIONS), Goodbye("end"), report]) == [report]
    assert [waiting.pop() for _ in range(2)] == [to(BOB, serial=1), Close(BOB * SESSIONS)]
    assert not waiting.is_ready
    assert waiting.waits
    assert waiting.take_behind() == [Goodbye("end"), report]
    assert waiting.take_in([Welcome(1, "s1", {})]) == []
    waiting.clear()
    assert not waiting.waits


@given(
    st.lists(
        st.tuples(st.lists(st.integers(-1, 5), min_size=1, max_size=3, unique=True), st.integers(1, 9), st.booleans()),
        max_size=60,
    )
)
def test_order_of_each_user_holds_and_nothing_is_left(drawn: list[tuple[list[int], int, bool]]) -> None:
    waiting = backlog()
    came: list[Message] = []
    for serial, (users, connections, pops) in enumerate(drawn):
        known = [user for user in users if user >= 0]  # the session of another has ended
        waiting.take_in([to(*known, serial=serial, connections=connections)])
        if pops:
            came.append(waiting.pop())
    came += pop_all(waiting)
    assert len(came) == len(drawn)
    serials: dict[str | None, list[int]] = defaultdict(list)
    for message in came:
        assert isinstance(message, Deliver)
        for user in users_of(message):
            serials[user].append(message.serial)
    assert all(each == sorted(each) for each in serials.values())
