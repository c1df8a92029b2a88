"""The wall clock may be wrong, be set, or jump: messages keep their time to live, and dead letters have true dates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.core.clock import JUMP_S, Clock
from bester.broker.core.settings import Settings
from bester.broker.store_requests import Bounds, PurgeOutcomes, SaveClock
from bester.broker.wire.messages import Deliver
from tests.unit.core_stand import Stand, clients

YEAR_S = 365 * 24 * 3600.0
TTL_S = 100.0
JUMPS = [2.5 * YEAR_S, -2.5 * YEAR_S, 3600.0, -3600.0, TTL_S + 1, -TTL_S - 1]


def town() -> Stand:
    settings = Settings("s1", bounds=Bounds(ttl_s=TTL_S))
    return Stand(settings, accounts=frozenset({"alice", "bob"}), wall_offset_s=50 * YEAR_S)


def queue(stand: Stand) -> str:
    """Queue a message for bob; return its id."""
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    token = stand.submit(bridge, "chat")
    stand.answer(chat, clients("bob"))
    report = stand.report(bridge, token)
    assert report.recipients == {"bob": "queued"}
    assert report.message is not None
    return report.message


def became(stand: Stand, message: str) -> str:
    said = stand.ask(stand.bridge("alice"), "outcome", [1, message]).value
    assert isinstance(said, dict)
    return str(said["bob"])


# --- a jump while the server runs ---


@pytest.mark.parametrize("by_s", JUMPS)
def test_time_to_live_is_kept_over_a_jump_of_the_clock(by_s: float) -> None:
    stand = town()
    message = queue(stand)
    stand.wait(TTL_S / 2)
    stand.wall_offset_s += by_s
    stand.wait(TTL_S / 2 - 2)
    assert became(stand, message) == "queued"
    stand.wait(4)
    assert became(stand, message) == "failed:expired"


@pytest.mark.parametrize("by_s", JUMPS)
@pytest.mark.parametrize("ticks", [0, 1], ids=["unnoticed", "noticed"])
@pytest.mark.parametrize("boot", ["boot", "", "another"], ids=["the process", "an unknown boot", "the machine"])
def test_time_to_live_is_kept_over_a_jump_and_a_restart(by_s: float, ticks: int, boot: str) -> None:
    if not ticks and boot != "boot":
        return  # a clock that is set in the tick in which the machine stops leaves no trace
    stand = town()
    if not boot:
        stand.boot = boot
        stand.restart()
    message = queue(stand)
    stand.tick()
    stand.wall_offset_s += by_s
    for _ in range(ticks):
        stand.tick()
    stand.boot = boot
    stand.restart()
    stand.wait(TTL_S - 2)
    assert became(stand, message) == "queued"
    stand.wait(4)
    assert became(stand, message) == "failed:expired"


def test_clock_set_after_each_boot_costs_no_time_to_live() -> None:
    stand = town()
    message = queue(stand)
    for _ in range(3):
        stand.tick()
        stand.boot += "'"
        stand.wall_offset_s -= 20 * YEAR_S
        stand.restart()
        stand.wait(5)
        assert became(stand, message) == "queued"
        stand.wall_offset_s += 20 * YEAR_S
        stand.wait(5)
        assert became(stand, message) == "queued"
    stand.wait(TTL_S)
    assert became(stand, message) == "failed:expired"


def test_time_counts_while_the_machine_is_off() -> None:
    stand = town()
    message = queue(stand)
    stand.tick()
    stand.boot = "another"
    stand.wall_offset_s += TTL_S + 1
    stand.restart()
    stand.wait(3)
    assert became(stand, message) == "failed:expired"


def test_time_counts_while_the_process_is_off_whatever_the_wall_clock_shows() -> None:
    stand = town()
    message = queue(stand)
    stand.tick()
    stand.now += TTL_S + 1
    stand.wall_offset_s -= YEAR_S
    stand.restart()
    stand.wait(3)
    assert became(stand, message) == "failed:expired"


def test_jump_is_noticed_and_saved_at_once_and_a_drift_is_not() -> None:
    stand = town()
    stand.wait(1)
    stand.commits = False
    stand.wall_offset_s += JUMP_S / 2
    stand.tick()
    assert not [notice for notice in stand.notices if notice.event == "clock-jumped"]
    assert not [write for write in stand.writes if isinstance(write, SaveClock)]
    stand.wall_offset_s += 3600.0
    stand.tick()
    assert [notice.fields for notice in stand.notices if notice.event == "clock-jumped"] == [{"seconds": 3600.0}]
    (save,) = [write for write in stand.writes if isinstance(write, SaveClock)]
    assert save.state.skew_s == pytest.approx(-3600.0 - JUMP_S / 2)


def test_drifts_that_add_up_are_saved() -> None:
    stand = town()
    for _ in range(10):
        stand.wall_offset_s += 0.9
        stand.tick()
    assert not [notice for notice in stand.notices if notice.event == "clock-jumped"]
    saved = stand.store.copy().open().clock
    assert saved is not None
    assert saved.skew_s == pytest.approx(-9.0, abs=JUMP_S)


# --- dates ---


def test_dead_letters_and_traces_are_dated_by_the_present_wall_clock() -> None:
    settings = Settings("s1", budgets={})
    stand = Stand(settings, wall_offset_s=0.0)
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat")
    message = stand.request(chat).meta["id"]
    stand.wall_offset_s = 54 * YEAR_S
    stand.wait(stand.settings.limits.request_s + 1)
    assert [letter.at_s for letter in stand.dead()] == [pytest.approx(stand.wall_s, abs=2)]
    operator = stand.join("operator", "o")
    for step in stand.ask(operator, "trace", message).value:
        assert step["at_ms"] / 1000 == pytest.approx(stand.wall_s, abs=stand.settings.limits.request_s + 2)


def test_outcomes_are_purged_by_the_stores_time() -> None:
    stand = town()
    stand.commits = False
    stand.wait(5.0)
    stand.wall_offset_s += YEAR_S
    stand.wait(65.0)
    first, second = [write for write in stand.writes if isinstance(write, PurgeOutcomes)]
    assert second.before_s - first.before_s < 65.0


# --- messages expired at the start ---


def test_message_expired_at_the_start_is_not_delivered() -> None:
    stand = town()
    message = queue(stand)
    stand.now += TTL_S + 1
    stand.restart()
    bridge = stand.bridge("bob")
    assert stand.heard_of(bridge, Deliver) == []
    assert became(stand, message) == "failed:expired"
    assert stand.queued == (0, 0)


def test_expired_messages_alone_are_left_out_of_a_delivery() -> None:
    stand = town()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    wishes: list[dict[str, Any]] = [{"ttl_s": 5.0}, {"ttl_s": 50.0}, {"ttl_s": 5.0}, {}]
    for body, wish in zip((b"1", b"2", b"3", b"4"), wishes, strict=True):
        stand.submit(bridge, "chat", body, **wish)
        stand.answer(chat, clients("bob", body=body))
    stand.now += 6.0
    stand.restart()
    bridge = stand.bridge("bob")
    assert [deliver.body for deliver in stand.heard_of(bridge, Deliver)] == [b"2", b"4"]


# --- the clock itself ---

seconds = st.floats(-4e9, 4e9)


@given(st.lists(st.tuples(st.sampled_from(["pass", "set", "restart", "boot"]), seconds), max_size=20))
def test_stores_time_never_goes_back_and_follows_now_while_the_machine_runs(what: list[tuple[str, float]]) -> None:
    now, wall_s, boot = 1000.0, 1e9, 0
    clock = Clock(now, wall_s, "0", None)
    before = clock.stored(now)
    for event, value in what:
        passed = abs(value) / 1e6
        ran = True
        match event:
            case "pass":
                now, wall_s = now + passed, wall_s + passed
            case "set":
                wall_s += value
                passed = 0.0
            case "restart":
                saved = clock.save(now)
                now, wall_s = now + passed, wall_s + value
                clock = Clock(now, wall_s, str(boot), saved)
            case "boot":
                saved = clock.save(now)
                boot, ran = boot + 1, False
                now, wall_s = passed, wall_s + value
                clock = Clock(now, wall_s, str(boot), saved)
                passed = max(0.0, value)
        clock.read(now, wall_s)
        stored = clock.stored(now)
        assert clock.wall(now) == pytest.approx(wall_s, abs=1e-3)
        assert stored >= before - 1e-3
        assert stored - before == pytest.approx(passed, abs=1e-2) or not ran
        before = stored
