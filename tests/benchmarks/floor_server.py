"""The floor: what the same libraries do without bookkeeping. A server of one job, and its handler.

asyncio on uvloop, ZeroMQ, MessagePack and msgspec, with Bester's frames, rows and batches; but no accounts, sessions,
bounds, credit, liveness, store, policy or report that could be anything but good. Nothing here may be relied upon.

`floor_server.py PORT ENDPOINT` serves; `floor_server.py handler ENDPOINT` echoes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import msgspec
import uvloop
import zmq

REQUEST, REPLY, HELLO = 10, 11, 1
READ_AT_ONCE = 64
"""ZeroMQ messages taken in one turn of the loop."""


class Payload(msgspec.Struct, gc=False):
    """Payload of a client's message; data and id stay JSON."""

    type: str
    data: msgspec.Raw
    id: msgspec.Raw


class Envelope(msgspec.Struct, gc=False):
    """Frame of a client."""

    payload: Payload


_decode = msgspec.json.Decoder(Envelope).decode
_pack = msgpack.Packer(autoreset=True).pack


def framed(body: bytes) -> bytes:
    """Return a frame of the native protocol."""
    return len(body).to_bytes(4, "little") + body


_WELCOME = framed(b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"auth_special"}}')


class Floor:
    """Work of a server without its guards: frames of clients to rows for a handler, its rows to frames. `wake` has what
    has gathered sent, at the end of this turn."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._tokens = count(1)
        self._waiting: dict[int, tuple[Client, bytes, str]] = {}
        self._dirty: set[Client] = set()
        self.requests: list[tuple[int, int, str, bytes, str, dict[str, str]]] = []

    def submit(self, client: Client, body: bytes) -> None:
        """Take a client's message for the handler."""
        payload = _decode(body).payload
        token = next(self._tokens)
        message = f"s1/e/{token}"
        self._waiting[token] = client, bytes(payload.id), message
        self.requests.append((REQUEST, token, payload.type, bytes(payload.data), "user", {"id": message}))

    def encode(self) -> bytes:
        """Return the requests that have gathered as a frame."""
        frame: bytes = _pack(self.requests)
        self.requests.clear()
        return frame

    def answer(self, rows: Sequence[Any]) -> None:
        """Take a handler's replies, and answer their clients."""
        for row in rows:
            client, id_, message = self._waiting.pop(row[1])
            client.out.append(
                framed(
                    b'{"header":{"messageType":"receivedMessage","id":"%b.0.0"},"payload":{"data":%b,"type":"echo"}}'
                    % (message.encode(), row[3][0][2])
                )
            )
            client.out.append(
                framed(
                    b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":%b,"message":"%b"}}'
                    % (id_, message.encode())
                )
            )
            self._dirty.add(client)

    def write(self) -> None:
        """Write to each client once."""
        for client in self._dirty:
            client.flush()
        self._dirty.clear()


class Server:
    """The floor on its socket for one handler."""

    def __init__(self, endpoint: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.bind(endpoint)
        self._handler = b""
        self._awake = False
        self.floor = Floor(self.wake)
        loop.add_reader(self._socket.getsockopt(zmq.FD), self.read)

    def wake(self) -> None:
        """Write once, at the end of this turn."""
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._awake = False
        if self.floor.requests and self._handler:
            self._socket.send_multipart([self._handler, self.floor.encode()], zmq.NOBLOCK)
        self.floor.write()
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self.read)

    def read(self) -> None:
        """Take what the handler sent."""
        try:
            for _ in range(READ_AT_ONCE):
                sender, frame = self._socket.recv_multipart(zmq.NOBLOCK)
                rows: Any = msgpack.unpackb(frame)
                if rows[0][0] == HELLO:
                    self._handler = sender
                else:
                    self.floor.answer(rows)
        except zmq.Again:
            pass
        self.wake()


class Client(asyncio.Protocol):
    """A client's connection; its first frame is answered unread."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._transport: asyncio.Transport
        self._rest = b""
        self._is_in = False
        self.out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        buffer = self._rest + data if self._rest else data
        at, length = 0, len(buffer)
        while length - at >= 4:
            end = at + 4 + int.from_bytes(buffer[at : at + 4], "little")
            if end > length:
                break
            if self._is_in:
                self._floor.submit(self, buffer[at + 4 : end])
            else:
                self._is_in = True
                self._transport.write(_WELCOME)
            at = end
        self._rest = buffer[at:]
        self._floor.wake()

    def flush(self) -> None:
        """Write what has gathered, in one piece."""
        self._transport.write(b"".join(self.out))
        self.out.clear()


def handle(endpoint: str) -> None:
    """Echo: a loop that receives, answers and sends."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send(_pack([(HELLO,)]))
    while True:
        rows = msgpack.unpackb(socket.recv())
        socket.send(_pack([(REPLY, row[1], 0, [("sendClients", [row[4]], row[3])], None) for row in rows]))


async def serve(port: int, endpoint: str) -> None:
    """Serve until SIGTERM comes."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = Server(endpoint, loop)
    await loop.create_server(lambda: Client(server.floor), "127.0.0.1", port)
    server.read()
    await ended.wait()


if __name__ == "__main__":
    if sys.argv[1] == "handler":
        handle(sys.argv[2])
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(int(sys.argv[1]), sys.argv[2]))
