"""Wrong passwords make an account and an address wait, longer each time, and never make the table grow."""

from hypothesis import given
from hypothesis import strategies as st

from bester.broker.lockout import FAILURES, FIRST_WAIT_S, FORGET_S, LONGEST_WAIT_S, WINDOW_S, Lockout

KEY = ("user tim",)


def fail(lockout: Lockout, times: int, now: float) -> None:
    for _ in range(times):
        lockout.failed(KEY, now)


def test_four_wrong_passwords_cost_nothing() -> None:
    lockout = Lockout()
    fail(lockout, FAILURES - 1, 100.0)
    assert lockout.wait_s(KEY, 100.0) == 0.0


def test_the_fifth_within_the_window_makes_one_wait() -> None:
    lockout = Lockout()
    fail(lockout, FAILURES, 100.0)
    assert lockout.wait_s(KEY, 100.0) == FIRST_WAIT_S
    assert lockout.wait_s(KEY, 100.0 + FIRST_WAIT_S) == 0.0


def test_slow_typing_is_no_attack() -> None:
    lockout = Lockout()
    for turn in range(50):
        now = turn * (WINDOW_S / 3)
        fail(lockout, 1, now)
        assert lockout.wait_s(KEY, now) == 0.0


def test_each_further_failure_doubles_the_wait_up_to_the_longest() -> None:
    lockout = Lockout()
    now = 0.0
    fail(lockout, FAILURES, now)
    waits = []
    for _ in range(10):
        waits.append(lockout.wait_s(KEY, now))
        now += waits[-1]
        fail(lockout, 1, now)
    assert waits[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    assert set(waits[7:]) == {LONGEST_WAIT_S}


def test_success_clears_the_account_and_not_the_address() -> None:
    lockout = Lockout()
    keys = ("user tim", "address 192.0.2.1")
    for _ in range(FAILURES):
        lockout.failed(keys, 0.0)
    lockout.succeeded("user tim")
    assert lockout.wait_s(["user tim"], 0.0) == 0.0
    assert lockout.wait_s(keys, 0.0) > 0.0


def test_after_a_long_peace_one_starts_afresh() -> None:
    lockout = Lockout()
    fail(lockout, FAILURES + 3, 0.0)
    later = FORGET_S + 1.0
    fail(lockout, FAILURES - 1, later)
    assert lockout.wait_s(KEY, later) == 0.0


def test_the_table_is_bounded_and_keeps_the_latest() -> None:
    lockout = Lockout(key_limit=10)
    for number in range(100):
        for _ in range(FAILURES):
            lockout.failed([f"address {number}"], 0.0)
    assert len(lockout) == 10
    assert lockout.wait_s(["address 99"], 0.0) > 0.0
    assert lockout.wait_s(["address 0"], 0.0) == 0.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 40.0)), max_size=60))
def test_any_five_failures_within_the_window_make_one_wait(steps: list[tuple[str, float]]) -> None:
    lockout = Lockout()
    now = 0.0
    seen: dict[str, list[float]] = {}
    for key, pause in steps:
        now += pause
        if lockout.wait_s([key], now) == 0.0:
            lockout.failed([key], now)
            seen.setdefault(key, []).append(now)
        times = seen.get(key, [])
        recent = [at for at in times if now - at <= WINDOW_S]
        if times and times[-1] == now and len(recent) >= FAILURES:
            assert lockout.wait_s([key], now) >= FIRST_WAIT_S
        assert lockout.wait_s([key], now) <= LONGEST_WAIT_S
