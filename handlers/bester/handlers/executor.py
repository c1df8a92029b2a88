"""Runs the handlers of one process: tasks, threads, message groups and time limits, for the links of one app.

A link delivers requests and takes their answers back; the executor does not know how many links there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bester.broker.logs import facts
from bester.broker.wire.messages import HEARTBEAT_MS
from bester.handlers.app import App, Route
from bester.handlers.message_groups import MessageGroups
from bester.handlers.overtime import Overtime
from bester.handlers.task_pool import End, TaskPool
from bester.handlers.threads import Threads
from bester.handlers.turns import Job
from bester.handlers.watch import Watch

log = logging.getLogger("bester.handlers")


class Ends(NamedTuple):
    """Callbacks of an executor. `is_wanted(job)`: whether its answer still counts. `done_all(ends)`, `done(job,
    result)`, `failed(job, error)`: handlers have ended. `not_begun(job)` answers an overdue request that was queued,
    `begin_next(job)` lets the next request of its group begin, `on_useless(why)`: the executor hangs. `vouch` sends a
    heartbeat, on any thread; all others are called on the loop, `is_wanted` on any thread. `flush` sends the answers
    that wait: no request is queued any more."""

    is_wanted: Callable[[Job], bool]
    done_all: Callable[[list[End]], None]
    done: Callable[[Job, Any], None]
    failed: Callable[[Job, BaseException], None]
    not_begun: Callable[[Job], None]
    begin_next: Callable[[Job], None]
    on_useless: Callable[[str], None]
    vouch: Callable[[], None]
    flush: Callable[[], None]


class Executor:
    """Executor of one app on the running loop. `watch.start` begins to watch the loop, `close` ends everything."""

    def __init__(self, app: App, routes: Mapping[str, Route], name: str, ends: Ends) -> None:
        self.ends = ends
        self._name = name
        self.overtime = Overtime(
            name, routes, app.credit, ends.is_wanted, ends.not_begun, ends.begin_next, ends.on_useless
        )
        due = self.overtime.due
        self.pool = TaskPool(ends.done_all, ends.failed, due, ends.flush)
        self.threads = Threads(app.threads, ends.is_wanted, ends.done, ends.failed, due)
        self.groups = MessageGroups()
        self.overtime.attach(ends.vouch, self.pool, self.threads, self.groups)
        self.watch = Watch(self.overtime, HEARTBEAT_MS / 1000)

    def is_running(self, is_of: Callable[[Job], bool]) -> bool:
        """Return whether a handler works on such a request, one that hangs excepted."""
        jobs = (*self.pool.running(), *self.threads.running())
        return any(is_of(job) and not self.overtime.is_passed_over(job) for job in jobs)

    async def close(self) -> None:
        """End tasks, threads and watch. Handlers that do not end are logged and abandoned."""
        if not await self.pool.close():
            fields = facts("handlers-left", name=self._name)
            log.warning(
                "%s: handlers did not end when they were cancelled, and are abandoned", self._name, extra=fields
            )
        self.threads.close()
        self.watch.stop()


def joined(links: Sequence[Ends]) -> Ends:
    """Return the callbacks of an executor that runs the requests of several links. A request belongs to the link whose
    place in the sequence is the remainder of the request's life by the number of links."""
    count = len(links)

    def done_all(ends: list[End]) -> None:
        """Pass runs of ends to their links, in order."""
        start = 0
        while start < len(ends):
            number, end = ends[start][0][2] % count, start + 1
            while end < len(ends) and ends[end][0][2] % count == number:
                end += 1
            links[number].done_all(ends[start:end])
            start = end

    def vouch() -> None:
        """Send a heartbeat on every link."""
        for link in links:
            link.vouch()

    def flush() -> None:
        """Send what waits on every link."""
        for link in links:
            link.flush()

    return Ends(
        is_wanted=lambda job: links[job[2] % count].is_wanted(job),
        done_all=done_all,
        done=lambda job, result: links[job[2] % count].done(job, result),
        failed=lambda job, error: links[job[2] % count].failed(job, error),
        not_begun=lambda job: links[job[2] % count].not_begun(job),
        begin_next=lambda job: links[job[2] % count].begin_next(job),
        on_useless=links[0].on_useless,
        vouch=vouch,
        flush=flush,
    )
