"""A small deterministic world: virtual time, one source of chance, a story of everything that happened; pipes, servers.

Nothing here waits, and nothing depends on anything but the seed: the same seed is the same story, event for event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import Any

from bester.broker.core.router import Router
from bester.broker.core.values import Action, Link, Notice, Send, Settings, Verify
from bester.broker.wire.messages import Heartbeat, Malformed, Message, Relay
from bester.broker.wire.party import Party, State, Step

TICK_S = 0.25


class World:
    """Virtual time and chance. `story` lists what happened, as (at, who, what, about)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.story: list[tuple[float, str, str, Any]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._keys = count(1)

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call it that much later; of two calls at one time the first that was asked for comes first."""
        self.at(self.now + delay_s, call)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call it then, or now if that is past."""
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), call))

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let events happen until that time, or until it is enough (looked at once a tick)."""
        look = self.now
        while self._events and self._events[0][0] <= until:
            at, _, call = heapq.heappop(self._events)
            self.now = at
            if at >= look:
                if enough():
                    return
                look = at + TICK_S
            call()
        if not enough():
            self.now = until

    def tell(self, who: str, what: str, about: Any = "") -> None:
        """Note a line of the story."""
        self.story.append((self.now, who, what, about))

    def new_key(self) -> bytes:
        """Return a key that no link had before."""
        return b"%d" % next(self._keys)

    def told(self) -> str:
        """Return the whole story as text."""
        return "\n".join(f"{at:9.3f}  {who:<10} {what} {about}" for at, who, what, about in self.story)


@dataclass
class Weather:
    """What happens to messages on their way: `loss` and `shuffle` are shares of them, `cut` drops all.

    Between servers alone: the link of a bridge or handler loses nothing unless it breaks, but it may stall: nothing
    arrives before `stalled_until`.
    """

    least_s: float = 0.0
    most_s: float = 0.0
    loss: float = 0.0
    shuffle: float = 0.0
    cut: bool = False
    stalled_until: float = 0.0


class Pipe:
    """One direction of a link: in order, unless its weather shuffles; nothing arrives once it is closed."""

    def __init__(self, world: World, weather: Weather, arrive: Callable[[Message | Malformed], None]) -> None:
        self._world = world
        self._weather = weather
        self._arrive = arrive
        self._last = 0.0
        self.closed = False

    def send(self, message: Message | Malformed) -> None:
        world, weather = self._world, self._weather
        if weather.cut or (weather.loss and world.random.random() < weather.loss):
            if type(message) is not Heartbeat:
                world.tell("network", "loses", message)
            return
        at = world.now + world.random.uniform(weather.least_s, weather.most_s)
        if not weather.shuffle or world.random.random() >= weather.shuffle:
            at = self._last = max(at, self._last, weather.stalled_until)
        world.at(at, lambda: None if self.closed else self._arrive(message))


class SimServer:
    """One broker: a Router, and around it what its shell would do. It can freeze, and start again with nothing."""

    def __init__(self, world: World, settings: Settings, *, password: str = "secret") -> None:
        self.world = world
        self.settings = settings
        self.name = settings.name
        self.links: dict[Link, SimLink] = {}  # of those who connected here
        self.pipes: dict[Link, Pipe] = {}  # to them
        self.out: dict[str, SimLink] = {}  # to other servers
        self.direct: dict[Link, Callable[[Message], None]] = {}
        self.on_restart: list[Callable[[], None]] = []
        self._password = password
        self._lives = count(1)
        self._thaw_at = 0.0
        self._backlog: list[tuple[Link, Message | Malformed]] = []
        self.router = self._new_router()
        world.after(world.random.uniform(0, TICK_S), self._tick)

    def _new_router(self) -> Router:
        life = next(self._lives)
        return Router(
            self.settings, epoch=f"e{life}", first_token=self.world.random.randrange(2**51), now=self.world.now
        )

    def link_to(self, other: SimServer, there: Weather, back: Weather) -> None:
        """Open the link to another server of the settings' routes."""
        link, name = Link("server", other.name.encode()), other.name
        self.out[name] = SimLink(
            self.world,
            other,
            Party("server", self.name, {}),
            there,
            back,
            on_message=lambda message: self.receive(link, message),
            on_ready=lambda: self._carry_out(self.router.server_ready(name, self.world.now)),
            on_lost=lambda why: self._carry_out(self.router.server_lost(name, why, self.world.now)),
        )

    def forget(self, link: Link) -> None:
        """The socket at the other end is closed, and can be seen to be."""
        del self.links[link]
        del self.pipes[link]

    # --- what befalls it ---

    @property
    def frozen(self) -> bool:
        return self.world.now < self._thaw_at

    def freeze(self, seconds: float) -> None:
        """Stop the whole process for a while; what comes meanwhile waits in its sockets."""
        self.world.tell(self.name, "FREEZES", f"for {seconds:.1f} s")
        self._thaw_at = self.world.now + seconds
        self.world.after(seconds, self._thaw)

    def _thaw(self) -> None:
        if self.frozen:
            return
        backlog, self._backlog = self._backlog, []
        for link, message in backlog:
            self.receive(link, message)

    def restart(self) -> None:
        """Die and start again: nothing is remembered, and every link has a new identity."""
        self.world.tell(self.name, "RESTARTS")
        self.router = self._new_router()
        self._backlog.clear()
        self._thaw_at = 0.0
        for link in list(self.links.values()):
            link.reidentify()
        for link in self.out.values():
            link.crash()
        for call in self.on_restart:
            call()

    # --- its shell ---

    def receive(self, link: Link, message: Message | Malformed) -> None:
        if self.frozen:
            self._backlog.append((link, message))
            return
        if type(message) is not Heartbeat:
            self.world.tell(self.name, f"<- {self._who(link)}", message)
        self._carry_out(self.router.receive(link, message, self.world.now))

    def _tick(self) -> None:
        if not self.frozen:
            self._carry_out(self.router.tick(self.world.now))
        self.world.after(TICK_S, self._tick)

    def _who(self, link: Link) -> str:
        connected = self.links.get(link)
        return connected.name if connected is not None else f"{link.door}:{link.key.decode()}"

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(action.link, action.message)
            elif isinstance(action, Verify):
                self.world.after(self.world.random.uniform(0, 0.2), partial(self._verify, action))
            elif isinstance(action, Notice):
                self.world.tell(self.name, f"notes {action.event}", action.fields)

    def _verify(self, action: Verify) -> None:
        reason = None if action.password == self._password else "authentication-failed"
        self._carry_out(self.router.verified(action.link, action.session, action.user, reason, self.world.now))

    def _send(self, link: Link, message: Message) -> None:
        if type(message) is not Heartbeat:
            self.world.tell(self.name, f"-> {self._who(link)}", message)
        if link.door == "direct":
            if link in self.direct:
                self.direct[link](message)
        elif link.door == "server":
            if not self.out[link.key.decode()].send(message):
                assert isinstance(message, Relay)
                self.world.after(0.0, lambda: self._undeliverable(link, message))
        elif link in self.links:
            self.pipes[link].send(message)
        else:
            self.world.after(0.0, lambda: self._undeliverable(link, message))

    def _undeliverable(self, link: Link, message: Message) -> None:
        self._carry_out(self.router.undeliverable(link, message, self.world.now))


