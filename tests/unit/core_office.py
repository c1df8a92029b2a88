"""A server that knows two others, one over the fabric and one by the native protocol."""

from __future__ import annotations

from typing import Any

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.store_requests import Bounds, DeadLetter, FindDeadLetters, lane
from bester.broker.wire.messages import Relay, Relayed
from tests.unit.core_stand import START, Stand, servers

S2 = Link("server", b"s2")


class Office:
    """A server that knows s2 (over the fabric) and s3 (native), a while after its start; alice, and the handler `one`
    that sends her messages to servers. No server is reachable yet."""

    def __init__(self, limits: Limits | None = None, *, chance: float = 1.0, **bounds: Any) -> None:
        routes = {"s2": Route("s2", fabric="ipc:///s2"), "s3": Route("s3", native="10.0.0.3:2223")}
        settings = Settings(
            "s1", open_accounts=True, routes=routes, hosts={"10.0.0.3": ("s3",)}, bounds=Bounds(**bounds),
            limits=limits or Limits(),
        )  # fmt: skip
        self.stand = Stand(settings, now=START - 5.0, chance=chance)
        self.stand.wait(5.0)
        self.opens()

    def opens(self) -> None:
        self.bridge = self.stand.bridge("alice")
        self.one = self.stand.handler("one", "two")

    def restarts(self) -> None:
        """Kill and start the broker; alice and the handler come back."""
        self.stand.restart()
        self.opens()
        self.stand.wait(2.5)

    def sends(self, *targets: str, type_: str = "one", body: bytes = b'"hi"', **meta: Any) -> int:
        token = self.stand.submit(self.bridge, type_, **meta)
        self.stand.answer(self.one, servers(*targets, body=body))
        return token

    def outcomes(self, token: int | None = None) -> dict[str, str]:
        return self.stand.report(self.bridge, token).recipients

    def queues(self, *bodies: bytes, type_: str = "one", **meta: Any) -> None:
        """Send these bodies to s2, which is not reachable."""
        for body in bodies:
            self.sends("s2", type_=type_, body=body, **meta)
            assert self.outcomes() == {"s2": "queued"}

    def up(self) -> list[Relay]:
        """Open the link to s2; return the relays that are sent on it."""
        self.stand.take(self.stand.router.on_server_ready("s2", self.stand.now))
        return self.relays()

    def down(self) -> None:
        self.stand.take(self.stand.router.on_server_lost("s2", "nothing heard", self.stand.now))

    def relays(self) -> list[Relay]:
        return self.stand.heard_of(S2, Relay)

    def relay(self) -> Relay:
        return self.stand.one(S2, Relay)

    def answers(self, relay: Relay, outcome: str = "delivered", **meta: Any) -> None:
        self.stand.say(S2, Relayed(relay.token, outcome, meta))

    def waiting(self, type_: str = "one") -> list[bytes]:
        return [entry.body for entry in self.stand.kept(lane("s2", type_))]

    def dead(self) -> list[DeadLetter]:
        letters: list[DeadLetter] = self.stand.store.read(FindDeadLetters(None, None, 100))
        return letters


def bodies_of(relays: list[Relay]) -> list[bytes]:
    return [relay.body for relay in relays]


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]
