"""Ends requests that take too long in a worker, and finds out when the whole worker hangs.

An async handler that waits is cancelled at its message's deadline. A function in a thread cannot be stopped: it keeps
its credit at the broker, and its thread no longer counts as usable. A handler that holds the loop is found by the
watch; the worker's side of the watch is here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from bester.broker.logs import facts
from bester.broker.wire.messages import REQUEST_MS, Meta
from bester.handlers.app import Route
from bester.handlers.deadlines import USELESS_S, Deadlines
from bester.handlers.message_groups import MessageGroups
from bester.handlers.stacks import Position
from bester.handlers.task_pool import OVERDUE, STUBBORN_S, TaskPool
from bester.handlers.threads import Threads
from bester.handlers.turns import Job

log = logging.getLogger("bester.handlers")


class Overtime:
    """Deadlines of one worker's requests.

    `is_wanted(job)`: whether its answer still counts. `give_up(job)` answers a request that is queued in a group,
    `begin_next(job)` lets the next request of its group begin. `on_useless(why)` is called once.
    """

    def __init__(
        self,
        name: str,
        routes: Mapping[str, Route],
        credit: int,
        is_wanted: Callable[[Job], bool],
        give_up: Callable[[Job], None],
        begin_next: Callable[[Job], None],
        on_useless: Callable[[str], None],
    ) -> None:
        self.name = name
        self.on_hung: Callable[[], None] = lambda: None
        self.on_looked: Callable[[], None] = lambda: None
        """Called after each look at overdue requests."""
        self._codes = {type_: _code_of(route) for type_, route in routes.items()}
        self._credit = credit
        self._is_wanted = is_wanted
        self._give_up = give_up
        self._begin_next = begin_next
        self._on_useless = on_useless
        limits_s = {type_: route.timeout_s for type_, route in routes.items() if route.timeout_s is not None}
        self._deadlines = Deadlines(limits_s)
        self._running_on: dict[int, Job] = {}  # overdue requests whose handlers go on, by id
        self._useless = False

    def attach(self, vouch: Callable[[], None], pool: TaskPool, threads: Threads, groups: MessageGroups) -> None:
        """Set the parts of the worker; none is used before. `vouch` sends a heartbeat from any thread."""
        self._vouch = vouch
        self._pool = pool
        self._threads = threads
        self._groups = groups

    def set_limits(self, options: Meta) -> None:
        """Read the time limits in a WELCOME."""
        self._deadlines.set_limits(options)

    def due(self, job: Job) -> float:
        """Return the deadline of a request (monotonic seconds)."""
        return self._deadlines.due(job[0], job[3])

    # --- on the loop ---

    def on_turn(self, now: float) -> None:
        """Handle overdue requests; the watch calls this a few times a second."""
        for job, line in self._pool.cancel_overdue(now):
            self._log(job, now, f"cancelled at {line}")
        self._pool.forget_latest()
        self._check_threads(now)
        for job in self._groups.overdue(now, self.due):
            self._give_up(job)
        self._check_stubborn(now)
        if self._running_on and not self._useless:
            self._check_use(now)
        self.on_looked()

    def _check_use(self, now: float) -> None:
        """Report the worker useless where every thread or all of its credit hangs."""

        def hangs(job: Job) -> bool:
            # The limit of the type counts, not the sender's deadline: that one does not tell a hanging handler.
            return now >= job[3] + self._deadlines.limit_s(job[0].type) + USELESS_S

        positions = self._threads.hanging(hangs)
        lost_on = Counter(job[2] for job in self._running_on.values() if self._is_wanted(job) and hangs(job))
        lost = max(lost_on.values(), default=0)  # each link has a credit of its own
        if positions is not None:
            why = f"all {len(positions)} threads hang: {'; '.join(sorted(set(positions)))}"
        elif lost >= self._credit:
            why = f"the whole credit ({lost}) is held by handlers that hang"
        else:
            return
        self._useless = True
        self._on_useless(why)

    def _check_threads(self, now: float) -> None:
        waiting, running = self._threads.overdue(now)
        for job, line in running:
            usable = f"{self._threads.usable} of {self._threads.size} threads are usable"
            self._log(job, now, f"a thread cannot be stopped, and this one no longer counts ({usable}); now at {line}")
            self._pass_over(job)
        for job in waiting:
            self._give_up(job)
            if job[1].by_user:
                self._begin_next(job)

    def _check_stubborn(self, now: float) -> None:
        """Log the handlers that go on after their cancellation, and those that went on and have ended."""
        stubborn = {id(job): job for job in self._pool.stubborn(now)}
        for key, job in stubborn.items():
            if key not in self._running_on:
                self._log(job, now, f"cancelled {STUBBORN_S:g} s ago, but still running; the credit returns at its end")
                self._pass_over(job)
        for key, job in list(self._running_on.items()):
            if key not in stubborn and not self._threads.is_late(job):
                del self._running_on[key]
                request, name, id_ = job[0], job[1].name, job[0].meta.get("id")
                took = f"after {now - job[3]:.1f} s; the credit is back"
                fields = facts("handler-ended-late", type=request.type, function=name, id=id_)
                log.info("%s: %s has ended with message %s %s", request.type, name, id_, took, extra=fields)

    def _pass_over(self, job: Job) -> None:
        """Note a request that is over while its handler goes on: the next request of its group begins."""
        self._running_on[id(job)] = job
        if job[1].by_user:
            self._begin_next(job)

    def is_passed_over(self, job: Job) -> bool:
        """Return whether the request's group has gone on without it."""
        return id(job) in self._running_on

    def _log(self, job: Job, now: float, state: str) -> None:
        request, name, id_ = job[0], job[1].name, job[0].meta.get("id")
        text = "%s: %s has had message %s for %.1f s, over its time limit: %s"
        fields = facts("handler-late", type=request.type, function=name, id=id_)
        log.warning(text, request.type, name, id_, now - job[3], state, extra=fields)

    def hung(self, is_wanted: Callable[[Job], bool]) -> int:
        """Return the number of wanted requests that hang, or wait for a thread that hangs."""
        jobs = self._threads.unanswerable() + self._pool.stubborn(math.inf)
        return sum(map(is_wanted, jobs))

    # --- on the watch's thread ---

    def vouch(self) -> None:
        """Send a heartbeat in place of the loop, which is held."""
        self._vouch()

    def hold_back(self) -> None:
        """Let the loop run before the next handler begins."""
        self._pool.hold_back()

    def in_hand(self) -> list[str]:
        """Return the names of the functions that run in threads, or else of the one begun last."""
        latest = self._pool.latest
        return self._threads.positions() or ([] if latest is None else [latest[1].name])

    def patience_s(self, code: CodeType | None) -> float:
        """Return the seconds that the function of this code may hold the loop before the worker counts as hanging: more
        than its messages may take, and at least the usual limit."""
        usual_s = self._deadlines.usual_s
        least_s = usual_s if math.isfinite(usual_s) else REQUEST_MS / 1000
        types = [type_ for type_, its_code in self._codes.items() if its_code is code] or list(self._codes)
        limits = [limit_s for type_ in types if math.isfinite(limit_s := self._deadlines.limit_s(type_))]
        return max(max(limits, default=least_s) + USELESS_S, least_s)

    def on_hang(self, position: Position | None, held_s: float) -> None:
        """Log a loop that hangs; no more heartbeats are sent for it."""
        text = "%s: %s has held the loop for %.0f s, over its time limit: no other handler runs until it ends"
        fields = facts("loop-hangs", name=self.name, at=str(position or "something"), held_s=round(held_s, 1))
        log.error(text, self.name, position or "something", held_s, extra=fields)
        self.on_hung()


def was_cancelled(error: BaseException) -> bool:
    """Return whether a handler ended because it was cancelled at its deadline."""
    if not issubclass(type(error), asyncio.CancelledError):  # `isinstance` asks the exception, which may raise
        return False
    arguments: tuple[Any, ...] = _ARGUMENTS.__get__(error)
    return len(arguments) == 1 and arguments[0] is OVERDUE


_ARGUMENTS: Any = BaseException.__dict__["args"]


def _code_of(route: Route) -> Any:
    return getattr(inspect.unwrap(route.function), "__code__", None)