class SimLink:
    """The connecting side of a link to a server: a Party, its timers, and a new socket whenever it asks for one."""

    def __init__(
        self,
        world: World,
        server: SimServer,
        party: Party,
        there: Weather,
        back: Weather,
        *,
        on_message: Callable[[Message | Malformed], None],
        on_ready: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.world = world
        self.server = server
        self.party = party
        self.name = f"{party.hello.role}:{party.hello.name}"
        self.weather = (there, back)
        self._on_message = on_message
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._link: Link | None = None
        self.up: Pipe
        self.down: Pipe
        self._timer = 0
        self._open()

    def send(self, message: Message) -> bool:
        """Send a message; False where there is no link now."""
        if self._link is None or self.party.state in (State.DOWN, State.GREETING):
            return False
        self.up.send(message)
        self.party.sent(self.world.now)
        return True

    def crash(self) -> None:
        """The process at this end dies and is started again: a new party on a new socket, that knows nothing."""
        self._shut(politely=self.world.random.random() < 0.5)
        hello = self.party.hello
        self.party = Party(hello.role, hello.name, hello.options)
        self._on_lost("crashed")
        self.world.after(self.world.random.uniform(0.1, 3.0), self._open)

    def reidentify(self) -> None:
        """The connection broke and ZeroMQ made a new one: same socket here, another identity there."""
        if self._link is None:
            return
        self.server.forget(self._link)
        self.up.closed = self.down.closed = True
        self._connect()

    def _open(self) -> None:
        if self._link is None and self.party.state is State.DOWN:
            self._connect()
            self._do(self.party.opened(self.world.now))

    def _connect(self) -> None:
        link = self._link = Link("ipc", self.world.new_key())
        there, back = self.weather
        self.up = Pipe(self.world, there, lambda message: self.server.receive(link, message))
        self.down = Pipe(self.world, back, self._received)
        self.server.links[link] = self
        self.server.pipes[link] = self.down

    def _shut(self, *, politely: bool = True) -> None:
        """Close the socket; where the server's side cannot tell (not `politely`), what it sends is swallowed."""
        if self._link is None:
            return
        link, self._link = self._link, None
        self.down.closed = True
        if politely:
            self.server.forget(link)
        else:
            self.up.closed = True

    def _received(self, message: Message | Malformed) -> None:
        step = self.party.receive(message, self.world.now)
        if step.event is None and not step.send:
            self._on_message(message)
        else:
            self._do(step)

    def _do(self, step: Step) -> None:
        for message in step.send:
            self.up.send(message)
        if step.event == "welcomed":
            self._on_ready()
        elif step.event == "unknown":
            self._on_lost("the broker does not know this link")
        elif step.event in ("lost", "parted"):
            self._shut(politely=self.world.random.random() < 0.5)
            self._on_lost(step.event)
            self.world.at(self.party.retry_at, self._open)
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
        if number == self._timer and self._link is not None:
            self._do(self.party.tick(self.world.now))
