"""A job is a message on its way to a handler, with everything known about the message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from bester.broker.core.cases import Case
from bester.broker.core.suspects import Suspicion
from bester.broker.wire.messages import Meta, Request
from bester.broker.wire.request_meta import RequestMeta

if TYPE_CHECKING:
    from bester.broker.core.message_groups import MessageGroup

NO_PATH: list[str] = []
"""Path of a message that comes from no other handler. The list is shared: nobody may change it."""


class Job(Struct, eq=False, gc=False):  # a Struct, since every message has one; left by its group at its end
    """Contents of a REQUEST, and the case that the message belongs to.

    `target` is the name among the recipients where a handler sent the message on (None for a message that entered).
    `since` is when the job began to wait, or was given to a handler; `attempt` counts the times it was given, with
    those of earlier lives (`attempts_before`). `repeated`: the message may have been processed before. `is_settled`:
    its case no longer waits for it, though a worker still holds it, or it still stands in a queue. `group`, of an
    ordered type, is the message group that counts it while a worker holds it. `suspicion` is set when a worker has died
    while holding it. `handed_back` counts the times that a worker has not begun it. `traceparent` is that of its
    sender, or of this server's span.
    """

    case: Case
    id: str
    root: str
    type: str
    body: bytes
    scope: str
    origin: str
    user: str | None = None
    peer: str | None = None
    path: list[str] = []
    target: str | None = None
    attempt: int = 0
    since: float = 0.0
    is_settled: bool = False
    attempts_before: int = 0
    repeated: bool = False
    group: MessageGroup | None = None
    suspicion: Suspicion | None = None
    handed_back: int = 0
    traceparent: str | None = None

    @property
    def may_repeat(self) -> bool:
        """Return whether results may be repeats: the message may have been processed before, or elsewhere."""
        return self.repeated or self.case.moved

    @property
    def suspected(self) -> bool:
        """Return whether a worker may have died over this job, so that the next worker gets the job alone."""
        return self.suspicion is not None and self.suspicion.open

    def request(self, token: int, deadline_ms: int | None = None, *, shadow: bool | None = None) -> Request:
        """Return the REQUEST that gives the job to a handler under this token; `shadow`: True for a copy."""
        meta: Any = RequestMeta(
            self.id, self.root, self.origin, self.scope, self.attempt, self.path, self.peer, self.traceparent,
            deadline_ms, shadow,
        )  # fmt: skip
        return Request(token, self.type, self.body, self.user, meta)

    def onward_path(self, server: str) -> list[str]:
        """Return the path of the job's results, one step longer than that of the job."""
        return [*self.path, f"{server}/{self.type}"]


def attempt_of(meta: Meta) -> int:
    """Return which attempt at a message its meta states, from 1: a bridge counts earlier ones."""
    attempt = meta.get("attempt", 1)
    return min(attempt, 1_000_000) if type(attempt) is int and attempt > 1 else 1


def may_be_repeat(meta: Meta) -> bool:
    """Return whether a message's meta states that this server may have processed the message before: its bridge has
    submitted it again, its client or server has sent it again."""
    return attempt_of(meta) > 1 or meta.get("again") is True or meta.get("resent") is True
