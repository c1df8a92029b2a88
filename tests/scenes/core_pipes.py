"""The world of the core's stage: virtual time, messages that lie until it is their turn, and the pipes they go through.

Everything happens in one order, the order in which it was said; time passes only when nothing is left to be done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Protocol

from bester.broker.core.values import Link
from bester.broker.wire.link_client import LinkClient, State, Step
from bester.broker.wire.messages import Malformed, Message

TICK_S = 0.25
PATIENCE_S = 120.0
"""Virtual seconds until something must have happened: more than any timeout of the core."""
MAX_EVENTS = 1_000_000
"""So much without a moment's rest is a loop that nothing ends."""


class World:
    """Virtual time, and what is still to happen now."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.keys = count(1)
        self.clocks: list[Callable[[], None]] = []
        """Called whenever time has passed."""
        self._soon: deque[Callable[[], None]] = deque()
        self._events = 0

    def soon(self, call: Callable[[], None]) -> None:
        """Call it in this moment, after all that was said before."""
        self._soon.append(call)

    def _step(self) -> None:
        if self._soon:
            self._events += 1
            assert self._events < MAX_EVENTS, "there is no end to it"
            self._soon.popleft()()
            return
        self._events = 0
        self.now += TICK_S
        for clock in list(self.clocks):
            clock()

    def until(self, done: Callable[[], object], what: str) -> None:
        """Let things happen, and time pass, until `done`."""
        deadline = self.now + PATIENCE_S
        while not done():
            assert self.now < deadline, f"in vain: {what}"
            self._step()

    def rest(self, seconds: float = 0.0) -> None:
        """Let everything happen that is to happen now and in the next seconds."""
        end = self.now + seconds
        while self._soon or self.now < end:
            self._step()


class Door(Protocol):
    """A server, as one who connects to it sees it."""

    guests: dict[Link, Callable[[Message], None]]

    def hear(self, link: Link, message: Message) -> None:
        """Take in what was said on a link."""


class Pipe:
    """The connecting side of a link, which has a Party's mind; `door` is asked where it leads at every attempt."""

    def __init__(
        self,
        world: World,
        party: LinkClient,
        door: Callable[[], Door | None],
        *,
        on_message: Callable[[Message | Malformed], None],
        on_ready: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.party = party
        self._world = world
        self._door = door
        self._on_message = on_message
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._server: Door | None = None
        self._link = Link("ipc", b"")
        self._frozen: list[tuple[Link, Message]] | None = None
        world.clocks.append(self._tick)
        self._open()

    def _open(self) -> None:
        link = self._link = Link("ipc", b"%d" % next(self._world.keys))
        self._server = self._door()
        if self._server is not None:
            self._server.guests[link] = lambda message: self._hear(link, message)
        self._do(self.party.opened(self._world.now))

    def _close(self) -> None:
        if self._server is not None:
            self._server.guests.pop(self._link, None)
            self._server = None

    def say(self, *messages: Message) -> None:
        """Send; what is sent while it leads nowhere is lost, as in a socket."""
        for message in messages:
            if self._server is not None:
                self._world.soon(lambda hear=self._server.hear, link=self._link, said=message: hear(link, said))  # type: ignore[misc]  # mypy infers no lambda with defaults

    def _hear(self, link: Link, message: Message) -> None:
        if self._frozen is not None:
            self._frozen.append((link, message))
        elif link == self._link:
            step = self.party.receive(message, self._world.now)
            if step.event is None and not step.send:
                self._on_message(message)
            self._do(step)

    def _tick(self) -> None:
        if self._frozen is not None:
            return
        if self.party.state is State.DOWN and self._world.now >= self.party.retry_at:
            self._open()
        self._do(self.party.tick(self._world.now))

    def _do(self, step: Step) -> None:
        self.say(*step.send)
        match step.event:
            case "welcomed":
                self._on_ready()
            case "unknown":
                self._on_lost("the broker does not know this link any more")
            case "lost" | "parted":
                self._close()
                self._on_lost(step.event)
            case "over":
                self._close()

    def leave(self) -> None:
        """Say goodbye."""
        self._do(self.party.leave("closing", self._world.now))

    def freeze(self) -> None:
        """Neither say nor hear anything; what comes lies there."""
        self._frozen = []

    def thaw(self) -> None:
        """Hear what has come meanwhile, before any timer."""
        lain, self._frozen = self._frozen or [], None
        for link, message in lain:
            self._hear(link, message)
