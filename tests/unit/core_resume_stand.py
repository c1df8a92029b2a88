"""A bridge that loses its link and resumes, and the server of that bridge."""

from __future__ import annotations

from typing import Any

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.store.memory_shared import SharedMemory
from bester.broker.store_requests import Bounds
from bester.broker.wire.messages import Confirm, Goodbye, Open, Report, Submit
from tests.unit.core_stand import START, Stand


class Bridge:
    """A bridge that may lose its link and return on another in the same life, with alice's and bob's sessions."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.comes()

    def comes(self) -> None:
        self.link = self.stand.join("bridge", "b", {"epoch": "life"})
        self.stand.say(self.link, Open(1, "alice"))
        self.stand.say(self.link, Open(2, "bob"))

    def goes(self) -> None:
        """Lose the link, and every message on the link that was not read."""
        self.stand.say(self.link, Goodbye(None))
        del self.stand.alive[self.link]
        self.stand.heard(self.link)

    def relinks(self) -> None:
        self.goes()
        self.comes()

    def submits(self, token: int, *, session: int = 1, **meta: Any) -> None:
        self.stand.say(self.link, Submit(token, session, "chat", b"%d" % token, meta))

    def reports(self) -> list[Report]:
        return self.stand.heard_of(self.link, Report)

    def confirms(self, reports: int) -> None:
        self.stand.say(self.link, Confirm(0, reports=reports))


def town(
    limits: Limits | None = None, *, is_shared: bool = False, bounds: Bounds | None = None
) -> tuple[Stand, Bridge, Link]:
    """Return a server, its bridge, and a handler of type `chat`; `is_shared`: the server may have other brokers."""
    routes = {"s2": Route("s2", native="10.0.0.2:2223")}
    settings = Settings(
        "s1", routes=routes, hosts={"10.0.0.2": ("s2",)}, limits=limits or Limits(), bounds=bounds or Bounds(),
        declared_types=frozenset({"late"}),
    )  # fmt: skip
    store = SharedMemory(lambda: 0.0).namespace("b1") if is_shared else None
    stand = Stand(settings, accounts=frozenset({"alice", "bob", "carol"}), now=START - 5.0, store=store)
    stand.wait(5.0)
    return stand, Bridge(stand), stand.handler("chat")


def good(token: int, message: int | None = None, **recipients: str) -> Report:
    return Report(token, 0, None, f"s1/b-life/{message or token}", recipients)
