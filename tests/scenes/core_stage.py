"""The core's stage: the servers of a world in virtual time, without a socket.

Brokers, bridges, clients and links are the real cores in the simulated shells of `tests.world`; handlers are the SDK's
functions without its worker.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

from bester.bridge.limits import Limits as BridgeLimits
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.wire.link_client import State
from bester.broker.wire.messages import Command, Reply, Request
from bester.client import frames
from bester.handlers.app import App
from bester.handlers.hello import hello_options
from bester.handlers.message import Message
from bester.handlers.reply import commands_of, verdict_on
from bester.handlers.runtime import Outcome
from tests.scenes.stage import HANDLER_WAIT_S, Function, Handler, Received, Report, Server, Stage, User, app_of
from tests.world.bridges import SimBridge
from tests.world.clock import World
from tests.world.handlers import SimHandler
from tests.world.network import Weather
from tests.world.servers import SimServer
from tests.world.users import Device

AFTERMATH_S = 10.0
"""Virtual seconds after a scene in which no user may receive anything more."""
LEAVING_S = 0.1
"""Virtual seconds after which a bridge has seen that a connection has ended."""


class CoreStage(Stage):
    def __init__(self) -> None:
        self.world = World()
        self.servers: dict[str, CoreServer] = {}
        self._lives: dict[str, CoreServer] = {}  # the last server of each name, alive or dead
        self._users: list[CoreUser] = []

    async def server(
        self,
        name: str,
        handlers: Mapping[str, Function] | None = None,
        peers: Sequence[str] = (),
        residents: Sequence[str] = (),
    ) -> Server:
        server = CoreServer(self, name, peers, residents, self._lives.get(name))
        self.servers[name] = self._lives[name] = server
        for type_, function in (handlers or {}).items():
            await server.handler({type_: function})
        self.world.until(self._linked, "the links between the servers")
        return server

    def _linked(self) -> bool:
        there = self.servers.values()
        friends = [(one, two) for one in there for two in there if one.name in two.peers and two.name in one.peers]
        return all(one.broker.out[two.name].party.ready for one, two in friends)

    async def user(self, name: str, at: Server) -> User:
        assert isinstance(at, CoreServer)
        user = CoreUser(self.world, at.bridge, name)
        self._users.append(user)
        at.users.append(user)
        self.world.until(lambda: user.device.ready, f"{name} to be let in")
        return user

    async def ends(self) -> None:
        self.world.rest(AFTERMATH_S)
        assert not {user.name: left for user in self._users if (left := await user.unread())}


class CoreServer(Server):
    """A broker and a bridge in one process, and the handlers and users that came to the server.

    `before` is the dead server of that name: its broker begins another life, with the store's contents.
    """

    def __init__(
        self, stage: CoreStage, name: str, peers: Sequence[str], residents: Sequence[str], before: CoreServer | None
    ) -> None:
        super().__init__(name, peers)
        self.world = stage.world
        self.users: list[CoreUser] = []
        self._stage = stage
        self._handlers: list[CoreHandler] = []
        routes = {peer: Route(peer, fabric=f"ipc:///{peer}") for peer in peers}
        limits = Limits(handler_wait_s=HANDLER_WAIT_S, handler_again_s=HANDLER_WAIT_S)
        settings = Settings(name, open_accounts=not residents, routes=routes, limits=limits)
        if before is None:
            self.broker = SimServer(self.world, settings, frozenset(residents), password=None)
            self.bridge = SimBridge(self.world, self.broker, f"{name}b", BridgeLimits(), direct=True)
        else:
            self.broker, self.bridge = before.broker, before.bridge
            self.broker.settings, self.broker.accounts = settings, frozenset(residents)
            self.broker.start()
        for peer in peers:
            self.broker.link_to(peer, partial(self._door, peer), Weather(), Weather())

    def _door(self, peer: str) -> SimServer | None:
        there = self._stage.servers.get(peer)
        return None if there is None else there.broker

    async def handler(self, functions: Mapping[str, Function], *, credit: int = 16, ordered: bool = False) -> Handler:
        handler = CoreHandler(self.world, self.broker, app_of(functions, credit, ordered))
        self._handlers.append(handler)
        self.world.until(lambda: handler.link.party.ready, f"{self.name} to welcome a handler")
        return handler

    async def dies(self) -> None:
        del self._stage.servers[self.name]
        self.broker.end()
        for handler in self._handlers:  # handlers and users belong to this life
            handler.link.freeze()
        for user in self.users:
            user.device.die()


class CoreHandler(Handler):
    """A handler that calls an App's functions as the requests come, one after the other."""

    def __init__(self, world: World, broker: SimServer, app: App) -> None:
        self._world = world
        self._routes = app.serving(None)
        self._handler = SimHandler(world, broker, app.name or "h", hello_options(app, self._routes), self._reply)
        self.link = self._handler.link

    def _reply(self, request: Request) -> Reply:
        try:
            return Reply(request.token, 0, commands_of(self._routes[request.type].call(Message(request))))
        except Exception as error:  # noqa: BLE001 (whatever the function raises is its failure)
            status, note, code, _ = verdict_on(error)
            return Reply(request.token, status, [], note, code)

    async def freezes(self) -> None:
        self.link.freeze()

    async def thaws(self) -> None:
        self.link.thaw()

    async def leaves(self) -> None:
        self.link.leave()
        self._world.until(lambda: self.link.party.state is State.OVER, "a goodbye to be answered")

    async def emits(self, type_: str, *commands: Command) -> Outcome:
        token = self._handler.emit(type_, list(commands))
        self._world.until(lambda: token in self._handler.outcomes, f"the outcome of an emit as {type_!r}")
        outcome = self._handler.outcomes.pop(token)
        return Outcome(outcome.status == 0, outcome.recipients, outcome.reason, outcome.note)


