"""Keeps one user's requests of an ordered type in order: one is carried out, the others wait for it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bester.handlers.app import Runs
from bester.handlers.task_pool import Job


class MessageGroups:
    """The lanes of one worker. Requests that no user has sent have no order, and never wait; those that are carried out
    inline are over before the next one is looked at."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], deque[Job]] = {}

    def enter(self, job: Job) -> bool:
        """Say whether a request may begin at once; otherwise it waits for the one before it."""
        request = job[0]
        if request.user is None or job[1].runs is Runs.INLINE:
            return True
        lane = self._lanes.get((request.type, request.user))
        if lane is None:
            self._lanes[request.type, request.user] = deque()
            return True
        lane.append(job)
        return False

    def leave(self, job: Job) -> Job | None:
        """A request that had begun no longer holds its lane: return the one that may begin, if any waits."""
        request = job[0]
        if request.user is None or job[1].runs is Runs.INLINE:
            return None
        lane = self._lanes[request.type, request.user]
        if lane:
            return lane.popleft()
        del self._lanes[request.type, request.user]
        return None

    def void(self) -> None:
        """Forget what waits."""
        for lane in self._lanes.values():
            lane.clear()

    def overdue(self, now: float, due: Callable[[Job], float]) -> list[Job]:
        """Take out what waits and is overdue."""
        found: list[Job] = []
        for lane in self._lanes.values():
            while lane and due(lane[0]) <= now:
                found.append(lane.popleft())
        return found
