"""Bridges of the simulation: the real core, on connections that are as slow and as breakable as the seed makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from bester.bridge.bridge import Bridge
from bester.bridge.frames import Splitter
from bester.bridge.limits import Limits
from bester.bridge.outqueue import OutQueue
from bester.bridge.ports import Waiting
from bester.bridge.session import Session
from bester.bridge.states import State
from bester.broker.core.values import Link
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import VERSION, Forward, Hello, Message, Meta
from tests.simulation.links import SimLink
from tests.simulation.natives import Done
from tests.simulation.servers import SimServer
from tests.simulation.world import Messages, Weather, World

TICK_S = 0.5


class Connection:
    """A `Wire`, and the client's socket at its other end: bytes in both directions, in order, until it is cut.

    `lost` gathers what had left the bridge and never came to the client.
    """

    __slots__ = (
        "_cut",
        "_ending",
        "_held",
        "_last_down",
        "_last_up",
        "_over",
        "_under_way",
        "abort_code",
        "bridge",
        "core",
        "dirty",
        "lost",
        "on_bytes",
        "on_lost",
        "out",
        "reading",
        "session",
        "slow_s",
        "stalled_bytes",
        "stalled_since",
        "world",
    )  # fmt: skip

    session: Session  # given by the bridge's `admit`

    def __init__(
        self, bridge: SimBridge, host: str, *, on_bytes: Callable[[bytes], None], on_lost: Callable[[], None],
        slow_s: float,
    ) -> None:  # fmt: skip
        self.world = bridge.world
        self.bridge = bridge
        assert bridge.core is not None
        self.core = bridge.core
        self.on_bytes = on_bytes
        self.on_lost = on_lost
        self.slow_s = slow_s
        self.lost: list[bytes] = []
        self._under_way: list[bytes] = []  # to the client
        self._held: list[bytes] = []  # to the bridge, which does not read
        self._cut = False  # nothing passes any more
        self._over = False  # the bridge knows
        self._ending = False
        self._last_down = self._last_up = 0.0
        self.out: OutQueue[Waiting] = OutQueue()
        self.dirty = False
        self.abort_code: str | None = None
        self.reading = True
        self.stalled_since = 0.0
        self.stalled_bytes = 0
        self.core.admit(self, host)
        bridge.connections[self] = None

    # --- what the client does ---

    def write(self, data: bytes) -> None:
        """Bytes for the bridge."""
        if not self._cut:
            self._last_up = max(self._last_up, self.world.now + self.world.random.random() * 0.01)
            self.world.at(self._last_up, partial(self._arrive_up, data))

    def hang_up(self) -> None:
        """The client closes its socket, or its process is gone."""
        if not self._cut:
            self._last_up = max(self._last_up, self.world.now + 0.005)
            self.world.at(self._last_up, self._gone)
            self._break()

    def _arrive_up(self, data: bytes) -> None:
        if self._cut or self._over:
            return
        if self.reading:
            self.core.on_bytes(self, data)
        else:
            self._held.append(data)

    # --- what befalls it ---

    def cut(self, bridge_notices_s: float, client_notices_s: float) -> None:
        """The network between them is gone; what is on its way is lost, and each notices in its time."""
        if self._cut:
            return
        self._break()
        self.world.after(bridge_notices_s, self._gone)
        self.world.after(client_notices_s, self.on_lost)

    def _break(self) -> None:
        self._cut = True
        self.lost += self._under_way
        self._under_way.clear()

    def _gone(self) -> None:
        if not self._over:
            self._over = True
            self.bridge.connections.pop(self, None)
            self.core.on_connection_gone(self)

    def died(self) -> None:
        """The bridge's process is gone; the client's system is told so."""
        self._over = True
        if not self._cut:
            self._break()
            self.world.after(self.world.random.choice((0.0, 0.01, 1.0)), self.on_lost)

    # --- what the bridge does ---

    def flush(self) -> None:
        """Hand what is queued to the socket, a chunk at a time."""
        if self._over or self._ending:
            return
        chunk = self.out.take(self.core.limits.write_chunk)
        while chunk:
            if self.slow_s and self.world.random.random() < 0.5:
                self.core.on_blocked(self)
                arrives = self.world.random.random() < 0.5  # before it is known to have left, or after
                if arrives:
                    self._send(chunk)
                self.world.after(
                    self.world.random.random() * self.slow_s, partial(self._left, b"" if arrives else chunk)
                )
                return
            self._send(chunk)
            self.core.on_bytes_sent(self, self.out.on_sent())
            chunk = self.out.take(self.core.limits.write_chunk)
        if self.session.state is State.CLOSING and not self.out.in_flight:
            self._end()

    def _left(self, chunk: bytes) -> None:
        if self._over:
            return
        if chunk:
            self._send(chunk)
        self.core.on_bytes_sent(self, self.out.on_sent())
        self.flush()

    def _send(self, chunk: bytes) -> None:
        if self._cut:
            self.lost.append(chunk)
            return
        self._under_way.append(chunk)
        self._last_down = max(self._last_down, self.world.now + self.world.random.random() * 0.01)
        self.world.at(self._last_down, partial(self._arrive_down, chunk))

    def _arrive_down(self, chunk: bytes) -> None:
        if not self._cut:
            self._under_way.pop(0)
            self.on_bytes(chunk)

    def _end(self) -> None:
        self._ending = True
        self.core.on_all_sent(self)
        self._last_down = max(self._last_down, self.world.now)
        self.world.at(self._last_down, self._hear_end)
        self.world.after(0.1, self._gone)

    def _hear_end(self) -> None:
        if not self._cut:
            self._cut = True
            self.on_lost()

    def read(self, on: bool) -> None:
        """Read on, or let the peer wait."""
        self.reading = on
        if on and self._held:
            held, self._held = self._held, []
            for data in held:
                self.world.after(0.0, partial(self._arrive_up, data))

    def unsent_bytes(self) -> int:
        """Return what the socket has not yet taken over of the chunk in flight."""
        return self.out.taken_bytes - self.out.sent_bytes

    def abort(self, why: str) -> None:
        """Cut the connection."""
        if why:
            self.world.tell(self.bridge.name, "cuts a connection", why)
        if not self._cut:
            self._break()
            self.world.after(0.0, self.on_lost)
        self.world.after(0.0, self._gone)


@dataclass(frozen=True)
class Peer:
    """A server that speaks the native protocol and says one message; `reports` are the frames it was answered."""

    server: str
    body: bytes
    reports: list[bytes] = field(default_factory=list)


class SimBridge:
    """One bridge. `direct`: it runs in its broker's process, and dies with it. `slow_s` is the longest a chunk takes
    to leave."""

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
            self._limits, clock=lambda: self.world.now, soon=self._soon, forward=self._forward, notice=self._notice
        )
        if self.crashes:
            self.world.tell(self.name, "STARTS AGAIN")
        if self.direct:
            core.connect(_Direct(self, core))
            return
        if self.link is None:
            self.link = SimLink(
                self.world, self.server, self._party(), self._weather, self._weather,
                on_messages=lambda messages: self._alive(lambda core: core.receive(messages)),
                on_ready=lambda: self._alive(lambda core: core.on_link_ready()),
                on_lost=lambda why: self._alive(lambda core: core.on_link_lost(why)),
            )  # fmt: skip
        core.connect(self.link)

    def _alive(self, call: Callable[[Bridge], None]) -> None:
        if self.core is not None:
            call(self.core)

    def _party(self) -> LinkClient:
        return LinkClient("bridge", self.name, {"epoch": self.world.new_key().decode()})

    def _soon(self, call: Callable[[], None]) -> None:
        self.world.after(0.0, call)

    def _notice(self, text: str) -> None:
        self.world.tell(self.name, "notes", text)

    def _forward(self, message: Forward) -> None:
        core = self.core

        def done(outcome: str, meta: Meta) -> None:
            if self.core is core and core is not None:
                core.on_forwarded(message.token, outcome, meta)

        self.on_forward(self.server, message, done)

    def _tick(self) -> None:
        if self.core is not None:
            self.core.tick()
        self.world.after(TICK_S, self._tick)

    # --- what befalls it ---

    def crash(self, down_s: float) -> None:
        """Its process ends: connections are cut, and nothing is remembered."""
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
        """A native server says its one message and waits for the report; `told` is called when the peer has it."""
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
        self._server.receive(self._link, (Hello(VERSION, "bridge", bridge.name, {"epoch": world.new_key().decode()}),))

    def send(self, message: Message) -> bool:
        return self.send_all((message,)) == 1

    def send_all(self, messages: Sequence[Message]) -> int:
        if self._server.up and self._server.life == self._life:
            self._server.receive(self._link, messages)
        return len(messages)
