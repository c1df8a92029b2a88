"""A real bridge on real sockets, with a fake broker that records the messages it receives.

The fake's message types are its handlers: `echo` (delivered to the sender, the delivery brings the report), `copy`
(delivered to the sender, reported when that is confirmed), `to` (delivered to the users named in the data), `hold`
(reported when the test says so), `refuse` (not allowed); any other is unknown.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bester.bridge.service import Service, serving
from bester.broker.config import Config, FabricConfig, NativeConfig, PeerConfig, ServerConfig
from bester.broker.wire.address import HostPort
from bester.broker.wire.messages import (
    Answer,
    Ask,
    Close,
    Confirm,
    Deliver,
    Forwarded,
    Hello,
    LoggedIn,
    Login,
    Message,
    Open,
    Report,
    Submit,
    Welcome,
)
from tests.ipv6 import HAS_IPV6
from tests.kernel_buffers import narrow_connection, narrow_listener, stop_reading

DEADLINE_S = 10.0
TCP6 = HostPort("::1", 0) if HAS_IPV6 else None


class FakeBroker:
    """Answers the bridge as a broker would, in the next turn of the loop."""

    def __init__(self, service: Service) -> None:
        self._bridge = service.bridge
        self._loop = asyncio.get_running_loop()
        self._answers: list[Message] = []
        self._serial = 0
        self._changed = asyncio.Event()
        self._reports: dict[int, tuple[int, Report]] = {}  # by serial: token, and report on confirmation
        self.received: list[Message] = []
        self.sessions: dict[int, str] = {}
        self.held: list[Submit] = []
        self.outcomes: dict[tuple[str, str], dict[str, str]] = {}  # by user and message
        self.open = True
        service.attach(lambda messages: sum(self.say(message) for message in messages))

    def say(self, message: Message) -> bool:
        if not self.open:
            return False
        self.received.append(message)
        self._changed.set()
        match message:
            case Hello():
                self._answer(Welcome(1, "s1"))
            case Login():
                self._log_in(message)
            case Open():
                self.sessions[message.session] = message.user
            case Close():
                self.sessions.pop(message.session, None)
            case Submit():
                self._submit(message)
            case Confirm():
                self._confirmed(message)
            case Ask():
                self._answer(self._asked(message))
        return True

    def _answer(self, *messages: Message) -> None:
        if not self._answers:
            self._loop.call_soon(self._flush)
        self._answers += messages

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        self._bridge.receive(answers)

    def _log_in(self, login: Login) -> None:
        if login.password == "wrong":
            self._answer(LoggedIn(login.session, 1, "authentication-failed"))
        elif login.password != "nobody answers":
            self.sessions[login.session] = login.user
            self._answer(LoggedIn(login.session, 0))

    def _submit(self, submit: Submit) -> None:
        message = f"s1/e/{submit.token}"
        if submit.type == "hold":
            self.held.append(submit)
        elif submit.type == "refuse":
            self._answer(Report(submit.token, 1, "not-allowed", message, {}))
        elif submit.type == "server":
            self._answer(Report(submit.token, 0, None, message, {}))
        elif submit.type == "echo":
            assert submit.session is not None
            self.deliver(message, submit.body, [[0, submit.session]], submit.token)
        elif submit.type == "copy":
            assert submit.session is not None
            self.deliver(message, submit.body, [[0, submit.session]])
            self._reports[self._serial] = submit.token, Report(submit.token, 0, None, message, {})
        elif submit.type == "to":
            targets = [[t, *self.of(name)] for t, name in enumerate(json.loads(submit.body))]
            self.deliver(message, submit.body, targets, submit.token)
        else:
            self._answer(Report(submit.token, 1, "unknown-type", message, {}))

    def of(self, user: str) -> list[int]:
        """Return the sessions of a user."""
        return [session for session, name in self.sessions.items() if name == user]

    def deliver(self, message: str, body: bytes, targets: list[list[int]], token: int | None = None) -> None:
        self._serial += 1
        meta = {"origin": "s1", "message": message}
        self._answer(Deliver(self._serial, f"{message}.0", "chat", body, targets, token, meta))

    def _confirmed(self, confirm: Confirm) -> None:
        for serial in [*(serial for serial in self._reports if serial <= confirm.upto), *confirm.done]:
            waiting = self._reports.pop(serial, None)
            if waiting is not None:
                self._answer(waiting[1])

    def release(self) -> None:
        """Report on all held submissions."""
        held, self.held = self.held, []
        self._answer(*(Report(submit.token, 0, None, f"s1/e/{submit.token}", {}) for submit in held))

    def _asked(self, ask: Ask) -> Answer:
        users = sorted(set(self.sessions.values()))
        match ask.question:
            case "listClients":
                return Answer(ask.token, 0, users)
            case "isClient":
                return Answer(ask.token, 0, ask.argument in users)
            case "outcome":
                session, message = ask.argument
                known = self.outcomes.get((self.sessions.get(session, ""), message))
                return Answer(ask.token, int(known is None), known)
            case _:
                return Answer(ask.token, 0, {"adminInfo": {"name": "x"}, "clientCount": str(len(users))})

    def part(self) -> None:
        """Break the link."""
        self.open = False
        self._answers.clear()
        self.sessions.clear()
        self._bridge.on_link_lost("the test says so")

    def come_back(self) -> None:
        self.open = True
        self._bridge.on_link_ready()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a message from the bridge makes the condition true."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def of_kind(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.received if type(message) is kind]

    def forwarded(self) -> dict[int, str]:
        return {message.token: message.outcome for message in self.of_kind(Forwarded)}


class Raw:
    """A client that reads and writes frames, and no more."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, *bodies: bytes) -> None:
        self.writer.write(b"".join(len(body).to_bytes(4, "little") + body for body in bodies))

    async def body(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            length = int.from_bytes(await self.reader.readexactly(4), "little")
            return await self.reader.readexactly(length)

    async def read(self) -> Any:
        return json.loads(await self.body())

    async def end(self) -> None:
        """Check that no frame comes before the end of the stream."""
        async with asyncio.timeout(DEADLINE_S):
            assert await self.reader.read(1) == b""

    async def log_in(self, user: str = "alice") -> None:
        self.write(login(user))
        assert await self.read() == GOOD_LOGIN

    def reset(self) -> None:
        """Abort the connection: the other side finds the connection broken."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


def login(user: str = "alice", secret: str = "p", payload: str = '{"data":null,"type":"dummy"}', **more: Any) -> bytes:
    header = {"scope": "client", "authentication": {"username": user, "password": secret}, **more}
    return f'{{"header":{json.dumps(header)},"payload":{payload}}}'.encode()


def message(type_: str, id_: str | None = "i", data: str = "1", header: str = "null") -> bytes:
    return f'{{"header":{header},"payload":{{"type":"{type_}","data":{data},"id":{json.dumps(id_)}}}}}'.encode()


def command(type_: str, data: Any, id_: str = "c") -> bytes:
    return message("builtin", id_, json.dumps({"command": {"type": type_, "data": data}}))


GOOD_LOGIN = {
    "header": {"messageType": "statusReport", "status": "good"},
    "payload": {"id": "auth_special", "max_frame": 1024 * 1024},
}


class Scene:
    """The bridge, its broker, and clients that are closed at the end."""

    def __init__(self, service: Service, directory: Path) -> None:
        self.service = service
        self.broker = FakeBroker(service)
        self.directory = directory
        self.clients: list[Raw] = []

    @property
    def tcp4(self) -> HostPort:
        host, port = self.address("tcp4").split(":")
        return HostPort(host, int(port))

    def address(self, kind: str) -> str:
        """Return the address of the listener of a kind."""
        (found,) = (each.address for each in self.service.listeners if each.url.startswith(f"{kind}://"))
        return found

    async def connect(self, kind: str = "tcp4") -> Raw:
        match kind:
            case "tcp4":
                streams = await asyncio.open_connection(*self.tcp4)
            case "tcp6":
                streams = await asyncio.open_connection("::1", int(self.address("tcp6").rpartition(":")[2]))
            case _:
                streams = await asyncio.open_unix_connection(self.address("unix"))
        client = Raw(*streams)
        self.clients.append(client)
        return client

    async def client(self, user: str = "alice", kind: str = "tcp4") -> Raw:
        client = await self.connect(kind)
        await client.log_in(user)
        return client

    async def slow_client(self) -> Raw:
        """Return a client that is logged in and does not read until `read_on`. The kernel holds less for the client,
        and for all later ones of this scene, than a large message has."""
        narrow_listener(self.service.listeners[0].server)
        client = Raw(*await narrow_connection(*self.tcp4))
        self.clients.append(client)
        await client.log_in("slow")
        stop_reading(client.writer)
        return client

    async def empty(self) -> None:
        """Wait until no connection is left in the bridge."""
        gone = asyncio.Event()
        self.service.bridge.on_empty = gone.set
        if self.service.bridge.connections:
            async with asyncio.timeout(DEADLINE_S):
                await gone.wait()


def config(directory: Path, *, native: NativeConfig | None = None, **more: Any) -> Config:
    return Config(
        directory=directory,
        server=ServerConfig("s1", directory),
        native=native or NativeConfig(HostPort("127.0.0.1", 0), TCP6, directory / "n"),
        fabric=FabricConfig((), ()),
        informer=directory / "i",
        **more,
    )


@asynccontextmanager
async def scene(**more: Any) -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        async with serving(config(Path(name), **more)) as service:
            it = Scene(service, Path(name))
            await asyncio.sleep(0)  # the broker's welcome comes in the next turn
            try:
                yield it
            finally:
                for client in it.clients:
                    await client.close()


OPEN_TO_SERVERS = {"accept": "open"}
LISTED = {"servers": {"s2": PeerConfig("s2", native=HostPort("127.0.0.1", 1))}}
Story = Callable[[Scene], Awaitable[None]]
