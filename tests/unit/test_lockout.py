"""Wrong passwords delay one user at one address; guesses are put off, and a user with the right password gets in."""

from __future__ import annotations

import math
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.lockout import (
    BUDGET,
    BUDGET_S,
    FAILURES,
    FIRST_WAIT_S,
    FORGET_S,
    GREYLIST,
    GREYLIST_PER_NET,
    LONGEST_WAIT_S,
    MARKS,
    PACE_S,
    PAIRS,
    PUT_OFF_S,
    RESERVE,
    RETRY_WITHIN_S,
    TURN_S,
    WINDOW_S,
    Allowed,
    Lockout,
    Refused,
)

HERE, THERE = "192.0.2.7", "192.0.2.8"
RIGHT = b"the right one"


class World:
    """A lockout, and attackers who never repeat a guess. `checks` counts the checked passwords."""

    def __init__(self) -> None:
        self.lockout = Lockout()
        self.now = 1000.0
        self.checks = 0
        self._guesses = count()

    def guess(self, user: str = "tim", net: str = HERE, mark: bytes | None = None) -> Allowed | Refused:
        """Try a wrong password, a new one by default."""
        guess = b"%d" % next(self._guesses) if mark is None else mark
        decision = self.lockout.decide(user, net, guess, self.now)
        if isinstance(decision, Allowed):
            self.checks += 1
            self.lockout.on_wrong(user, net, guess, self.now)
        return decision

    def log_in(self, user: str = "tim", net: str = HERE) -> Allowed | Refused:
        """Try the right password."""
        decision = self.lockout.decide(user, net, RIGHT, self.now)
        if isinstance(decision, Allowed):
            self.checks += 1
            self.lockout.on_right(user, net)
        return decision

    def comes_through(self, user: str = "tim", net: str = HERE, *, meanwhile: int = 0) -> float:
        """Log in as a client does, with a retry after each `retry_s`, under `meanwhile` guesses a second at tim
        from the same address; return the time taken in seconds."""
        began = self.now
        while True:
            decision = self.log_in(user, net)
            if isinstance(decision, Allowed):
                return self.now - began
            assert decision.retry_s is not None
            for _ in range(max(1, math.ceil(decision.retry_s))):
                for _ in range(meanwhile):
                    self.now += 1 / meanwhile
                    self.guess("tim", net)
                self.now += 0 if meanwhile else 1


def wait_s(decision: Allowed | Refused) -> float:
    return 0.0 if isinstance(decision, Allowed) else decision.retry_s or 0.0


@pytest.fixture
def world() -> World:
    return World()


# --- one user at one address ------------------------------------------------------------------------------------------


def test_four_wrong_passwords_cost_nothing(world: World) -> None:
    for _ in range(FAILURES - 1):
        assert world.guess() in (Allowed(2), Allowed(3))
    assert world.log_in() == Allowed(3)


def test_fifth_wrong_password_delays_that_user_at_that_address_alone(world: World) -> None:
    for _ in range(FAILURES):
        world.guess()
    assert world.log_in("ann", HERE) == Allowed(2)
    assert world.log_in("tim", THERE) == Allowed(2)
    assert world.log_in() == Refused(FIRST_WAIT_S)
    world.now += FIRST_WAIT_S
    assert isinstance(world.log_in(), Allowed)
    assert world.guess() == Allowed(0)  # the wrong passwords are forgotten


def test_same_wrong_password_counts_once(world: World) -> None:
    assert world.guess(mark=b"old") == Allowed(2)
    for _ in range(1000):
        world.now += 0.4
        assert world.guess(mark=b"old") == Refused(None)
    assert world.checks == 1
    assert world.log_in() == Allowed(3)


def test_a_few_programs_with_old_passwords_lock_no_user_out(world: World) -> None:
    for turn in range(50):
        for program in range(FAILURES - 1):
            world.guess(mark=b"old %d" % program)
        assert isinstance(world.log_in(), Allowed), turn
        world.now += 1.0


