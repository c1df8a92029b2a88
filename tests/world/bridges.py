"""A server's bridge: the real core, a link to the broker, and the client connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bester.bridge.bridge import Bridge
from bester.bridge.credit import hello_options
from bester.bridge.frames import Splitter
from bester.bridge.limits import Limits
from bester.bridge.ports import Shell
from bester.broker.core.effects import Link
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import VERSION, Forward, Hello, Message, Meta
from tests.world.clock import World
from tests.world.connections import Connection
from tests.world.links import SimLink
from tests.world.natives import Done
from tests.world.network import Messages, Weather
from tests.world.servers import SimServer

TICK_S = 0.5


@dataclass(frozen=True)
class Peer:
    """A server that speaks the native protocol and sends one message; `reports` are the frames that came in answer."""

    server: str
    body: bytes
    reports: list[bytes] = field(default_factory=list)


class SimBridge:
    """A bridge. `direct`: the bridge runs in its broker's process, and dies with the broker. `slow_s`: the longest time
    in seconds that a chunk takes to leave."""

    def __init__(
        self, world: World, server: SimServer, name: str, limits: Limits, *, direct: bool = False,
        weather: Weather | None = None, slow_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.world = world
        self.server = server
        self.name = name
        self.direct = direct
        self.slow_s = slow_s
        self.on_forward: Callable[[SimServer, Forward, Done], None] = lambda server, message, done: None
        self.connections: dict[Connection, None] = {}
        self.core: Bridge | None = None
        self.crashes = 0
        self.link: SimLink | None = None
        self._limits = limits
        self._weather = weather or Weather()
        self._start()
        if direct:
            server.on_crash.append(self.crash)
            server.on_start.append(self._start)
        self._tick()

    def _start(self) -> None:
        core = self.core = Bridge(
            self._limits, Shell(lambda: self.world.now, self._soon, notice=self._notice), carry=self._forward
        )
        if self.crashes:
            self.world.tell(self.name, "STARTS AGAIN")
        if self.direct:
            core.connect(_Direct(self, core))
            return
        if self.link is None:
            link = self.link = SimLink(
                self.world, lambda: self.server, self._party(), self._weather, self._weather,
                on_messages=lambda messages: self._alive(lambda core: core.receive(messages)),
                on_ready=lambda: self._alive(lambda core: core.on_link_ready(link.party.options)),
                on_lost=lambda why: self._alive(lambda core: core.on_link_lost(why)),
            )  # fmt: skip
        core.connect(self.link)

    def _alive(self, call: Callable[[Bridge], None]) -> None:
        if self.core is not None:
            call(self.core)

    def _party(self) -> LinkClient:
        return LinkClient("bridge", self.name, {"epoch": self.world.new_key().decode(), **hello_options(self._limits)})

    def _soon(self, call: Callable[[], None]) -> None:
        self.world.after(0.0, call)

    def _notice(self, text: str) -> None:
        self.world.tell(self.name, "notes", text)

    def _forward(self, message: Forward) -> None:
        core = self.core

        def done(outcome: str, meta: Meta) -> None:
            if self.core is core and core is not None:
                core.forwards.on_forwarded(message.token, outcome, meta)

        self.on_forward(self.server, message, done)

    def _tick(self) -> None:
        if self.core is not None:
            self.core.tick()
        self.world.after(TICK_S, self._tick)

    # --- faults ---

    def crash(self, down_s: float) -> None:
        """End the process: cut its connections and forget its state. Start again after `down_s` seconds."""
        if self.core is None:
            return
        self.world.tell(self.name, "CRASHES", f"for {down_s:.1f} s")
        self.crashes += 1
        self.core = None
        connections, self.connections = self.connections, {}
        for connection in connections:
            connection.died()
        if not self.direct:
            assert self.link is not None
            self.world.after(down_s, self._start)
            self.link.crash(down_s, self._party())

    def connect(self, host: str, on_bytes: Callable[[bytes], None], on_lost: Callable[[], None]) -> Connection | None:
        """Open a connection; None: nobody listens."""
        if self.core is None:
            return None
        return Connection(self, host, on_bytes=on_bytes, on_lost=on_lost, slow_s=self.slow_s)

    def say(self, host: str, peer: Peer, frame: bytes, told: Callable[[], None]) -> None:
        """Let a native server send its one message and wait for the report; `told` is called when the peer has the
        report."""
        splitter = Splitter(1 << 20)
        connection: list[Connection] = []

        def on_bytes(data: bytes) -> None:
            bodies = splitter.feed(data)
            if bodies:
                peer.reports.extend(bodies)
                connection[0].hang_up()
                told()

        opened = self.connect(host, on_bytes, lambda: None)
        if opened is not None:
            connection.append(opened)
            opened.write(frame)


class _Direct:
    """The way to a broker in the same process."""

    def __init__(self, bridge: SimBridge, core: Bridge) -> None:
        self._server = bridge.server
        self._life = bridge.server.life
        self._link = Link("direct", bridge.world.new_key())
        world = bridge.world

        def hear(messages: Messages) -> None:
            if bridge.core is core:
                core.receive(messages)

        self._server.direct[self._link] = lambda messages: world.after(0.0, lambda: hear(messages))
        options = {"epoch": world.new_key().decode(), **hello_options(core.limits)}
        self._server.receive(self._link, (Hello(VERSION, "bridge", bridge.name, options),))

    def send(self, message: Message) -> bool:
        return self.send_all((message,)) == 1

    def send_all(self, messages: Sequence[Message]) -> int:
        if self._server.up and self._server.life == self._life:
            self._server.receive(self._link, messages)
        return len(messages)

    def give_up(self) -> None:
        raise AssertionError("a broker in this process takes every message")
