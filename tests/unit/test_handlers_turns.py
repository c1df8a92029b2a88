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


def test_senders_that_are_gone_are_forgotten() -> None:
    turns = Turns()
    for number in range(20 * REMEMBERED):
        turns.append(job(number, f"u{number}"))
        turns.charge(turns.popleft(), 0.001)
    assert len(turns._used) < 4 * NEWCOMERS  # those who have had more than the others, and those not looked at yet
    with pytest.raises(IndexError):
        turns.popleft()


def test_a_queue_that_is_cleared_is_empty() -> None:
    turns = Turns(job(number, "eve") for number in range(3))
    assert [each[0].token for each in turns] == [0, 1, 2]
    turns.clear()
    assert not turns
    assert list(turns) == []
    turns.charge(job(0, "eve"), 1.0)  # of a request that was taken before
    turns.append(job(5, "eve"))
    assert turns.popleft()[0].token == 5
