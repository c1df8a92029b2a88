"""A server with a mailbox for bob, and alice who sends to it."""

from __future__ import annotations

from typing import Any

from bester.broker.core.settings import Limits, Settings
from bester.broker.store_requests import Bounds, mailbox
from bester.broker.wire.messages import Deliver
from tests.unit.core_stand import START, Stand, clients

BOB = mailbox("bob")


def town(limits: Limits | None = None, **bounds: Any) -> Stand:
    """Return a server with three accounts, a while after its start."""
    settings = Settings("s1", bounds=Bounds(**bounds), limits=limits or Limits())
    stand = Stand(settings, accounts=frozenset({"alice", "bob", "carol"}), now=START - 5.0)
    stand.wait(5.0)
    return stand


class Post:
    """Alice at her bridge, and a handler that sends to the users of a test's choice."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.bridge = stand.bridge("alice", name="a")
        self.chat = stand.handler("chat")

    def sends(self, *users: str, body: bytes = b'"hi"', **meta: Any) -> int:
        token = self.stand.submit(self.bridge, "chat", **meta)
        self.stand.answer(self.chat, clients(*users, body=body))
        return token

    def outcomes(self, token: int | None = None) -> dict[str, str]:
        """Return the outcomes of the only report."""
        return self.stand.report(self.bridge, token).recipients

    def queues(self, *bodies: bytes, **meta: Any) -> None:
        """Send these bodies to bob, who is away."""
        for body in bodies:
            self.sends("bob", body=body, **meta)
            assert self.outcomes() == {"bob": "queued"}


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def bodies_of(deliveries: list[Deliver]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]
