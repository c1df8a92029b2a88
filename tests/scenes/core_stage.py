"""The core's stage: a Router for each server and the simplest bridge there can be, in virtual time, without a socket.

Handlers are the SDK's functions without its worker; servers and handlers hold their links with a Party, as always.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from bester.broker.core.router import Router
from bester.broker.core.values import Action, Limits, Link, Route, Send, Settings, Verify
from bester.broker.store.memory import MemoryStore
from bester.broker.store_requests import Read, Write
from bester.broker.wire import messages as wire
from bester.broker.wire.link_client import LinkClient, State
from bester.broker.wire.messages import Command, Confirm, Deliver, LoggedIn, Malformed, Reply, Request
from bester.handlers.app import App
from bester.handlers.message import Message
from bester.handlers.reply import commands_of, verdict_on
from bester.handlers.runtime import Outcome
from bester.handlers.worker import hello_options
from tests.scenes.core_pipes import Pipe, World
from tests.scenes.stage import HANDLER_WAIT_S, Function, Handler, Received, Report, Server, Stage, User, app_of

AFTERMATH_S = 10.0
"""Virtual seconds after a scene in which nothing more may come to anybody."""


class CoreStage(Stage):
    def __init__(self) -> None:
        self.world = World()
        self.servers: dict[str, CoreServer] = {}
        self._users: list[CoreUser] = []
        self._stores: dict[str, MemoryStore] = {}

    async def server(
        self,
        name: str,
        handlers: Mapping[str, Function] | None = None,
        peers: Sequence[str] = (),
        residents: Sequence[str] = (),
    ) -> Server:
        store = self._stores.setdefault(name, MemoryStore())
        server = self.servers[name] = CoreServer(self, name, peers, residents, store)
        for type_, function in (handlers or {}).items():
            await server.handler({type_: function})
        self.world.until(self._linked, "the links between the servers")
        return server

    def _linked(self) -> bool:
        there = self.servers.values()
        friends = [(one, two) for one in there for two in there if one.name in two.peers and two.name in one.peers]
        return all(one.pipes[two.name].party.ready for one, two in friends)

    async def user(self, name: str, at: Server) -> User:
        assert isinstance(at, CoreServer)
        user = CoreUser(self.world, at.bridge, name)
        self._users.append(user)
        self.world.until(lambda: user.session in at.bridge.users, f"{name} to be let in")
        return user

    async def ends(self) -> None:
        self.world.rest(AFTERMATH_S)
        assert not {user.name: left for user in self._users if (left := await user.unread())}


class CoreServer(Server):
    """A Router, its time and its guests, and what it keeps; `pipes` are the links it opened to other servers."""

    def __init__(
        self, stage: CoreStage, name: str, peers: Sequence[str], residents: Sequence[str], store: MemoryStore
    ) -> None:
        super().__init__(name, peers)
        self.world = stage.world
        self.guests: dict[Link, Callable[[wire.Message], None]] = {}
        self.alive = True
        self._stage = stage
        routes = {peer: Route(peer, fabric=f"ipc:///{peer}") for peer in peers}
        limits = Limits(handler_wait_s=HANDLER_WAIT_S, handler_again_s=HANDLER_WAIT_S)
        settings = Settings(name, open_accounts=not residents, routes=routes, limits=limits)
        snapshot = store.open()
        self._store = store
        self._writes: list[Write] = []
        self._reads: list[Read] = []
        self.router = Router(
            settings, epoch=f"e{snapshot.life}", first_token=5000, now=self.world.now,
            wall_s=self.world.now, is_account=frozenset(residents).__contains__, snapshot=snapshot,
        )  # fmt: skip
        self.bridge = CoreBridge(self, f"x{snapshot.life}")
        self.world.clocks.append(self._tick)
        self.pipes = {peer: self._pipe(peer) for peer in peers}

    def _pipe(self, peer: str) -> Pipe:
        link = Link("server", peer.encode())
        return Pipe(
            self.world,
            LinkClient("server", self.name, {}),
            lambda: self._stage.servers.get(peer),
            on_message=lambda message: self.hear(link, message),
            on_ready=lambda: self._carry_out(self.router.on_server_ready(peer, self.world.now)),
            on_lost=lambda why: self._carry_out(self.router.on_server_lost(peer, why, self.world.now)),
        )

    def hear(self, link: Link, message: wire.Message | Malformed) -> None:
        if self.alive:
            self._carry_out(self.router.receive(link, message, self.world.now))

    def _tick(self) -> None:
        if self.alive:
            self._carry_out(self.router.tick(self.world.now, self.world.now))

    def _carry_out(self, actions: list[Action]) -> None:
        """What is to be written is written, what is to be read is read, and then it is said."""
        said = self._kept(actions)
        while self._writes or self._reads:
            writes, self._writes = self._writes, []
            if writes:
                said += self._kept(self.router.on_committed(writes, self._store.commit(writes), self.world.now))
            reads, self._reads = self._reads, []
            for read in reads:
                said += self._kept(self.router.on_read(read, self._store.read(read), self.world.now))
        for action in said:
            if isinstance(action, Send):
                self._send(action.link, action.message)
            else:
                self._carry_out(self.router.on_verified(action.link, action.session, action.user, None, self.world.now))

    def _kept(self, actions: list[Action]) -> list[Send | Verify]:
        """Put aside what is for the store; return what else there is to be done."""
        self._writes += [action for action in actions if isinstance(action, Write)]
        self._reads += [action for action in actions if isinstance(action, Read)]
        return [action for action in actions if isinstance(action, Send | Verify)]

    def _send(self, link: Link, message: wire.Message) -> None:
        pipe = self.pipes.get(link.key.decode()) if link.door == "server" else None
        guest = self.guests.get(link)
        if guest is not None:
            self.world.soon(partial(guest, message))
        elif pipe is not None and pipe.party.ready:
            pipe.say(message)
        else:
            self._carry_out(self.router.on_undeliverable(link, message, self.world.now))

    async def handler(self, functions: Mapping[str, Function], *, credit: int = 16, ordered: bool = False) -> Handler:
        handler = CoreHandler(self, app_of(functions, credit, ordered))
        self.world.until(lambda: handler.pipe.party.ready, f"{self.name} to welcome a handler")
        return handler

    async def dies(self) -> None:
        self._carry_out(self.router.dismiss("the broker ends"))
        for pipe in self.pipes.values():
            pipe.leave()
        self.world.rest()
        self.alive = False
        del self._stage.servers[self.name]


class CoreHandler(Handler):
    """Calls an App's functions as the requests come, one after the other."""

    def __init__(self, server: CoreServer, app: App) -> None:
        self._world = server.world
        self._routes = app.serving(None)
        self._outcomes: dict[int, wire.Outcome] = {}
        self._tokens = count(1)
        party = LinkClient("handler", app.name or "h", hello_options(app, self._routes))
        self.pipe = Pipe(server.world, party, lambda: server, on_message=self._hear)

    def _hear(self, message: wire.Message | Malformed) -> None:
        match message:
            case Request():
                try:
                    reply = Reply(message.token, 0, commands_of(self._routes[message.type].call(Message(message))))
                except Exception as error:  # noqa: BLE001 (whatever the function raises is its failure)
                    status, note, code, _ = verdict_on(error)
                    reply = Reply(message.token, status, [], note, code)
                self.pipe.say(reply)
            case wire.Outcome():
                self._outcomes[message.token] = message

    async def freezes(self) -> None:
        self.pipe.freeze()

    async def thaws(self) -> None:
        self.pipe.thaw()

    async def leaves(self) -> None:
        self.pipe.leave()
        self._world.until(lambda: self.pipe.party.state is State.OVER, "a goodbye to be answered")

    async def emits(self, type_: str, *commands: Command) -> Outcome:
        token = next(self._tokens)
        self.pipe.say(wire.Emit(token, type_, list(commands)))
        self._world.until(lambda: token in self._outcomes, f"the outcome of an emit as {type_!r}")
        outcome = self._outcomes.pop(token)
        return Outcome(outcome.status == 0, outcome.recipients, outcome.reason, outcome.note)


