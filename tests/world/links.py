"""The connecting side of a fabric link: a real Party, its timers, and a new socket whenever the party asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bester.broker.core.effects import Link
from bester.broker.wire.link_client import LINK_MESSAGES, LinkClient, State, Step
from bester.broker.wire.messages import Message
from tests.world.clock import World
from tests.world.network import Messages, Pipe, Weather

if TYPE_CHECKING:
    from tests.world.servers import SimServer

Door = Callable[[], "SimServer | None"]
"""The server that a link reaches when it is connected; None: nobody listens there, and sends are lost."""


class SimLink:
    """A link to the server behind `door`. Batches from the server go to `on_messages`.

    `there` and `back` are the weather of the two directions. `key` is the public key of a party on an encrypted link,
    empty on others. `on_send` sees each batch as it leaves, `on_shut` the name of each link that has ended.
    """

    def __init__(
        self, world: World, door: Door, party: LinkClient, there: Weather, back: Weather, *,
        on_messages: Callable[[Messages], None], on_ready: Callable[[], None], on_lost: Callable[[str], None],
        key: str = "",
    ) -> None:  # fmt: skip
        self.world = world
        self.on_send: Callable[[Sequence[Message]], None] = lambda messages: None
        self.on_shut: Callable[[Link], None] = lambda link: None
        self._key = key
        self.party = party
        self.name = f"{party.hello.role}:{party.hello.name}"
        self.weather = (there, back)
        self._door = door
        self._server: SimServer | None = None
        self._on_messages = on_messages
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._link: Link | None = None
        self._up: Pipe
        self._down: Pipe
        self._timer = 0
        self._away = 0  # attempts to open that a crash has overtaken
        self._stored: list[tuple[Link, Messages]] | None = None  # while the link is frozen: the batches that came
        self._open()

    @property
    def link(self) -> Link | None:
        """The link's name at the server, None while there is no socket."""
        return self._link

    @property
    def server(self) -> SimServer | None:
        """Return the server that the link was last connected to, None where nobody listened."""
        return self._server

    # --- a BrokerPort ---

    def send(self, message: Message) -> bool:
        """Send a message; False where there is no link now."""
        return self.send_all((message,)) == 1

    def send_all(self, messages: Sequence[Message]) -> int:
        """Send messages as one batch; returns how many."""
        if self._link is None or self.party.state in (State.DOWN, State.GREETING):
            return 0
        self._up.send(messages)
        self.on_send(messages)
        self.party.on_sent(self.world.now)
        return len(messages)

    def give_up(self) -> None:
        """Lose the link in the next turn: its messages find no room."""
        self.world.after(0.0, lambda: self._do(self.party.on_unread(self.world.now)))

    # --- faults ---

    def crash(self, down_s: float, party: LinkClient | None = None) -> None:
        """End the process at this end and start it again: a new party on a new socket, without any memory."""
        self._shut(politely=self.world.random.random() < 0.5)
        hello = self.party.hello
        self.party = party or LinkClient(hello.role, hello.name, hello.options)
        self._stored = None
        self._away += 1
        away = self._away
        self._on_lost("crashed")
        self.world.after(down_s, lambda: self._open() if away == self._away else None)

    def reidentify(self) -> None:
        """The connection broke and ZeroMQ made a new one: same socket here, another identity there."""
        if self._link is None:
            return
        self._forget(self._link)
        self._up.closed = self._down.closed = True
        self._connect()

    def leave(self) -> None:
        """Send the goodbye, and stay until the answer comes."""
        self._do(self.party.leave("closing", self.world.now))

    def freeze(self) -> None:
        """Neither send nor receive anything; batches that come are stored until `thaw`."""
        if self._stored is None:
            self._stored = []

    def thaw(self) -> None:
        """Receive the batches that came meanwhile, before any timer."""
        stored, self._stored = self._stored or (), None
        for link, messages in stored:
            self._received(link, messages)
        if self._link is None:
            self._open()
        else:
            self._do(self.party.tick(self.world.now))

    # --- its shell ---

    def _open(self) -> None:
        if self._link is None and self.party.state is State.DOWN and self._stored is None:
            self._connect()
            self._do(self.party.on_opened(self.world.now))

    def _connect(self) -> None:
        door = "curve" if self._key else "ipc"
        link = self._link = Link(door, self.world.new_key(), self._key)
        server = self._server = self._door()
        there, back = self.weather
        self._up = Pipe(self.world, there, lambda messages: None if server is None else server.receive(link, messages))
        self._down = Pipe(self.world, back, lambda messages: self._received(link, messages))
        if server is not None:
            server.links[link] = self
            server.pipes[link] = self._down

    def _forget(self, link: Link) -> None:
        if self._server is not None:
            self._server.forget(link)

    def _shut(self, *, politely: bool = True) -> None:
        """Close the socket; where the server's side cannot tell (not `politely`), later sends to the link are
        swallowed."""
        if self._link is None:
            return
        link, self._link = self._link, None
        self._down.closed = True
        if politely:
            self._forget(link)
        else:
            self._up.closed = True
        self.on_shut(link)

    def _received(self, link: Link, messages: Messages) -> None:
        if self._stored is not None:
            self._stored.append((link, messages))
            return
        if link != self._link:
            return
        now = self.world.now
        if LINK_MESSAGES.isdisjoint(map(type, messages)):
            self.party.on_received(now)
            self._on_messages(messages)
            return
        for part in self.party.receive_all(messages, now):
            if isinstance(part, Step):
                self._do(part)
            elif self._link is not None:
                self._on_messages(part)

    def _do(self, step: Step) -> None:
        if step.send:
            self._up.send(step.send)
        if step.event == "welcomed":
            self._on_ready()
        elif step.event == "unknown":
            self._on_lost("the broker does not know this link")
        elif step.event in ("lost", "parted"):
            self._shut(politely=self.world.random.random() < 0.5)
            self._on_lost(step.event)
            away = self._away
            self.world.at(self.party.retry_at, lambda: self._open() if away == self._away else None)
        elif step.event == "over":
            self._shut()
        self._set_timer()

    def _set_timer(self) -> None:
        when = self.party.next_timer()
        if when is None:
            return
        self._timer += 1
        number = self._timer
        self.world.at(when, lambda: self._on_timer(number))

    def _on_timer(self, number: int) -> None:
        if number == self._timer and self._link is not None and self._stored is None:
            self._do(self.party.tick(self.world.now))
