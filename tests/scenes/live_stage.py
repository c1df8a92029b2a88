"""The live stage: brokers and bridges on the scene's loop, users on TCP, handlers and servers on ipc links."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from bester.bridge import service as bridge
from bester.broker.config import Config, FabricConfig, NativeConfig, PeerConfig, ServerConfig
from bester.broker.core.settings import Limits
from bester.broker.server import Broker
from bester.broker.service import settings_of
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from bester.broker.wire.address import HostPort
from tests.live import DEADLINE_S, RawClient, short_directory
from tests.scenes.live_handler import LiveHandler
from tests.scenes.stage import HANDLER_WAIT_S, Function, Handler, Received, Report, Server, Stage, User, app_of

LIMITS = Limits(heartbeat_s=0.5, handler_wait_s=HANDLER_WAIT_S, handler_again_s=HANDLER_WAIT_S)
"""A frozen handler is found out in 1.5 s; yet a busy machine does not make one of a handler that is well."""


class LiveStage(Stage):
    """`apart`: the bridges speak to their brokers over the fabric."""

    apart = False

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._directory = Path()
        self._log = _Log()
        self._servers: dict[str, LiveServer] = {}
        self._users: list[LiveUser] = []
        self._linked: Counter[str] = Counter()
        self._stores: dict[str, MemoryStore] = {}

    async def begins(self) -> None:
        self._directory = await self._stack.enter_async_context(short_directory())
        self._log.open()
        self._stack.callback(self._log.close)

    async def server(
        self,
        name: str,
        handlers: Mapping[str, Function] | None = None,
        peers: Sequence[str] = (),
        residents: Sequence[str] = (),
    ) -> Server:
        there = self._servers
        store = self._stores.setdefault(name, MemoryStore())
        server = LiveServer(name, peers, residents, store, self._directory, apart=self.apart)
        self._stack.push_async_callback(server.ends)
        await server.start()
        for type_, function in (handlers or {}).items():
            await server.handler({type_: function})
        friends = [other.name for other in there.values() if other.name in peers and name in other.peers]
        self._linked.update([*friends, *[name] * len(friends)])
        there[name] = server
        for peer, links in self._linked.items():
            await self._log.says(f"server-reached server={peer!r}", links)
        return server

    async def user(self, name: str, at: Server) -> User:
        assert isinstance(at, LiveServer)
        user = LiveUser(name)
        self._users.append(user)
        at.users.append(user)
        await user.log_in(at.address)
        return user

    async def ends(self) -> None:
        async with self._stack:
            left = {user.name: await user.unread() for user in self._users}
            for user in self._users:
                await user.leaves()
        assert not any(left.values()), left


class ApartStage(LiveStage):
    apart = True


class Residents(OpenAccounts):
    """Lets everybody in, and knows some users though they are away."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def exists(self, name: str) -> bool:
        return name in self._names


class LiveServer(Server):
    """Broker and bridge, looked after by a task of their own; `address` is where the bridge listens."""

    def __init__(
        self, name: str, peers: Sequence[str], residents: Sequence[str], store: MemoryStore, directory: Path, *,
        apart: bool,
    ) -> None:  # fmt: skip
        super().__init__(name, peers)
        self._residents = frozenset(residents)
        self._store = store
        self.users: list[LiveUser] = []
        self._apart = apart
        self._handlers: list[LiveHandler] = []
        self._enough = asyncio.Event()
        self._endpoint = f"ipc://{directory}/{name}"
        self._config = Config(
            directory=directory,
            server=ServerConfig(name, directory),
            native=NativeConfig(tcp4=HostPort("127.0.0.1", 0)),
            fabric=FabricConfig((self._endpoint,), (self._endpoint,)),
            auth="open",
            servers={peer: PeerConfig(peer, fabric=f"ipc://{directory}/{peer}") for peer in peers},
        )

    async def start(self) -> None:
        """Return when users may come."""
        self._address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve())
        await asyncio.wait((self._address, self._task), return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_S)
        self.address = self._address.result()

    async def _serve(self) -> None:
        settings = replace(settings_of(self._config), limits=LIMITS, open_accounts=not self._residents)
        async with (
            Broker(settings, self._config.fabric.listen, Residents(self._residents), self._store) as broker,
            AsyncExitStack() as stack,
        ):
            service = await stack.enter_async_context(bridge.serving(self._config))
            if self._apart:
                link = service.link(self._endpoint)
                link.start()
                stack.push_async_callback(link.close)
                await service.has_broker.wait()
            else:
                service.attach(broker.attach(service.bridge.receive))
            self._address.set_result(service.addresses[0])
            await self._enough.wait()

    async def handler(self, functions: Mapping[str, Function], *, credit: int = 16, ordered: bool = False) -> Handler:
        handler = LiveHandler(app_of(functions, credit, ordered), self._endpoint)
        await handler.start()
        self._handlers.append(handler)
        return handler

    async def dies(self) -> None:
        for user in self.users:
            user.gone = True
        self._enough.set()
        await asyncio.wait_for(self._task, DEADLINE_S)

    async def ends(self) -> None:
        """End the handlers, then itself."""
        for handler in self._handlers:
            await handler.leaves()
        await self.dies()