def test_number_of_remembered_wrong_passwords_is_bounded(world: World) -> None:
    for number in range(MARKS + 1):
        world.lockout.on_wrong("tim", HERE, b"%d" % number, world.now)
    world.now += LONGEST_WAIT_S * 2
    assert world.lockout.decide("tim", HERE, b"1", world.now) == Refused(None)
    assert world.lockout.decide("tim", HERE, b"0", world.now) == Allowed(3)


def test_slow_typing_is_no_attack(world: World) -> None:
    for _ in range(50):
        assert isinstance(world.guess(), Allowed)
        world.now += WINDOW_S / 3


def test_each_further_failure_doubles_the_wait_up_to_the_longest(world: World) -> None:
    for _ in range(FAILURES):
        world.guess()
    waits = []
    for _ in range(10):
        wait = wait_s(world.lockout.decide("tim", HERE, b"x", world.now))
        waits.append(wait)
        world.now += wait + max(TURN_S, wait / 4)
        assert isinstance(world.guess(), Allowed)
    assert waits[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    assert set(waits[7:]) == {LONGEST_WAIT_S}


def test_user_starts_afresh_after_a_long_time_without_failures(world: World) -> None:
    for _ in range(FAILURES + 3):
        world.guess()
        world.now += LONGEST_WAIT_S * 2
    world.now += FORGET_S
    for _ in range(FAILURES - 1):
        assert isinstance(world.guess(), Allowed)
    assert isinstance(world.log_in(), Allowed)


def test_login_made_during_the_wait_comes_first_afterwards(world: World) -> None:
    for _ in range(FAILURES):
        world.guess()
    assert world.log_in() == Refused(FIRST_WAIT_S)
    world.now += FIRST_WAIT_S + 0.1
    assert wait_s(world.guess()) == pytest.approx(TURN_S - 0.1)  # a user without an account
    assert isinstance(world.log_in(), Allowed)


def test_new_password_need_not_wait_longer_without_earlier_logins(world: World) -> None:
    for _ in range(FAILURES):
        world.guess()
    world.now += FIRST_WAIT_S
    assert isinstance(world.log_in(), Allowed)


# --- attackers, and a user who knows the password ------------------------------------------------------------


def test_a_thousand_addresses_with_four_guesses_each(world: World) -> None:
    for turn in range(4):
        for number in range(1000):
            world.guess("tim", f"10.0.{number // 250}.{number % 250}")
            world.now += 0.001
        if turn == 1:
            assert world.comes_through("tim", THERE) <= 2
    assert world.comes_through("tim", HERE) <= 2
    assert world.checks <= BUDGET + 4 * 1000 * 0.001 * BUDGET / BUDGET_S + 10


def test_one_address_at_all_users_known_or_not(world: World) -> None:
    for number in range(5000):
        world.guess(f"user {number}", HERE)
        world.now += 0.001
    assert world.checks <= BUDGET + 5 * BUDGET / BUDGET_S + 1
    assert world.comes_through("ann", HERE) <= 2
    assert world.comes_through("ann", THERE) == 0


def test_guesses_at_an_honest_user_from_the_same_address(world: World) -> None:
    """Guess all the time from behind the same router, never the same password twice."""
    for _ in range(60):
        for _ in range(20):
            world.guess()
            world.now += 0.05
        assert world.log_in("ann") in (Allowed(0), Allowed(2), Allowed(1))
    assert world.comes_through(meanwhile=20) <= LONGEST_WAIT_S + 2
    assert world.checks < 100


def test_user_who_has_logged_in_from_an_address_is_not_deferred_there(world: World) -> None:
    assert world.log_in("tim", HERE) == Allowed(2)
    for number in range(3000):
        world.guess("tim", f"10.0.{number // 250}.{number % 250}")
        world.guess(f"user {number}", HERE)
    assert world.log_in("tim", HERE) == Allowed(0)
    assert wait_s(world.log_in("tim", THERE)) == PUT_OFF_S


def test_mistyping_user_has_a_reserve_during_an_attack(world: World) -> None:
    for number in range(3000):
        world.guess("tim", f"10.0.{number // 250}.{number % 250}")
    decision = world.guess("tim", THERE, b"typo")
    world.now += wait_s(decision) + 0.01
    assert world.guess("tim", THERE, b"typo") == Allowed(1)
    assert world.comes_through("tim", THERE) <= 2


def test_repeated_guesses_are_bound_by_the_reserve(world: World) -> None:
    """Repeat every guess, as an attacker who knows the rules does: the second failure counts."""
    nets = [f"10.0.{number // 250}.{number % 250}" for number in range(200)]
    for turn in range(30):
        marks = {net: b"%d %d" % (turn, number) for number, net in enumerate(nets)}
        for _ in range(2):
            for net, mark in marks.items():
                world.guess("tim", net, mark)
            world.now += PUT_OFF_S
    first = len(nets)
    assert world.checks <= first + BUDGET + RESERVE + 30 * 2 * PUT_OFF_S * BUDGET / BUDGET_S + FAILURES
    assert world.comes_through("tim", THERE) <= 2


class Siege:
    """An attack that comes again with each guess: at many names from one address, or at one name from everywhere."""

    def __init__(self, world: World, per_s: int, *, one_address: bool) -> None:
        self.world = world
        self._per_s = per_s
        self._one_address = one_address
        self._put_off: list[tuple[str, str, bytes]] = []
        self._serial = 0

    def goes_on(self, seconds: int) -> None:
        for _ in range(seconds):
            again, self._put_off = self._put_off, []
            for turn in range(self._per_s):
                if turn < len(again):
                    self.world.guess(*again[turn])
                self._serial += 1
                number = self._serial
                user, net = (f"user {number}", HERE) if self._one_address else ("tim", f"10.{number}")
                mark = b"siege %d" % number
                if isinstance(self.world.guess(user, net, mark), Refused):
                    self._put_off.append((user, net, mark))
                self.world.now += 1.1 / self._per_s


@pytest.mark.parametrize("one_address", [False, True])
@pytest.mark.parametrize("per_s", [2, 10])
@pytest.mark.parametrize("typos", [1, 2])
def test_user_who_mistypes_during_a_siege_comes_through_within_minutes(
    world: World, one_address: bool, per_s: int, typos: int
) -> None:
    siege = Siege(world, per_s, one_address=one_address)
    siege.goes_on(120)
    net = HERE if one_address else THERE
    for number in range(typos):
        while not isinstance(asked := world.guess("tim", net, b"typo %d" % number), Allowed):
            assert asked.retry_s is not None
            siege.goes_on(math.ceil(asked.retry_s))
    began = world.now
    while not isinstance(asked := world.log_in("tim", net), Allowed):
        assert asked.retry_s is not None
        siege.goes_on(math.ceil(asked.retry_s))
    assert world.now - began <= (PACE_S + 2) * 1.1 * 2 ** (typos - 1) + 2
    assert world.guess("tim", net) == Allowed(0)


def test_slow_pace_of_each_address_bounds_what_a_long_attack_gets(world: World) -> None:
    """For an hour, from addresses that come again with each guess as soon as they may."""
    nets = [f"10.0.0.{number}" for number in range(100)]
    marks = {net: net.encode() for net in nets}
    for second in range(3600):
        for net in nets:
            if isinstance(world.guess("tim", net, marks[net]), Allowed):
                marks[net] = b"%d %s" % (second, net.encode())
        world.now += 1.0
    shared = BUDGET + RESERVE + 3600 * BUDGET / BUDGET_S
    rounds = 3600 / FORGET_S + 1  # after each, an address starts afresh
    paced = 1 + math.log2(FORGET_S / PACE_S)
    assert world.checks <= shared + len(nets) * rounds * paced


def test_end_of_an_attack_is_soon_forgotten(world: World) -> None:
    for number in range(10_000):
        world.guess("tim", f"10.{number // 60000}.{number // 250}.{number % 250}")
    world.now += (RESERVE + 2) * BUDGET_S / BUDGET
    assert world.log_in("tim", THERE) == Allowed(2)


def test_deferred_password_may_be_repeated_for_a_while(world: World) -> None:
    for number in range(200):
        world.guess(f"user {number}", HERE)
    assert world.log_in("ann") == Refused(PUT_OFF_S)
    world.now += PUT_OFF_S / 2
    assert world.log_in("ann") == Refused(PUT_OFF_S)  # too early
    world.now += RETRY_WITHIN_S
    for number in range(200):
        world.guess(f"user {number}", HERE)
    assert world.log_in("ann") == Refused(PUT_OFF_S)  # too late
    world.now += PUT_OFF_S
    assert world.log_in("ann") == Allowed(1)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_full_tables_are_bounded_and_lock_no_user_out() -> None:
    world = World()
    for number in range(PAIRS + 500):
        world.lockout.on_right(f"user {number}", HERE)
        world.lockout.on_wrong(f"user {number}", f"net {number}", b"x", world.now)
    pairs, trusted, users, nets, _ = world.lockout.sizes()
    assert (pairs, trusted, users, nets) == (PAIRS,) * 4
    for number in range(GREYLIST + 500):
        world.lockout.decide("tim", f"net {number % 3000}", b"%d" % number, world.now)
    for _ in range(2 * BUDGET):
        world.lockout.on_wrong("tim", "far", b"y", world.now)
    for number in range(GREYLIST + 500):
        world.lockout.decide("tim", f"net {number % 3000}", b"%d" % number, world.now)
    assert world.lockout.sizes()[-1] <= GREYLIST
    assert world.comes_through("tim", "elsewhere") <= 2


def test_one_address_cannot_displace_the_marks_of_others() -> None:
    world = World()
    for _ in range(BUDGET + RESERVE):
        world.lockout.on_wrong("tim", "far", b"y", world.now)
    assert world.log_in("tim", THERE) == Refused(PUT_OFF_S)
    for number in range(2 * GREYLIST):
        world.lockout.decide("tim", HERE, b"%d" % number, world.now)
    assert world.lockout.sizes()[-1] == GREYLIST_PER_NET + 1
    world.now += PUT_OFF_S
    assert world.log_in("tim", THERE) == Allowed(1)


USERS = st.sampled_from(["tim", "ann", "bob"])
NETS = st.sampled_from([HERE, THERE, "2001:db8::", ""])
STEPS = st.lists(
    st.tuples(st.sampled_from(["guess", "guess", "same", "right", "wait"]), USERS, NETS, st.floats(0.0, 40.0)),
    max_size=120,
)


@given(STEPS, st.sampled_from(["eve", "tim"]), st.sampled_from(["198.51.100.1", HERE]))
def test_user_without_failures_logs_in_within_two_seconds_during_any_attack(
    steps: list[tuple[str, str, str, float]], user: str, net: str
) -> None:
    world = World()
    failed = False
    for what, who, where, pause in steps:
        if what == "wait":
            world.now += pause
        elif what == "right":
            decision = world.log_in(who, where)
            failed = failed and not ((who, where) == (user, net) and isinstance(decision, Allowed))
        else:
            decision = world.guess(who, where, b"same" if what == "same" else None)
            failed = failed or ((who, where) == (user, net) and isinstance(decision, Allowed))
        if not isinstance(decision := world.lockout.decide(user, net, b"another", world.now), Allowed):
            assert decision.retry_s is not None
            assert decision.retry_s <= LONGEST_WAIT_S + LONGEST_WAIT_S / 4
    if not failed:
        assert world.comes_through(user, net) <= 2


@given(STEPS)
def test_any_five_failures_within_the_window_make_a_user_wait(steps: list[tuple[str, str, str, float]]) -> None:
    world = World()
    seen: dict[tuple[str, str], list[float]] = {}
    for what, who, where, pause in steps:
        world.now += pause / 8
        if what == "right":
            if isinstance(world.log_in(who, where), Allowed):
                seen.pop((who, where), None)
            continue
        if isinstance(world.guess(who, where), Allowed):
            times = seen.setdefault((who, where), [])
            times.append(world.now)
            if len([at for at in times if world.now - at <= WINDOW_S]) >= FAILURES:
                wait = wait_s(world.lockout.decide(who, where, b"new", world.now))
                assert wait >= FIRST_WAIT_S - 1e-6  # the clock is a float
