"""Turns of the senders of a type whose messages wait for a worker."""

from __future__ import annotations

from random import Random

import pytest

from bester.broker.core.fair_queue import QUANTUM
from bester.broker.core.jobs import Job
from bester.broker.core.suspects import Suspicion
from bester.broker.core.type_queues import MOST_EMPTY
from tests.unit.test_core_workers import Crew, job


def test_user_who_says_little_does_not_wait_for_floods_that_come_in_batches() -> None:
    crew = Crew(8)
    (worker,) = crew.crew
    for number in range(20):
        for flooder in range(30):
            for _ in range(9):
                crew.come(job(user=f"f{flooder}"))
        crew.come(job(user="v"))
        users = []
        while worker.inflight:  # until nothing waits, and the queue is empty
            users.append(crew.finish(worker).user)
        assert number < 5 or users.index("v") <= 8 + QUANTUM


def of_server(peer: str, origin: str) -> Job:
    each = job(user=None)
    each.scope, each.origin, each.peer = "server", origin, peer
    return each


def test_server_that_claims_ever_new_origins_has_the_turns_of_one_sender() -> None:
    crew = Crew(1)
    (worker,) = crew.crew
    for number in range(20 * QUANTUM):
        crew.come(of_server("liar", f"s{number}"))
    for _ in range(4 * QUANTUM):
        crew.come(job(user="v"))
    taken = [crew.finish(worker).user for _ in range(8 * QUANTUM)]
    assert taken.count("v") >= 3 * QUANTUM


def test_server_that_claims_ever_new_origins_leaves_room_for_others() -> None:
    crew, most = Crew(1), 10
    crew.come(job())
    number = 0
    while crew.workers.queues.bound_reached(of_server("liar", f"s{number}"), most, 1_000) is None:
        crew.come(of_server("liar", f"s{number}"))
        number += 1
    assert number == most // 2
    assert crew.workers.queues.bound_reached(job(user="v"), most, 1_000) is None


def test_queues_that_are_kept_are_few() -> None:
    crew = Crew(1, types=" ".join(f"t{number}" for number in range(3 * MOST_EMPTY)))
    (worker,) = crew.crew
    for number in range(3 * MOST_EMPTY):
        crew.come(job(f"t{number}"))
        crew.come(job(f"t{number}"))
        crew.finish(worker)
        crew.finish(worker)
    queues = crew.workers.queues
    assert len(queues._empty) <= MOST_EMPTY


def jobs_of_a_lost_worker(chance: Random) -> list[Job]:
    """Return jobs of several types and users, some of them suspects."""
    jobs = []
    for number in range(chance.randrange(40)):
        each = job(chance.choice("abc"), chance.choice(["u", "v", None]), f"m{number}")
        each.since = chance.random()
        each.suspicion = chance.choice([None, Suspicion()])
        jobs.append(each)
    return jobs


@pytest.mark.parametrize("seed", range(20))
def test_jobs_that_are_queued_together_before_all_others_wait_as_if_each_were_queued_alone(seed: int) -> None:
    """One of three types is ordered."""
    said = []
    for together in (True, False):
        chance = Random(seed)
        crew = Crew(0, types="a b c", ordered="c")
        queues = crew.workers.queues
        for each in jobs_of_a_lost_worker(chance):
            queues.enqueue(each)
        lost = jobs_of_a_lost_worker(chance)
        if together:
            queues.enqueue_first(lost)
        else:
            for each in reversed(lost):
                queues.enqueue(each, first=True)
        kinds = {
            type_: [(each.id, each.user, each.since) for each in queues.jobs() if each.type == type_] for type_ in "abc"
        }
        said.append((kinds, queues.counts(), set(queues.requeued), set(queues.suspects.types()), queues.by_sender()))
    assert said[0] == said[1]