class LiveUser(User):
    """A user that reads its socket on request, and keeps frames that nobody has asked for yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._inbox: list[Received] = []
        self._reports: dict[str, Report] = {}
        self._ids = count(1)
        self.gone = False
        """True once the connection has ended, by the user's own wish or the server's."""

    async def log_in(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._wire = RawClient(*await asyncio.open_connection(host, int(port)))
        who = {"username": self.name, "password": "secret"}
        self._wire.send({"header": {"scope": "client", "authentication": who}, "payload": {}})
        answer = await self._wire.receive()
        assert answer["header"] == {"messageType": "statusReport", "status": "good"}, answer

    def submits(self, type_: str, data: Any) -> Awaitable[Report]:
        id_ = str(next(self._ids))
        self._wire.submit(type_, data, id_)
        return _Sending(self, id_)

    async def reported(self, id_: str) -> Report:
        """Wait for the report of a message."""
        while id_ not in self._reports:
            await self._read()
        return self._reports[id_]

    async def receives(self) -> Received:
        while not self._inbox:
            await self._read()
        return self._inbox.pop(0)

    async def _read(self) -> None:
        self._sort(await self._wire.receive())

    def _sort(self, frame: Any) -> None:
        header, payload = frame["header"], frame["payload"]
        if header["messageType"] == "receivedMessage":
            marked = header.get("redelivered", False)
            self._inbox.append(Received(payload["data"], payload["type"], header["id"], header["origin"], marked))
            return
        id_, reason, message = payload["id"], payload.get("reason"), payload.get("message")
        assert id_ not in self._reports, f"a second report: {frame} after {self._reports[id_]}"
        self._reports[id_] = Report(
            header["status"] == "good", reason, message, payload.get("recipients", {}), payload.get("note")
        )

    async def leaves(self) -> None:
        self.gone = True
        await self._wire.close()

    async def unread(self) -> list[Any]:
        if not self.gone:
            self._wire.submit("dummy", None, "last")
            while "messageType" in (frame := await self._wire.receive())["header"]:
                self._sort(frame)
        return self._inbox


class _Sending:
    """A message under way."""

    def __init__(self, user: LiveUser, id_: str) -> None:
        self._user = user
        self._id = id_

    def __await__(self) -> Generator[Any, None, Report]:
        return self._user.reported(self._id).__await__()


class _Log(logging.Handler):
    """The brokers' log lines about links that come up, counted in the order of the events."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._logger = logging.getLogger("bester.broker")
        self._said: Counter[str] = Counter()
        self._news = asyncio.Event()

    def open(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        self._said[record.getMessage()] += 1
        self._news.set()

    async def says(self, text: str, times: int) -> None:
        """Wait until `text` was logged so many times."""
        async with asyncio.timeout(DEADLINE_S):
            while self._said[text] < times:
                self._news.clear()
                await self._news.wait()
