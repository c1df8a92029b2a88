"""A device of a user: the real client core, on one connection after the other."""

from __future__ import annotations

from functools import partial

from bester.bridge.frames import Splitter, frame
from bester.client.core import Core
from bester.client.events import Answered, Arrived, Ended, Event, Failed, Lost, Ready, Reported
from bester.client.frames import NO_TERMS, Message, Report, Terms, parse
from bester.client.states import State
from tests.world.bridges import SimBridge
from tests.world.clock import World
from tests.world.connections import Connection

AGAIN_S = 1.0
"""Seconds until a client that never was logged in is started again by its application."""
MAX_FRAME_BYTES = 1 << 24
"""More than any message of a test has."""


class Device:
    """A device of a user, at `host`. `ack`: the device acknowledges received messages, after a while.

    Override `reported`, `failed`, `answered` and `seen` to observe the device.
    """

    def __init__(
        self, world: World, bridges: list[SimBridge], name: str, user: str, *, host: str, ack: bool = False
    ) -> None:
        self.world = world
        self.bridges = bridges
        self.server = bridges[0].server
        self.name = name
        self.user = user
        self.host = host
        self.ack = ack
        self.life = 0
        self.connections = 0
        self.was_ready = False
        self._core: Core | None = None
        self._connection: Connection | None = None
        self._timer = 0
        self._flushing = False

    # --- coming and going ---

    @property
    def here(self) -> bool:
        """Return whether the device's process is running."""
        return self._core is not None

    @property
    def ready(self) -> bool:
        """Return whether the device is logged in."""
        return self._core is not None and self._core.state is State.READY

    @property
    def may_submit(self) -> bool:
        """Return whether the device is running, was logged in, and has room for one more message."""
        return self._core is not None and self._core.open and self._core.room > 0 and self.was_ready

    def come(self) -> None:
        """Start the device's process."""
        if self._core is not None:
            return
        self.life += 1
        core = self._core = Core(
            server=self.server.name, user=self.user, password="secret", dedup_prefix=f"{self.name}-{self.life}",
            random=self.world.random.random, ack=self.ack,
        )  # fmt: skip
        self._dial_later(core, 0.0)

    def go(self) -> None:
        """Leave politely: submitted messages are still reported."""
        if self._core is not None:
            self.world.tell(self.name, "goes")
            self._act(self._core, self._core.leave(self.world.now, 5.0))
            self._wake()

    def die(self) -> None:
        """End the device's process: nobody waits for the reports any more."""
        if self._core is None:
            return
        self.world.tell(self.name, "DIES")
        self._core = None
        self._drop()

    def cut(self, bridge_notices_s: float, client_notices_s: float) -> None:
        """Cut the device's connection."""
        if self._connection is not None:
            self.world.tell(self.name, "IS CUT OFF")
            self._connection.cut(bridge_notices_s, client_notices_s)

    # --- the application's calls ---

    def submit(self, type_: str, body: bytes, terms: Terms = NO_TERMS) -> str:
        """Submit a message (see `may_submit`); return the id under which the message is reported."""
        assert self._core is not None
        id_ = self._core.submit(type_, body, terms)
        self.world.tell(self.name, f"submits {id_}", (type_, body, terms))
        self._wake()
        return id_

    def ask(self, message: str) -> str:
        """Ask for the outcome of a message, where the device is logged in; return the id of the question."""
        assert self._core is not None
        id_ = self._core.outcome(message)
        self._wake()
        return id_

    # --- callbacks ---

    def reported(self, id_: str, report: Report) -> None:
        """A message is reported."""

    def failed(self, id_: str, code: str) -> None:
        """A message or a question has ended without a report."""

    def answered(self, id_: str, recipients: dict[str, str] | None) -> None:
        """A question is answered."""

    def seen(self, message: Message, listening: bool) -> None:
        """Take a received message, perhaps a repeat; `listening`: the application took the message in."""

    def dropped(self, connection: Connection) -> None:
        """Take note of a connection's end; its `lost` gathers the bytes that left the bridge and never came, also later
        ones."""

    # --- its shell ---

    def _dial_later(self, core: Core, delay_s: float) -> None:
        self.world.after(delay_s, partial(self._dial, core))

    def _dial(self, core: Core) -> None:
        if core is not self._core or not core.dial():
            return
        bridge = self.world.random.choice(self.bridges)
        connection: list[Connection] = []

        def lost() -> None:
            if connection and self._connection is connection[0]:
                self._act(core, core.on_disconnected("it is gone", self.world.now))

        splitter = Splitter(MAX_FRAME_BYTES)

        def came(data: bytes) -> None:
            for body in splitter.feed(data):
                if connection and self._connection is connection[0]:
                    self._hear(core, body)

        opened = bridge.connect(self.host, came, lost)
        if opened is None:
            self._act(core, core.on_disconnected("nobody listens", self.world.now))
            return
        self.connections += 1
        connection.append(opened)
        self._connection = opened
        core.on_connected(self.world.now)
        self._wake()

    def _hear(self, core: Core, body: bytes) -> None:
        """Tell the story of every message that comes, also of repeats that the core skips."""
        value = parse(body)
        if isinstance(value, Message):
            self.seen(value, core.state is State.READY)
        self._act(core, core.receive(frame(body), self.world.now))
        self._wake()

    def _act(self, core: Core, events: list[Event]) -> None:
        for event in events:
            match event:
                case Reported():
                    self.reported(event.id, event.report)
                case Failed():
                    self.failed(event.id, event.error.code)
                case Arrived():
                    if event.message.id is not None and self.ack:
                        self._acknowledge_later(core, event.message.id)
                case Answered():
                    self.answered(event.id, event.recipients)
                case Ready():
                    self.was_ready = True
                    self.world.tell(self.name, "IS LOGGED IN")
                case Lost():
                    self._drop()
                    self._dial_later(core, event.retry_at - self.world.now)
                case Ended():
                    self._flush()
                    self._drop()
                    self._core = None
                    self.was_ready = False
                    if event.error is not None:
                        self.world.after(AGAIN_S, self.come)

    def _acknowledge_later(self, core: Core, id_: str) -> None:
        def acknowledge() -> None:
            if self._core is core:
                core.acknowledge(id_)
                self._wake()

        self.world.after(self.world.random.random() * 0.5, acknowledge)

    def _wake(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.world.after(0.0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        core, connection = self._core, self._connection
        if core is None:
            return
        if connection is not None:
            frames = core.take()
            if frames:
                connection.write(b"".join(frames))
        due = core.next_timer()
        if due is not None:
            self._timer += 1
            self.world.at(due, partial(self._tick, core, self._timer))

    def _tick(self, core: Core, timer: int) -> None:
        if core is self._core and timer == self._timer:
            self._act(core, core.tick(self.world.now))
            self._wake()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.hang_up()
            self.dropped(connection)
