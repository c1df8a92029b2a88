"""Ends what takes too long in a worker, and says so; notices when nothing is left of it that could be of use.

An async handler that waits is cancelled when the time of its message is over. A function in a thread cannot be
stopped: it keeps its place at the broker, and its thread is not counted on. A handler that holds the loop is the
watch's to find; here is what the watch needs to know about the worker.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from bester.broker.fabric import FabricLink
from bester.broker.logs import facts
from bester.broker.wire.messages import REQUEST_MS, Meta
from bester.handlers.app import Route
from bester.handlers.deadlines import USELESS_S, Deadlines
from bester.handlers.message_groups import MessageGroups
from bester.handlers.stacks import Place
from bester.handlers.task_pool import OVERDUE, STUBBORN_S, Job, TaskPool
from bester.handlers.threads import Threads

log = logging.getLogger("bester.handlers")


class Overtime:
    """The requests of one worker, as far as they take too long.

    `is_wanted(job)`: would its answer still count? `give_up(job)` answers one that waits in a lane, `begin_next(job)`
    lets the next one in a lane begin. `on_useless(why)` is called once.
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
        self._codes = {type_: _code_of(route) for type_, route in routes.items()}
        self._credit = credit
        self._is_wanted = is_wanted
        self._give_up = give_up
        self._begin_next = begin_next
        self._on_useless = on_useless
        self._deadlines = Deadlines()
        self._said: dict[int, Job] = {}  # those of which it was said that they go on, by id
        self._useless = False

    def watch_over(self, link: FabricLink, crew: TaskPool, threads: Threads, lanes: MessageGroups) -> None:
        """Say what there is to look after; nothing is before that."""
        self._link = link
        self._crew = crew
        self._threads = threads
        self._lanes = lanes

    def learn(self, options: Meta) -> None:
        """Take in what a WELCOME says of the time that messages have."""
        self._deadlines.learn(options)

    def due(self, job: Job) -> float:
        """Return when a request is given up (monotonic seconds)."""
        return self._deadlines.due(job[0], job[3])

    # --- on the loop ---

    def turned(self, now: float) -> None:
        """Look for what has taken too long; the watch calls it a few times a second."""
        for job, line in self._crew.cancel_overdue(now):
            self._say(job, now, f"it is cancelled; it waited at {line}")
        self._crew.forget_latest()
        self._look_at_threads(now)
        for job in self._lanes.overdue(now, self.due):
            self._give_up(job)
        self._look_at_stubborn(now)
        if self._said and not self._useless:
            self._look_at_use(now)

    def _look_at_use(self, now: float) -> None:
        """See whether there is anything left that could carry out a message."""

        def hangs(job: Job) -> bool:
            # What its sender would wait for it has nothing to do with whether it is merely slow.
            return now >= job[3] + self._deadlines.limit_s(job[0].type) + USELESS_S

        places = self._threads.hanging(hangs)
        lost = sum(1 for job in self._said.values() if self._is_wanted(job) and hangs(job))
        if places is not None:
            why = f"all {len(places)} threads hang: {'; '.join(sorted(set(places)))}"
        elif lost >= self._credit:
            why = f"all {lost} places are held by handlers that hang"
        else:
            return
        self._useless = True
        self._on_useless(why)

    def _look_at_threads(self, now: float) -> None:
        waiting, running = self._threads.overdue(now)
        for job, line in running:
            left = f"{self._threads.usable} of {self._threads.size} threads are left"
            self._say(
                job, now, f"it cannot be stopped, so its thread is not counted on any more ({left}); it is at {line}"
            )
            self._go_on_without(job)
        for job in waiting:
            self._give_up(job)
            if job[1].by_user:
                self._begin_next(job)

    def _look_at_stubborn(self, now: float) -> None:
        """Say of a handler that it goes on although it was cancelled, and of whatever went on that it has ended."""
        stubborn = {id(job): job for job in self._crew.stubborn(now)}
        for key, job in stubborn.items():
            if key not in self._said:
                self._say(
                    job, now, f"it was cancelled {STUBBORN_S:g} s ago and goes on; its place is lost until it ends"
                )
                self._go_on_without(job)
        for key, job in list(self._said.items()):
            if key not in stubborn and not self._threads.is_late(job):
                del self._said[key]
                request, name, id_ = job[0], job[1].name, job[0].meta.get("id")
                took = f"after {now - job[3]:.1f} s; its place is free again"
                known = facts("handler-ended-late", type=request.type, function=name, id=id_)
                log.info("%s: %s has ended with message %s %s", request.type, name, id_, took, extra=known)

    def _go_on_without(self, job: Job) -> None:
        """A request is over though its handler has not ended: those that wait behind it in its lane do so no longer."""
        self._said[id(job)] = job
        if job[1].by_user:
            self._begin_next(job)

    def is_left_behind(self, job: Job) -> bool:
        """Has its lane gone on without this request?"""
        return id(job) in self._said

    def _say(self, job: Job, now: float, what: str) -> None:
        request, name, id_ = job[0], job[1].name, job[0].meta.get("id")
        text = "%s: %s has had message %s for %.1f s, longer than it may: %s"
        known = facts("handler-late", type=request.type, function=name, id=id_)
        log.warning(text, request.type, name, id_, now - job[3], what, extra=known)

    @property
    def hopeless(self) -> int:
        """How many requests hang whose answer would count, or wait for what hangs."""
        jobs = self._threads.hopeless() + self._crew.stubborn(math.inf)
        return sum(map(self._is_wanted, jobs))

    # --- on the watch's thread ---

    def vouch(self) -> None:
        """Send a heartbeat: the loop is held, and cannot."""
        self._link.vouch()

    def breathe(self) -> None:
        """Let the loop have a turn before the next handler begins."""
        self._crew.breathe()

    def in_hand(self) -> list[str]:
        """Name the functions that threads are at, or else the one that was begun last."""
        latest = self._crew.latest
        return self._threads.places() or ([] if latest is None else [latest[1].name])

    def patience_s(self, code: CodeType | None) -> float:
        """Return how long the function of this code may hold the loop before this worker is of no use: somewhat longer
        than its messages may take, and at least as long as most may."""
        usual_s = self._deadlines.usual_s
        least_s = usual_s if math.isfinite(usual_s) else REQUEST_MS / 1000
        types = [type_ for type_, its_code in self._codes.items() if its_code is code] or list(self._codes)
        limits = [limit_s for type_ in types if math.isfinite(limit_s := self._deadlines.limit_s(type_))]
        return max(max(limits, default=least_s) + USELESS_S, least_s)

    def hangs(self, place: Place | None, held_s: float) -> None:
        """Say that the loop is hardly coming back; the broker is not told any more that all is well."""
        text = "%s: %s has held the loop for %.0f s, longer than its messages may take: nothing here runs until it ends"
        known = facts("loop-hangs", name=self.name, at=str(place or "something"), held_s=round(held_s, 1))
        log.error(text, self.name, place or "something", held_s, extra=known)
        self.on_hung()


def was_cancelled(error: BaseException) -> bool:
    """Is it the end of a handler that was cancelled for the time it took?"""
    if not issubclass(type(error), asyncio.CancelledError):  # `isinstance` would ask the exception, which may raise
        return False
    arguments: tuple[Any, ...] = _ARGUMENTS.__get__(error)
    return len(arguments) == 1 and arguments[0] is OVERDUE


_ARGUMENTS: Any = BaseException.__dict__["args"]


def _code_of(route: Route) -> Any:
    return getattr(inspect.unwrap(route.function), "__code__", None)
