"""The stage of a scene: servers, users and handlers, and the questions that a scene asks them.

A scene is written once and played on every stage: `core_stage` is the pure core in virtual time, `live_stage` real
servers on real sockets. Nothing here depends on the kind of stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bester.broker.wire.messages import Command
from bester.handlers.app import App
from bester.handlers.message import Message
from bester.handlers.runtime import Outcome

Function = Callable[[Message], Command | Sequence[Command] | None]
"""A handler's function, as a user of the SDK writes it."""

HANDLER_WAIT_S = 1.0
"""Time in seconds, on every stage, that a message waits for a handler of its type to come back."""


class Report(NamedTuple):
    """The report on a message; `recipients` is empty where every outcome is `delivered`, `note` is the reason for a
    refusal."""

    good: bool
    reason: str | None
    message: str | None
    recipients: dict[str, str]
    note: str | None = None


class Received(NamedTuple):
    """A message as a user receives it."""

    data: Any
    type: str
    id: str
    origin: str
    redelivered: bool


class User(ABC):
    """A user with one connection."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def submits(self, type_: str, data: Any) -> Awaitable[Report]:
        """Send a message now; await the result for its report."""

    async def sends(self, type_: str, data: Any) -> Report:
        """Send a message and wait for its report."""
        return await self.submits(type_, data)

    @abstractmethod
    async def receives(self) -> Received:
        """Wait for the next message."""

    @abstractmethod
    async def leaves(self) -> None:
        """Close the connection."""

    @abstractmethod
    async def unread(self) -> list[Any]:
        """Return the messages that have arrived and were not looked at."""


class Handler(ABC):
    """A process with handlers of its own, as its server sees it."""

    @abstractmethod
    async def freezes(self) -> None:
        """Stop in the middle of things: the process is silent from now on, and input waits in its sockets."""

    @abstractmethod
    async def thaws(self) -> None:
        """Go on at the point of the freeze."""

    @abstractmethod
    async def leaves(self) -> None:
        """Finish the requests in hand, say goodbye and end."""

    @abstractmethod
    async def emits(self, type_: str, *commands: Command) -> Outcome:
        """Emit commands without a request, and wait for their outcome."""


class Server(ABC):
    """A server: a broker, and a bridge for its users."""

    def __init__(self, name: str, peers: Sequence[str]) -> None:
        self.name = name
        self.peers = tuple(peers)

    @abstractmethod
    async def handler(self, functions: Mapping[str, Function], *, credit: int = 16, ordered: bool = False) -> Handler:
        """Start a process that handles these types. `ordered`: each user's messages one after the other."""

    @abstractmethod
    async def dies(self) -> None:
        """End at once, with requests still waiting."""


class Stage(ABC):
    """A stage, on which scenes are played."""

    async def begins(self) -> None:
        """Set the stage."""
        return

    @abstractmethod
    async def server(
        self,
        name: str,
        handlers: Mapping[str, Function] | None = None,
        peers: Sequence[str] = (),
        residents: Sequence[str] = (),
    ) -> Server:
        """Start a server, with a process for each handler. `peers` are the servers it knows, and lets in; `residents`
        are users it knows though they may be away. A dead server that is started again finds its stored messages. On
        return, the links between running servers that know each other are up."""

    @abstractmethod
    async def user(self, name: str, at: Server) -> User:
        """Log a user in, on a new connection."""

    @abstractmethod
    async def ends(self) -> None:
        """End the scene. Fails where a user received a message that the scene did not expect."""


def app_of(functions: Mapping[str, Function], credit: int, ordered: bool) -> App:
    """Return an App of these functions."""
    app = App("-".join(functions), credit=credit)
    for type_, function in functions.items():
        app.handler(type_, order="user" if ordered else None, inline=True)(function)
    return app
