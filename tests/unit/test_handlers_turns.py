"""Turns of senders: by the time that their requests have taken; each sender's requests keep their order."""

from __future__ import annotations

import random

import pytest

from bester.broker.wire.messages import Meta, Request
from bester.handlers import App
from bester.handlers.turns import LEAST_S, NEWCOMERS, REMEMBERED, Job, Turns

app = App()
app.handler("x", inline=True)(lambda message: None)


def job(token: int, user: str | None = None, peer: str | None = None) -> Job:
    meta: Meta = {} if peer is None else {"peer": peer}
    return Request(token, "x", b"1", user, meta), app.routes["x"], 0, 0.0


def user_of(taken: Job) -> str:
    user = taken[0].user
    assert user is not None
    return user


def test_a_sender_that_comes_is_next_and_those_who_wait_share_the_time() -> None:
    turns = Turns(job(number, "eve") for number in range(20))
    turns.charge(turns.popleft(), 1.0)
    turns.append(job(100, "alice"))
    turns.append(job(101, peer="s2"))
    assert [turns.popleft()[0].token for _ in range(3)] == [100, 101, 1]


@pytest.mark.parametrize("seed", range(20))
def test_equal_shares_of_the_time_whatever_a_request_takes(seed: int) -> None:
    chance = random.Random(seed)
    costs_s = {f"u{number}": chance.choice((0.0001, 0.001, 0.01, 0.1)) for number in range(5)}
    turns = Turns()
    number, last = 0, dict.fromkeys(costs_s, -1)
    used = dict.fromkeys(costs_s, 0.0)
    for user in costs_s:
        turns.append(job(number := number + 1, user))
        turns.append(job(number := number + 1, user))
    while sum(used.values()) < 10.0:
        taken = turns.popleft()
        user = user_of(taken)
        assert last[user] < taken[0].token  # in order
        last[user] = taken[0].token
        used[user] += costs_s[user]
        turns.charge(taken, costs_s[user])
        turns.append(job(number := number + 1, user))
    assert max(used.values()) - min(used.values()) <= 10.0 * LEAST_S / min(costs_s.values()) + 2 * max(costs_s.values())


def test_endless_newcomers_do_not_keep_out_one_who_always_waits() -> None:
    turns = Turns(job(number, "eve") for number in range(3))
    turns.charge(turns.popleft(), 0.05)
    for number in range(10 * NEWCOMERS):
        turns.append(job(number, f"new {number}"))
        taken = turns.popleft()
        if user_of(taken) == "eve":
            break
        turns.charge(taken, 0.05)
    else:
        pytest.fail("eve has no turn")
    assert NEWCOMERS / 2 < number <= NEWCOMERS + 1


@pytest.mark.parametrize("took_s", [0.001, None])
def test_senders_that_are_gone_are_forgotten(took_s: float | None) -> None:
    turns = Turns([job(0, "u0")])
    for number in range(1, 50 * REMEMBERED):
        turns.append(job(number, f"u{number}"))
        taken = turns.popleft()
        if took_s is not None:
            turns.charge(taken, took_s)
    assert len(turns._used) < 4 * NEWCOMERS  # those who have had more than the others, and those not looked at yet
    turns.popleft()
    assert not turns._used  # nobody waits
    with pytest.raises(IndexError):
        turns.popleft()


def test_a_request_of_long_ago_keeps_its_sender_back_no_more() -> None:
    turns = Turns([job(0, "alice")])
    turns.charge(turns.popleft(), 60.0)
    for number in range(10):  # nobody waits for anybody
        turns.append(job(number, "bob"))
        turns.charge(turns.popleft(), 0.001)
    turns.extend(job(number, "bob") for number in range(20, 25))
    turns.append(job(30, "alice"))
    first = turns.popleft()
    turns.charge(first, 0.1)
    assert 30 in (first[0].token, turns.popleft()[0].token)


def test_a_request_that_runs_while_nobody_waits_counts() -> None:
    turns = Turns([job(0, "eve")])
    running = turns.popleft()
    turns.extend([job(1, "eve"), job(2, "alice"), job(3, "alice")])
    turns.charge(running, 1.0)
    assert [turns.popleft()[0].token for _ in range(3)] == [2, 3, 1]


def test_a_queue_that_is_cleared_is_empty() -> None:
    turns = Turns(job(number, "eve") for number in range(3))
    assert [each[0].token for each in turns] == [0, 1, 2]
    turns.clear()
    assert not turns
    assert list(turns) == []
    turns.charge(job(0, "eve"), 1.0)  # of a request that was taken before
    turns.append(job(5, "eve"))
    assert turns.popleft()[0].token == 5


def test_what_is_taken_and_comes_back_keeps_its_order_and_what_its_senders_have_had() -> None:
    turns = Turns(job(number, "eve") for number in range(4))
    turns.charge(turns.popleft(), 1.0)
    turns.append(job(4, "alice"))
    taken = turns.take_all()
    assert not turns
    turns.append(job(5, "eve"))
    turns.append(job(6, "alice"))
    turns.extendleft(reversed(taken))
    assert [turns.popleft()[0].token for _ in range(len(turns))] == [4, 6, 1, 2, 3, 5]