class CoreBridge:
    """Holds its server's users: what is delivered leaves at once, and is confirmed."""

    def __init__(self, server: CoreServer, epoch: str) -> None:
        self.users: dict[int, CoreUser] = {}
        """Who has been let in, by session."""
        self.coming: dict[int, CoreUser] = {}
        self.tokens = count(1)
        self._reports: dict[int, Report] = {}
        self._link = Link("direct", b"0")
        self._server = server
        server.guests[self._link] = self._hear
        self.say(wire.Hello(wire.VERSION, "bridge", "b", {"epoch": epoch}))

    def say(self, message: wire.Message) -> None:
        self._server.world.soon(lambda: self._server.hear(self._link, message))

    def report(self, token: int) -> Report | None:
        return self._reports.get(token)

    def _hear(self, message: wire.Message) -> None:
        match message:
            case LoggedIn() if message.status == 0:
                self.users[message.session] = self.coming.pop(message.session)
            case wire.Report():
                report = Report(message.status == 0, *message[2:])
                self._told(message.token, report)
            case Deliver():
                self._deliver(message)

    def _deliver(self, message: Deliver) -> None:
        failed: list[list[Any]] = []
        redelivered = message.meta.get("redelivered", False)
        for t, *sessions in message.targets:
            there = [self.users[session] for session in sessions if session in self.users]
            for user in there:
                data = json.loads(message.body)
                id_, origin = f"{message.id}.{t}", message.meta["origin"]
                user.inbox.append(Received(data, message.type, id_, origin, redelivered))
            if not there:
                failed.append([message.serial, t, "not-connected"])
        if message.token is not None and not failed:
            self._told(message.token, Report(True, None, message.meta["message"], {}))
        self.say(Confirm(message.serial, [], failed))

    def _told(self, token: int, report: Report) -> None:
        assert token not in self._reports, f"a second report: {report} after {self._reports[token]}"
        self._reports[token] = report


class CoreUser(User):
    def __init__(self, world: World, bridge: CoreBridge, name: str) -> None:
        super().__init__(name)
        self.session = next(world.keys)
        self.inbox: deque[Received] = deque()
        self._world = world
        self._bridge = bridge
        bridge.coming[self.session] = self
        bridge.say(wire.Login(self.session, name, "secret", "127.0.0.1"))

    def submits(self, type_: str, data: Any) -> Awaitable[Report]:
        token = next(self._bridge.tokens)
        self._bridge.say(wire.Submit(token, self.session, type_, json.dumps(data).encode()))
        return _Sending(self._world, partial(self._bridge.report, token))

    async def receives(self) -> Received:
        self._world.until(lambda: self.inbox, f"{self.name} to get something")
        return self.inbox.popleft()

    async def leaves(self) -> None:
        del self._bridge.users[self.session]
        self._bridge.say(wire.Close(self.session))

    async def unread(self) -> list[Any]:
        return list(self.inbox)


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
