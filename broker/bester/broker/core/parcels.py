"""A parcel is a message on its way to a handler, with everything that is known about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bester.broker.core.cases import Case
from bester.broker.wire.messages import Meta, Request

if TYPE_CHECKING:
    from bester.broker.core.lines import Line


class Parcel:
    """What a REQUEST is made of, and the case it belongs to.

    `target` is its name among the recipients when a handler sent it on (None for a message that entered). `since` is
    when it began to wait, or was given to a handler; `attempt` counts those. `ended`: its case no longer waits for it.
    `line`, of an ordered type, is the one it is counted in while a worker holds it.
    """

    __slots__ = (
        "attempt", "body", "case", "ended", "id", "line", "origin", "path", "peer", "root", "scope", "since", "target",
        "type", "user",
    )  # fmt: skip

    def __init__(
        self,
        case: Case,
        id_: str,
        type_: str,
        body: bytes,
        *,
        scope: str,
        origin: str,
        user: str | None = None,
        root: str | None = None,
        peer: str | None = None,
        path: list[str] | None = None,
        target: str | None = None,
    ) -> None:
        self.case = case
        self.id = id_
        self.root = root or id_
        self.type = type_
        self.body = body
        self.scope = scope
        self.origin = origin
        self.user = user
        self.peer = peer
        self.path: list[str] = [] if path is None else path
        self.target = target
        self.attempt = 0
        self.since = 0.0
        self.ended = False
        self.line: Line | None = None

    def meta(self) -> Meta:
        """Return the `meta` of the REQUEST."""
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
        return meta

    def request(self, token: int) -> Request:
        """Return the REQUEST that hands it to a handler under this token."""
        return Request(token, self.type, self.body, self.user, self.meta())

    def sent_on(self, server: str) -> list[str]:
        """Return the path of what its handler makes of it: one step longer."""
        return [*self.path, f"{server}/{self.type}"]
