"""Message groups: the requests of one user and ordered type, begun one after another. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bester.handlers.app import Runs
from bester.handlers.turns import Job


class MessageGroups:
    """Message groups of one worker. Requests without a user have no order and always begin at once; inline requests end
    before the next one of their sender begins, and need no group."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], deque[Job]] = {}

    def enter(self, job: Job) -> bool:
        """Return whether a request may begin at once; otherwise it is queued in its group."""
        request = job[0]
        if request.user is None or job[1].runs is Runs.INLINE:
            return True
        group = self._groups.get((request.type, request.user))
        if group is None:
            self._groups[request.type, request.user] = deque()
            return True
        group.append(job)
        return False

    def leave(self, job: Job) -> Job | None:
        """Release a request's group; return the next request of the group, or None."""
        request = job[0]
        if request.user is None or job[1].runs is Runs.INLINE:
            return None
        group = self._groups[request.type, request.user]
        if group:
            return group.popleft()
        del self._groups[request.type, request.user]
        return None

    def drop(self, is_wanted: Callable[[Job], bool]) -> None:
        """Drop the queued requests whose answers no longer count."""
        self.take_queued(lambda job: not is_wanted(job))

    def take_queued(self, is_taken: Callable[[Job], bool]) -> list[Job]:
        """Take out queued requests."""
        taken: list[Job] = []
        for group in self._groups.values():
            queued = list(group)
            group.clear()
            for job in queued:
                (taken if is_taken(job) else group).append(job)
        return taken

    def overdue(self, now: float, due: Callable[[Job], float]) -> list[Job]:
        """Remove and return the queued requests that are overdue."""
        found: list[Job] = []
        for group in self._groups.values():
            while group and due(group[0]) <= now:
                found.append(group.popleft())
        return found
