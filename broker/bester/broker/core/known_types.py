"""Types of messages that this server knows, served or not: a message of another type waits for no handler. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bester.broker.core import policy
from bester.broker.core.effects import Effects
from bester.broker.core.inspection import Bound
from bester.broker.core.jobs import Job
from bester.broker.core.settings import Settings
from bester.broker.core.workers import Workers
from bester.broker.store_requests import RecordType


class KnownTypes:
    """Types that are declared, or were served at any time; `stored` are those that the store knows. At most `max_types`
    are learned: each is on disk."""

    def __init__(self, settings: Settings, workers: Workers, out: Effects, stored: Collection[str], now: float) -> None:
        self.given_up: frozenset[str] = frozenset()
        """Types whose workers will not be started again: their messages do not wait."""
        self._limits = settings.limits
        self._workers = workers
        self._out = out
        self._seen: dict[str, None] = dict.fromkeys([*settings.declared_types, *stored])
        self._learned = set(stored)  # seen types that the store knows; a declared one may be gone tomorrow
        self._unserved: dict[str, float] = {}  # types without a worker, and since when
        self._started = now

    def bound(self) -> Bound:
        """Return how many types are learned, of those that may be."""
        return Bound(len(self._learned), self._limits.max_types)

    def knows(self, type_: str) -> bool:
        """Return whether the type is served now, or ever was."""
        return type_ in self._seen or self._workers.serves(type_)

    def adopt(self, types: Iterable[str]) -> None:
        """Take in types that another broker of this server has seen."""
        for type_ in types:
            if len(self._learned) < self._limits.max_types:
                self._learned.add(type_)
                self._seen[type_] = None

    def on_served(self, types: Collection[str]) -> None:
        """Take in the types of a new worker, and learn those that are new."""
        for type_ in sorted(types):  # so that writes have an order that a test can see again
            self._unserved.pop(type_, None)
            if type_ not in self._learned and len(self._learned) < self._limits.max_types:
                self._learned.add(type_)
                self._seen[type_] = None
                self._out.writes.append(RecordType(type_))

    def on_served_again(self, types: Iterable[str]) -> None:
        """Take in that a worker that was passed over serves its types again."""
        for type_ in types:
            self._unserved.pop(type_, None)

    def on_left(self, types: Iterable[str], now: float) -> None:
        """Note since when types that a worker has left are not served. Types that were not learned (there are too many)
        are not noted, since none of their messages waits for a worker: a handler may say HELLO with other types at
        will."""
        for type_ in types:
            if type_ in self._seen and not self._workers.serves(type_):
                self._unserved.setdefault(type_, now)

    def unserved_since(self, type_: str) -> float:
        """Return since when a type that nobody serves has been without a worker."""
        return self._unserved.get(type_, self._started)

    def never_served(self, job: Job, now: float) -> str | None:
        """Return the code for a message of a type that nobody has ever served, None where somebody has."""
        if self._workers.serves(job.type) or job.type in self._seen:
            return None
        if (code := policy.may_name(job.type)) is not None:
            return code
        just_started = now < self._started + self._limits.restart_s
        return "no-handler" if job.scope == "server" and just_started else "unknown-type"
