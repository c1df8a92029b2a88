"""A handler: a worker on a fabric link that holds requests and answers them as its behaviour says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import count

from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Command, Emit, Error, Heartbeat, Meta, Outcome, Reply, Request
from bester.handlers.exclusive import Exclusive
from tests.world.clock import BrokenRuleError, World
from tests.world.links import SimLink
from tests.world.network import Messages, Weather
from tests.world.servers import SimServer

LOOK_S = 0.25
"""Time between two looks at whether a broker may have the exclusive use of the process, as in the kit."""


class Fate(Enum):
    """Ends of a request other than a reply."""

    SILENT = "it is never answered"
    DIES = "the handler's process ends over it"


Behaviour = Callable[[Request], Reply | Fate]


class SimHandler:
    """A worker whose HELLO has `options`: types, credit, the order of types. A request takes from `fastest_s` to
    `slowest_s` seconds; requests of an ordered type are handled one after the other. `key` encrypts its link."""

    def __init__(
        self, world: World, server: SimServer, name: str, options: Meta, behaviour: Behaviour, *,
        weather: Weather | None = None, fastest_s: float = 0.0, slowest_s: float = 0.0, key: str = "",
    ) -> None:  # fmt: skip
        self.world = world
        self.server = server
        self.name = name
        self.types: list[str] = options["types"]
        self.credit: int = options["credit"]
        self.behaviour = behaviour
        self.on_request: Callable[[Request], None] = lambda request: None
        self.outcomes: dict[int, Outcome] = {}
        self.deaths: list[Request] = []
        """The requests that the worker died over."""
        self.owes = False
        """True when the worker has left a request without an answer."""
        self._ordered = frozenset(options.get("order", ()))
        self._tokens = count(1)
        self._took = (fastest_s, slowest_s)
        self._held: dict[int, Request] = {}
        self._line: deque[Request] = deque()
        self._life = 0
        self._thaw_at = 0.0
        self._is_barred = False
        self._unbegun: list[Request] = []
        self.process: SharedProcess | None = None
        """The process that this worker is part of, where it serves several brokers."""
        weather = weather or Weather()
        self.link = SimLink(
            world, lambda: server, LinkClient("handler", name, options), weather, weather,
            on_messages=self._received, on_ready=self._on_ready, on_lost=self._on_lost, key=key,
        )  # fmt: skip

    @property
    def held(self) -> list[int]:
        """The tokens of the requests in hand, and of those of the last link until that is noticed."""
        return list(self._held)

    def _on_ready(self) -> None:
        if self.process is not None:
            self.process.exclusive.on_linked(self)

    def _on_lost(self, why: str) -> None:
        self._held.clear()
        self._line.clear()
        self._unbegun.clear()
        self.owes = False
        self._life += 1
        if self.process is not None:
            self.process.exclusive.on_lost(self)

    def die(self) -> None:
        """The process ends, and comes back under a new link."""
        down_s = self.world.random.uniform(0.1, 3.0)
        for part in (self,) if self.process is None else self.process.parts:
            self.world.tell(part.name, "DIES")
            part.link.crash(down_s)

    # --- exclusive use of a process with several brokers ---

    can_pause = True

    @property
    def is_linked(self) -> bool:
        """Whether the broker has welcomed this worker."""
        return self.link.party.ready

    @property
    def is_clear(self) -> bool:
        """Whether no request of this broker is in hand."""
        return not self._held

    works_on_earlier = False  # a request of an earlier link kills nobody here

    def bar(self, number: int) -> None:
        """Tell the broker to pause, and begin no request of it."""
        self._is_barred = True
        while len(self._line) > 1:
            request = self._line.pop()
            del self._held[request.token]
            self._unbegun.insert(0, request)
        self.tell({"paused": number})

    def hand_back(self) -> None:
        """Hand back the requests that have not begun."""
        self.tell({"unbegun": [request.token for request in self._unbegun]})
        self._unbegun.clear()

    def unbar(self) -> None:
        """Begin requests of this broker again, first those that are held."""
        self._is_barred = False
        unbegun, self._unbegun = self._unbegun, []
        for request in unbegun:
            self._request(request)

    def tell(self, options: Meta) -> None:
        """Send a HEARTBEAT with options."""
        self.link.send(Heartbeat(options))

    def freeze(self, seconds: float) -> None:
        """Stop the process for a while; then continue where the process was."""
        self.world.tell(self.name, "FREEZES", f"for {seconds:.1f} s")
        self._thaw_at = max(self._thaw_at, self.world.now + seconds)
        self.link.party.on_sent(self._thaw_at)  # no heartbeats meanwhile

    def emit(self, type_: str, commands: list[Command], id_: str | None = None) -> int:
        """Act of its own initiative; returns the token that the outcome will have."""
        token = next(self._tokens)
        self.link.send(Emit(token, type_, commands, {} if id_ is None else {"id": id_}))
        return token

    def _received(self, messages: Messages) -> None:
        for message in messages:
            if type(message) is Request:
                self._request(message)
            elif type(message) is Outcome:
                if message.token in self.outcomes:
                    raise BrokenRuleError(f"{self.name}: a second outcome {message}")
                self.outcomes[message.token] = message
            elif type(message) is Error:
                if message.code != "unknown-token":
                    self.world.tell(self.name, "is told", message)
            elif type(message) is Heartbeat:
                if message.options and self.process is not None:
                    self.process.exclusive.on_signals(self, message.options)
            else:
                raise BrokenRuleError(f"{self.name} was sent {message}")

    def _request(self, request: Request) -> None:
        if self._is_barred:
            self._unbegun.append(request)
            return
        self._held[request.token] = request
        if len(self._held) > self.credit:
            raise BrokenRuleError(f"{self.name} holds {len(self._held)} requests; its credit is {self.credit}")
        self.on_request(request)
        if request.type in self._ordered:
            self._line.append(request)
            if len(self._line) > 1:
                return
        self._take_on(request)

    def _take_on(self, request: Request) -> None:
        life = self._life
        self._after(self.world.random.uniform(*self._took), lambda: self._work(request, life))

    def _after(self, delay_s: float, call: Callable[[], None]) -> None:
        def when_awake() -> None:
            if self.world.now < self._thaw_at:
                self.world.after(self._thaw_at - self.world.now, when_awake)
            else:
                call()

        self.world.after(delay_s, when_awake)

    def _work(self, request: Request, life: int) -> None:
        answer = self.behaviour(request)
        if answer is Fate.DIES:
            if life == self._life:
                self.deaths.append(request)
                self.die()
            return
        if answer is Fate.SILENT:
            self.owes = True
            if request.type in self._ordered:  # the worker hangs: later requests of the type wait
                return
        elif life == self._life or self.world.random.random() < 0.5:  # a confused one answers on the new link
            self._held.pop(request.token, None)
            self.link.send(answer)
            if self.process is not None:
                self.process.exclusive.check()
        if life == self._life and request.type in self._ordered:
            self._line.popleft()
            if self._line:
                self._take_on(self._line[0])


class SharedProcess:
    """A process that serves several brokers: `parts` are its workers, one for each, which die together."""

    def __init__(self, parts: Iterable[SimHandler]) -> None:
        self.parts = list(parts)
        self.exclusive = Exclusive(self.parts)
        for part in self.parts:
            part.process = self
        self._look()

    def _look(self) -> None:
        self.exclusive.check()
        self.parts[0].world.after(LOOK_S, self._look)
