"""Deliberate breakages of the servers of a chaos run, to see that the run finds each of them: `--break NAME`.

    blame      each job that a handler held when it died has used up an attempt, and is given on in company
    sent       a connection that was cut counts as closed in peace
    clock      the wall clock is read once, at the start
    wall       waiting messages expire by the wall clock
    unmarked   a message that may have been delivered before comes again from a queue without the mark
    names      a name is looked up once
    hasty      a handler that says nothing for a moment counts as dead

Each is called in every server process before its program begins (`prelude` does that).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any


def blame() -> None:
    from bester.broker.core.pools import Worker
    from bester.broker.core.worker_changes import WorkerChanges

    def lost(self: Any, worker: Worker, now: float) -> None:
        held = self._workers.lose(worker)
        self._known_types.on_left(worker.pool.types, now)
        again = [job for each in held for job in self._died_over(each, now)]
        for job in reversed(again):
            job.since = now
            job.suspicion.open = False
            self._queues.enqueue(job, first=True)
        self._dispatcher.share_out(now)
        for keeper in self._queues.bound_workers(again):
            self._dispatcher.feed(keeper, now)

    broken: Any = WorkerChanges
    broken.on_lost = lost


def sent() -> None:
    from bester.bridge import conversation, forward

    broken: Any = forward
    broken.CUT = conversation.CUT = conversation.READ


def clock() -> None:
    from bester.broker.core.clock import Clock

    broken: Any = Clock
    broken.read = lambda self, now, wall_s: None


def wall() -> None:
    from bester.broker.core.clock import Clock

    broken: Any = Clock
    broken.stored = Clock.wall


def unmarked() -> None:
    from bester.broker.core.queues import Queues

    mark_sent = Queues.mark_sent

    def without_marks(self: Queues, *given: Any) -> set[int]:
        mark_sent(self, *given)
        return set()

    broken: Any = Queues
    broken.mark_sent = without_marks


def names() -> None:
    from bester.broker.lookups import Lookups

    def once(ended: Callable[..., Any]) -> Callable[..., Any]:
        def end(self: Any, host: str, *given: Any) -> Any:
            answer = ended(self, host, *given)
            self._names[host].due = inf
            return answer

        return end

    broken: Any = Lookups
    broken.on_found, broken.on_failed = once(Lookups.on_found), once(Lookups.on_failed)
    broken.hint = lambda self, host, now: None


def hasty() -> None:
    from bester.broker.core import peer

    broken: Any = peer
    broken.SILENT_HEARTBEATS = 0.4


BREAKAGES: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (blame, sent, clock, wall, unmarked, names, hasty)
}


def named(breakage: str) -> str:
    """Return the text that makes the prelude call a breakage."""
    return f"{__name__}:{breakage}"
