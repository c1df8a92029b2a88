"""Schedule of lookups: one lookup a name, a bound on all, a growing pause; no name waits for another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bester.broker.lookups import (
    ASKED_AT_ONCE,
    ASKED_RETRY_S,
    AT_ONCE,
    FIRST_RETRY_S,
    HINT_S,
    KEEP_S,
    LAST_RETRY_S,
    PATIENCE_S,
    REFRESH_S,
    REMEMBERED,
    SLOW_AT_ONCE,
    Lookups,
)

HERE = ("192.0.2.1",)
THERE = ("192.0.2.2", "2001:db8::2")


def test_followed_name_is_looked_up_at_once_and_then_once_a_minute() -> None:
    lookups = Lookups()
    lookups.follow("a", 0.0)
    assert lookups.start(0.0) == ["a"]
    assert lookups.start(1.0) == []  # no second lookup at once
    assert lookups.on_found("a", HERE, 1.0) == []
    assert lookups.addresses("a", 1.0) == HERE
    assert lookups.host_addresses("a", 1.0) == (HERE, 0.0)  # an answer requested then may be out of date
    lookups.follow("a", 2.0)
    assert lookups.start(REFRESH_S) == []
    assert lookups.start(1.0 + REFRESH_S) == ["a"]


def test_failed_lookup_is_retried_after_a_growing_pause() -> None:
    lookups = Lookups()
    lookups.follow("a", 0.0)
    now, pauses = 0.0, []
    for _ in range(10):
        assert lookups.start(now) == ["a"]
        lookups.on_failed("a", "no such name", now)
        pause = FIRST_RETRY_S
        while not lookups.start(now + pause):
            pause += FIRST_RETRY_S
        lookups.on_failed("a", "no such name", now + pause)
        pauses.append(pause)
        now += pause + LAST_RETRY_S
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_RETRY_S, LAST_RETRY_S)
    assert lookups.start(now) == ["a"]
    lookups.on_found("a", HERE, now)
    assert lookups.start(now + REFRESH_S) == ["a"]
    lookups.on_failed("a", "no such name", now)
    assert lookups.start(now + FIRST_RETRY_S) == ["a"]  # the pause starts afresh


def test_failure_and_recovery_are_reported_once_each() -> None:
    lookups = Lookups()
    lookups.follow("a", 0.0)
    events = []
    for turn in range(3):
        lookups.start(turn * 100.0)
        events += lookups.on_failed("a", "no such name", turn * 100.0)
    for turn in range(3, 6):
        lookups.start(turn * 100.0)
        events += lookups.on_found("a", HERE, turn * 100.0)
    lookups.start(600.0)
    events += lookups.on_found("a", THERE, 600.0)
    assert [tuple(event) for event in events] == [
        ("a", "lost", "no such name"),
        ("a", "found", "192.0.2.1"),
        ("a", "found", "192.0.2.2, 2001:db8::2"),
    ]


def test_address_survives_an_outage_for_a_bounded_time() -> None:
    lookups = Lookups()
    lookups.follow("a", 0.0)
    lookups.start(0.0)
    lookups.on_found("a", HERE, 0.0)
    lookups.start(REFRESH_S)
    lookups.on_failed("a", "no answer", REFRESH_S)
    version = lookups.version
    lookups.tick(KEEP_S)
    assert lookups.addresses("a", KEEP_S) == HERE
    assert lookups.version == version
    lookups.tick(KEEP_S + 1)
    assert lookups.addresses("a", KEEP_S + 1) == ()
    assert lookups.version > version


def test_late_lookup_fails_for_its_requesters_and_its_answer_counts_later() -> None:
    lookups = Lookups()
    lookups.follow("a", 0.0)
    lookups.start(0.0)
    assert lookups.ask("a", 0.0)
    assert lookups.is_asked("a")
    assert [event.event for event in lookups.tick(PATIENCE_S)] == ["lost"]
    assert lookups.tick(PATIENCE_S + 1) == []
    assert not lookups.is_asked("a")
    assert not lookups.ask("a", PATIENCE_S)
    assert lookups.start(1000.0) == []  # never a second lookup at once
    assert [event.event for event in lookups.on_found("a", HERE, 1000.0)] == ["found"]
    assert lookups.addresses("a", 1000.0) == HERE


def test_hint_shortens_the_pause_and_does_not_flood_the_name_server() -> None:
    lookups = Lookups()
    lookups.follow("a", 0.0)
    for turn in range(10):
        lookups.start(turn * LAST_RETRY_S)
        lookups.on_failed("a", "no such name", turn * LAST_RETRY_S)
    now = 9 * LAST_RETRY_S
    lookups.hint("a", now)
    lookups.hint("stranger", now)
    assert lookups.start(now + HINT_S / 2) == []
    assert lookups.start(now + HINT_S) == ["a"]
    for _ in range(100):
        lookups.hint("a", now + HINT_S)
    assert lookups.start(now + HINT_S) == []


def test_hint_during_a_lookup_schedules_another_one() -> None:
    lookups = Lookups()
    lookups.follow("a", 0.0)
    lookups.start(0.0)
    lookups.hint("a", 1.0)
    assert lookups.start(1.0) == []
    lookups.on_found("a", HERE, 2.0)
    assert lookups.start(2.0) == []
    assert lookups.start(2.0 + HINT_S) == ["a"]
    lookups.on_found("a", HERE, 4.0)
    assert lookups.start(4.0 + HINT_S) == []
    assert lookups.host_addresses("a", 4.0) == (HERE, 3.0)


def test_name_that_is_not_followed_is_looked_up_on_request() -> None:
    lookups = Lookups()
    idle = [lookups.idle]
    assert lookups.ask("b", 0.0)
    idle.append(lookups.idle)
    assert lookups.start(0.0) == ["b"]
    idle.append(lookups.idle)
    lookups.on_found("b", HERE, 0.0)
    assert [*idle, lookups.idle] == [True, False, False, True]
    assert lookups.addresses("b", REFRESH_S) == HERE
    assert lookups.start(REFRESH_S + 1) == []
    assert lookups.addresses("b", REFRESH_S + 1) == ()
    assert lookups.ask("b", REFRESH_S + 1)
    assert lookups.start(REFRESH_S + 1) == ["b"]
    assert lookups.on_failed("b", "no such name", REFRESH_S + 1) == []  # handlers' names must not fill the log
    assert not lookups.ask("b", REFRESH_S + 1)
    assert lookups.ask("b", REFRESH_S + 1 + ASKED_RETRY_S)


def test_hanging_lookups_leave_room_for_others() -> None:
    lookups = Lookups()
    for number in range(2 * AT_ONCE):
        lookups.follow(f"bad{number}", 0.0)
    assert len(lookups.start(0.0)) == AT_ONCE
    lookups.tick(PATIENCE_S)
    hanging = [f"bad{number}" for number in range(2 * AT_ONCE)]
    for turn in range(1, 5):
        now = turn * 1000.0
        for name in hanging:
            lookups.on_failed(name, "no answer", now)
        for name in lookups.start(now + LAST_RETRY_S):
            assert name in hanging
        lookups.tick(now + LAST_RETRY_S + PATIENCE_S)
    for name in hanging:
        lookups.on_failed(name, "no answer", 9000.0)
    assert len(lookups.start(9000.0 + LAST_RETRY_S)) == SLOW_AT_ONCE
    lookups.follow("good", 9000.0 + LAST_RETRY_S)
    assert lookups.start(9000.0 + LAST_RETRY_S) == ["good"]


def test_lookups_that_turn_out_to_hang_make_room_for_names_of_which_nothing_is_known() -> None:
    """At a start all are; and the system may take half a minute to give a lookup up."""
    lookups = Lookups()
    for number in range(AT_ONCE):
        lookups.follow(f"bad{number}", 0.0)
    lookups.follow("good", 0.0)
    assert len(lookups.start(0.0)) == AT_ONCE
    assert lookups.start(PATIENCE_S) == []
    lookups.tick(PATIENCE_S)
    assert lookups.start(PATIENCE_S) == ["good"]
    for number in range(3 * AT_ONCE):
        lookups.follow(f"more{number}", 0.0)
    assert len(lookups.start(PATIENCE_S)) == AT_ONCE - 1
    lookups.tick(2 * PATIENCE_S)
    assert lookups.start(2 * PATIENCE_S) == []  # no more threads than these


def test_names_from_handlers_cannot_delay_configured_ones() -> None:
    lookups = Lookups()
    asked = [lookups.ask(f"s{number}", float(number)) for number in range(2 * REMEMBERED)]
    assert asked.count(True) == REMEMBERED == len(lookups)
    begun = lookups.start(3000.0)
    assert len(begun) == ASKED_AT_ONCE
    lookups.follow("listed", 3000.0)
    assert lookups.start(3000.0) == ["listed"]
    lookups.tick(3000.0 + PATIENCE_S)
    assert not any(lookups.is_asked(f"s{number}") for number in range(2 * REMEMBERED))
    assert lookups.ask(
        "another", 3000.0 + PATIENCE_S
    )  # lookups that did not begin are forgotten in favour of the new name
    assert len(lookups) == REMEMBERED + 1


def lines_of(step: Callable[[], object]) -> int:
    """Return the number of lines, and of rounds of loops, that a step runs."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        step()
    finally:
        sys.settrace(before)
    return lines