class _Device(Device):
    """A device that keeps the messages it receives."""

    def __init__(self, world: World, bridge: SimBridge, user: str) -> None:
        super().__init__(world, [bridge], user, user, host="127.0.0.1")
        self.inbox: deque[Received] = deque()
        self.reports: dict[str, Report] = {}

    def reported(self, id_: str, report: frames.Report) -> None:
        assert id_ not in self.reports, f"a second report: {report} after {self.reports[id_]}"
        self.reports[id_] = Report(report.good, report.reason, report.message, report.recipients, report.note)

    def failed(self, id_: str, code: str) -> None:
        raise AssertionError(f"{self.name} gave {id_} up: {code}")

    def seen(self, message: frames.Message, listening: bool) -> None:
        assert message.id is not None
        assert message.origin is not None
        self.inbox.append(Received(message.data, message.type, message.id, message.origin, message.redelivered))


class CoreUser(User):
    def __init__(self, world: World, bridge: SimBridge, name: str) -> None:
        super().__init__(name)
        self.device = _Device(world, bridge, name)
        self.device.come()
        self._world = world

    def submits(self, type_: str, data: Any) -> Awaitable[Report]:
        id_ = self.device.submit(type_, json.dumps(data).encode())
        return _Sending(self._world, partial(self.device.reports.get, id_))

    async def receives(self) -> Received:
        inbox = self.device.inbox
        self._world.until(lambda: inbox, f"{self.name} to get something")
        return inbox.popleft()

    async def leaves(self) -> None:
        self.device.die()
        self._world.rest(LEAVING_S)

    async def unread(self) -> list[Any]:
        return list(self.device.inbox)


class _Sending:
    """A message under way."""

    def __init__(self, world: World, report: Callable[[], Report | None]) -> None:
        self._world = world
        self._report = report

    def __await__(self) -> Generator[Any, None, Report]:
        return self._reported().__await__()

    async def _reported(self) -> Report:
        self._world.until(self._report, "a report")
        report = self._report()
        assert report is not None
        return report
