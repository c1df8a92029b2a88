"""Results for users who are away: their messages are queued, if the users are known. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from bester.broker.core.jobs import Job
from bester.broker.core.queues import Queues
from bester.broker.core.relays import Relays
from bester.broker.core.settings import Settings
from bester.broker.core.trace import QUEUED, Trace, shortened
from bester.broker.store_requests import Entry, mailbox
from bester.broker.wire.messages import Command
from bester.broker.wire.outcomes import failed


class Absent:
    """Results for users without a connection, or with messages queued that go first.

    `accounts_of` returns those of some names that users have, be they absent.
    """

    def __init__(
        self, settings: Settings, queues: Queues, relays: Relays, trace: Trace,
        accounts_of: Callable[[Collection[str]], Collection[str]],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._queues = queues
        self._relays = relays
        self._trace = trace
        self._accounts_of = accounts_of

    def is_known(self, user: str) -> bool:
        """Return whether messages may be queued for a user."""
        return not self._settings.open_accounts and user in self._accounts_of((user,))

    def queue(self, job: Job, command: Command, id_: str, absent: Sequence[int], now: float) -> None:
        """Queue results for users, given by the numbers of their targets. All names are looked up at once."""
        targets = command.targets
        are_open = self._settings.open_accounts
        known = () if are_open else self._accounts_of({targets[t] for t in absent})
        unknown = "not-connected" if are_open else "unknown-user"
        if not known:  # a reply may name thousands
            failure, root = failed(unknown), job.root
            self._trace.extend((now, root, f"{id_}.{t}", failure, shortened(targets[t]), now) for t in absent)
            job.case.record_failures([targets[t] for t in absent], failure)
            return
        for t in absent:
            name, code = targets[t], unknown
            if name in known:
                found = self.enqueue(job, command, id_, t, self._queues.reserve_numbers(1), now)
                if found is None:
                    continue
                code = found
            self._trace.add((now, job.root, f"{id_}.{t}", failed(code), shortened(name), now))
            job.case.record(name, failed(code))

    def enqueue(
        self, job: Job, command: Command, id_: str, t: int, number: int, now: float, *,
        repeated: bool = False, since: float = 0.0,
    ) -> str | None:  # fmt: skip
        """Queue a result for its user, whose connection was sent the result at `since`, if that was so; its case is
        settled when the result is on disk. Returns a code where there is no room."""
        name, meta = command.targets[t], self._relays.meta_of(job)
        if repeated:
            meta["repeated"] = True
        entry = Entry(
            number, mailbox(name), f"{id_}.{t}", name, job.type, command.body, job.case.sender,
            self._queues.expires_at(job.case, now), meta,
        )  # fmt: skip
        code = self._queues.enqueue(entry, job.case, now)
        if code is None:
            self._trace.add((now, job.root, entry.id, QUEUED, name, since))
        return code
