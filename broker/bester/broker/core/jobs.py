"""A parcel is a message on its way to a handler, with everything that is known about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from bester.broker.core.cases import Case
from bester.broker.core.suspects import Suspicion
from bester.broker.wire.messages import Meta, Request

if TYPE_CHECKING:
    from bester.broker.core.message_groups import MessageGroup

_new = tuple.__new__


class Job(Struct, eq=False, gc=False):  # a Struct, for one is made for every message; it leaves its line at its end
    """What a REQUEST is made of, and the case it belongs to.

    `target` is its name among the recipients when a handler sent it on (None for a message that entered). `since` is
    when it began to wait, or was given to a handler; `attempt` counts those, and those of before it came here (`before`
    of them). `repeated`: it was on its way before, and may have been delivered. `ended`: its case no longer waits for
    it. `line`, of an ordered type, is the one it is counted in while a worker holds it. `suspicion` is there when a
    worker has died with it in hand.
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

    @property
    def suspected(self) -> bool:
        """Whether a worker may have died over it, so that it is to be alone with the next."""
        return self.suspicion is not None and self.suspicion.open

    def request(self, token: int) -> Request:
        """Return the REQUEST that hands it to a handler under this token."""
        meta: Meta = {
            "id": self.id,
            "root": self.root,
            "origin": self.origin,
            "scope": self.scope,
            "attempt": self.attempt,
            "path": self.path,
        }
        if self.peer is not None:
            meta["peer"] = self.peer
        return _new(Request, (token, self.type, self.body, self.user, meta))

    def onward_path(self, server: str) -> list[str]:
        """Return the path of what its handler makes of it: one step longer."""
        return [*self.path, f"{server}/{self.type}"]
