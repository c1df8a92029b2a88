"""Turns of the senders of a type whose messages wait for a worker."""

from __future__ import annotations

from bester.broker.core.fair_queue import QUANTUM
from bester.broker.core.workers import MOST_EMPTY
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


def test_queues_that_are_kept_are_few() -> None:
    crew = Crew(1, types=" ".join(f"t{number}" for number in range(3 * MOST_EMPTY)))
    (worker,) = crew.crew
    for number in range(3 * MOST_EMPTY):
        crew.come(job(f"t{number}"))
        crew.come(job(f"t{number}"))
        crew.finish(worker)
        crew.finish(worker)
    assert len(crew.workers._empty) <= MOST_EMPTY