def test_thousand_names_of_one_reply_cost_each_the_same() -> None:
    """All names were looked at for each: 1,000 hosts in one reply held the loop for a third of a second."""
    lookups = Lookups()
    under_way: list[str] = []

    def asked(host: str) -> None:
        lookups.ask(host, 0.0)
        under_way.extend(lookups.start(0.0))

    def failed(host: str) -> None:
        lookups.on_failed(host, "no such name", 1.0)
        under_way.extend(lookups.start(1.0))

    few = max(lines_of(partial(asked, f"first{number}")) for number in range(ASKED_AT_ONCE))
    many = [lines_of(partial(asked, f"s{number}")) for number in range(REMEMBERED - ASKED_AT_ONCE)]
    many += [lines_of(partial(failed, under_way[number])) for number in range(REMEMBERED - ASKED_AT_ONCE)]
    many += [lines_of(partial(asked, f"t{number}")) for number in range(REMEMBERED - ASKED_AT_ONCE)]
    assert max(many) < 2 * few


HOSTS = st.sampled_from([f"n{number}" for number in range(6)])
STEPS = st.lists(
    st.tuples(st.sampled_from(["follow", "ask", "hint", "found", "failed", "wait"]), HOSTS, st.floats(0.0, 40.0)),
    max_size=80,
)


