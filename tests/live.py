"""Real servers in processes of their own, and raw clients and handlers to try them with.

A raw client speaks the native protocol and a raw handler the fabric protocol with nothing of Bester's own code, so that
both see the bare protocol.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Self

import msgpack  # type: ignore[import-untyped]  # it ships no types
import zmq
import zmq.asyncio

from tests.kernel_buffers import narrow_connection
from tests.stores import with_store

DEADLINE_S = 60.0
"""Time of anything that is waited for: reached where something is wrong, and by no loaded machine."""
LEASE_MS = 30_000
"""Silence of a raw handler after which a broker takes it for dead: no test sends heartbeats for it. As long as the
usual time for a request, so that this time stays as it is."""
LAYOUTS = ("up", "apart")
"""Layouts: one process, or broker, bridge and handlers in a process each."""


@asynccontextmanager
async def short_directory() -> AsyncIterator[Path]:
    """A temporary directory whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        yield Path(name)


class Process:
    """A child process whose output is kept; the process is ended by pid."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, *argv: str, cwd: Path, env: dict[str, str] | None = None) -> Self:
        """Start a program with its error output read."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode(errors="replace").rstrip())
            self._news.set()
        self._news.set()

    async def says(self, text: str) -> str:
        """Wait for a line that holds `text` and return it."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for line in self.lines:
                    if text in line:
                        return line
                if self._reading.done():
                    raise AssertionError(f"ended without saying {text!r}:\n" + "\n".join(self.lines))
                self._news.clear()
                await self._news.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def end(self, number: int = signal.SIGTERM) -> int:
        """End the process and return its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        try:
            status = await asyncio.wait_for(self.process.wait(), DEADLINE_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise AssertionError("did not end:\n" + "\n".join(self.lines)) from None
        await self._reading
        return status


BESTER = str(Path(sys.executable).with_name("bester"))


def head(name: str = "s1", *, port: int = 0, native: str = "", auth: str = "") -> str:
    """Return the first tables of a server's file, to which others may be added: its data in `data`, a free port of
    127.0.0.1 where none is given, further lines of [native], and how [accounts] lets users in, if it is not left out.
    """
    accounts = f'[accounts]\nauth = "{auth}"\n' if auth else ""
    return f'[server]\nname = "{name}"\ndata_dir = "data"\n[native]\ntcp4 = "127.0.0.1:{port}"\n{native}{accounts}'


class LiveServer:
    """A server from a bester.toml, in one process or several. `host`, `port` and `fabric` are its addresses."""

    def __init__(self, directory: Path, processes: list[Process], address: str) -> None:
        self.directory = directory
        self.processes = processes
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.fabric = f"ipc://{directory}/data/fabric.sock"

    @property
    def address(self) -> str:
        """HOST:PORT of the native listener."""
        return f"{self.host}:{self.port}"

    @classmethod
    async def start(cls, directory: Path, toml: str, layout: str = "up", handlers: tuple[str, ...] = ()) -> Self:
        """Start a server whose file is `toml` (placed before [server] and [native]), and wait until it serves.

        `handlers` names the modules (MODULE:APP) to run: as declared children in one process, as `bester handler`
        where the parts run apart.
        """
        text = toml
        if layout == "up":
            for module in handlers:
                name = module.partition(":")[0].rpartition(".")[2]
                text += f'\n[handlers.{name}]\napp = "{module}"\n'
        (directory / "bester.toml").write_text(with_store(text, directory))
        processes: list[Process] = []
        try:
            if layout == "up":
                processes.append(await Process.start(BESTER, "up", cwd=directory))
            else:
                processes.append(await Process.start(BESTER, "broker", cwd=directory))
                await processes[0].says("broker ")
                for module in handlers:
                    fabric = f"ipc://{directory}/data/fabric.sock"
                    processes.append(await Process.start(BESTER, "handler", module, "--fabric", fabric, cwd=directory))
                processes.insert(0, await Process.start(BESTER, "bridge", cwd=directory))
            line = await processes[0].says(" serves ")
            server = cls(directory, processes, line.partition(" serves ")[2].split(",")[0].strip())
            for module in handlers:
                await server.has_type(module.partition(":")[0].rpartition(".")[2])
        except BaseException:
            for process in processes:
                await process.end(signal.SIGKILL)
            raise
        return server

    async def has_type(self, type_: str) -> None:
        """Wait until the broker has logged a handler of the type."""
        broker = self.processes[0] if len(self.processes) == 1 else self.processes[1]
        await broker.says(f"'{type_}'")

    async def stop(self) -> list[int]:
        """End every process; returns their exit statuses. Handlers end before their broker, which answers them then."""
        bridge, *rest = self.processes
        return [await process.end() for process in (bridge, *reversed(rest))]


@asynccontextmanager
async def live_server(
    toml: str = "", layout: str = "up", handlers: tuple[str, ...] = (), *, name: str = "s1", native: str = ""
) -> AsyncIterator[LiveServer]:
    """Run a server with open accounts on a free port of 127.0.0.1; end the server at exit and check its exit status."""
    async with short_directory() as directory:
        text = head(name, native=f"{native}\n", auth="open") + toml
        server = await LiveServer.start(directory, text, layout, handlers)
        try:
            yield server
        finally:
            statuses = await server.stop()
        assert statuses == [0] * len(statuses), [process.lines for process in server.processes]


@contextmanager
def shared_server(toml: str = "", layout: str = "up", handlers: tuple[str, ...] = ()) -> Iterator[LiveServer]:
    """Run `live_server` for a whole module of tests, on a thread with a loop of its own."""
    ready: Future[LiveServer] = Future()
    loop = asyncio.new_event_loop()
    enough = asyncio.Event()

    async def look_after() -> None:
        async with live_server(toml, layout, handlers) as server:
            ready.set_result(server)
            await enough.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(look_after())
            except BaseException as error:  # noqa: BLE001 (handed to the test's own thread)
                failures.append(error)
                if not ready.done():
                    ready.set_exception(error)

    failures: list[BaseException] = []
    thread = Thread(target=run, name="server", daemon=True)
    thread.start()
    try:
        yield ready.result(60.0)
    finally:
        loop.call_soon_threadsafe(enough.set)
        thread.join(60.0)
    assert not failures, failures


class RawClient:
    """A native connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, server: LiveServer, *, narrow: bool = False) -> Self:
        """Open a connection and send nothing. `narrow`: the client's kernel holds little in either direction."""
        opening = narrow_connection if narrow else asyncio.open_connection
        return cls(*await opening(server.host, server.port, limit=64 * 1024 * 1024))

    @classmethod
    async def login(cls, server: LiveServer, user: str, password: str = "secret", *, narrow: bool = False) -> Self:
        """Open a connection and log in as libester does."""
        client = await cls.connect(server, narrow=narrow)
        client.send(
            {
                "header": {"scope": "client", "authentication": {"username": user, "password": password}},
                "payload": {"data": None, "type": "dummy"},
            }
        )
        answer = await client.receive()
        assert answer == {
            "header": {"messageType": "statusReport", "status": "good"},
            "payload": {"id": "auth_special", "max_frame": answer["payload"].get("max_frame")},
        }, answer
        return client

    def send(self, frame: Any) -> None:
        """Send a frame: bytes as they are, anything else as JSON."""
        body = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
        self.writer.write(struct.pack("<I", len(body)) + body)

    def submit(self, type_: str, data: Any, id_: str | None = None) -> None:
        """Send a message of a type; `data` as bytes is JSON text."""
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        head = json.dumps({"type": type_, "id": id_})[:-1].encode()
        self.send(b'{"header":null,"payload":' + head + b',"data":' + text + b"}}")

    async def receive_bytes(self, within_s: float = DEADLINE_S) -> bytes:
        """Return the body of the next frame."""
        async with asyncio.timeout(within_s):
            (length,) = struct.unpack("<I", await self.reader.readexactly(4))
            return await self.reader.readexactly(length)

    async def receive(self, within_s: float = DEADLINE_S) -> Any:
        """Return the next frame, decoded."""
        return json.loads(await self.receive_bytes(within_s))

    async def until_report(self, id_: str | None) -> tuple[Any, list[Any]]:
        """Return the report of a message and the frames that came before it."""
        before: list[Any] = []
        while True:
            frame = await self.receive()
            if frame["header"].get("messageType") == "statusReport" and frame["payload"].get("id") == id_:
                return frame, before
            before.append(frame)

    async def at_end(self) -> bool:
        """Wait for the other end to close; return true when no byte came before the end."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read(1) == b""

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass


class RawHandler:
    """A handler written from the protocol's page with pyzmq and msgpack alone."""

    def __init__(self, fabric: str, types: list[str], **options: Any) -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(fabric)
        self.options = {"types": types, "credit": 64, "lease_ms": LEASE_MS, **options}
        self.inbox: list[list[Any]] = []
        self.attachments: list[bytes] = []
        self.welcome = True
        """True while the broker still knows this link."""

    async def hello(self, role: str = "handler", name: str = "raw", version: int = 1) -> list[Any]:
        """Send HELLO and return the answer."""
        await self.say([1, version, role, name, self.options])
        return await self.hear(2, 5)

    async def say(self, *messages: list[Any], attachments: tuple[bytes, ...] = ()) -> None:
        """Send a batch."""
        await self.send_frames(msgpack.packb(list(messages)), *attachments)

    async def send_frames(self, *frames: bytes) -> None:
        """Send a ZeroMQ message of these frames."""
        await self.socket.send_multipart(frames)

    async def hear(self, *ops: int) -> list[Any]:
        """Return the next message with one of these ops; skip others (heartbeats)."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                while self.inbox:
                    message = self.inbox.pop(0)
                    if message[0] in ops:
                        return message
                frame, *self.attachments = await self.socket.recv_multipart()
                self.inbox.extend(msgpack.unpackb(frame))

    async def serve(self, count: int, answer: Callable[[list[Any]], list[Any]]) -> None:
        """Answer so many REQUESTs; `answer` returns the commands."""
        for _ in range(count):
            request = await self.hear(10)
            await self.say([11, request[1], 0, answer(request), None])

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
        self.context.term()


@asynccontextmanager
async def raw_handler(fabric: str, *types: str, **options: Any) -> AsyncIterator[RawHandler]:
    """A raw handler that has been welcomed."""
    handler = RawHandler(fabric, list(types), **options)
    try:
        welcome = await handler.hello()
        assert welcome[:2] == [2, 1], welcome
        yield handler
        if handler.welcome:
            await handler.say([4, "done"])
            await handler.hear(4)
    finally:
        handler.close()