@given(STEPS)
def test_requesters_never_wait_long_and_no_name_has_two_lookups_at_once(
    steps: list[tuple[str, str, float]],
) -> None:
    lookups, now = Lookups(), 0.0
    running: set[str] = set()
    followed: set[str] = set()
    waiting: dict[str, float] = {}
    for what, host, pause in steps:
        if what == "follow":
            lookups.follow(host, now)
            followed.add(host)
        elif what == "ask" and not lookups.addresses(host, now):
            if lookups.ask(host, now):
                waiting.setdefault(host, now)
        elif what == "hint":
            lookups.hint(host, now)
        elif what in ("found", "failed") and host in running:
            running.discard(host)
            if what == "found":
                lookups.on_found(host, HERE, now)
                assert lookups.addresses(host, now) == HERE
            else:
                lookups.on_failed(host, "no such name", now)
        elif what == "wait":
            now += pause
        lookups.tick(now)
        begun = lookups.start(now)
        assert running.isdisjoint(begun)
        running.update(begun)
        for asked, since in list(waiting.items()):
            if not lookups.is_asked(asked):
                del waiting[asked]
            else:
                assert now - since < 2 * PATIENCE_S
    now += LAST_RETRY_S
    for host in running:
        lookups.on_failed(host, "no such name", now)
    assert followed <= {*lookups.start(now + REFRESH_S)}
