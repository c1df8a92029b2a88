"""Handlers of the reference daemon, unchanged: programs that listen on a Unix socket.

For each message: connect, send one frame that holds the data alone, read one frame
`{"header":{"status":"0","command":{"type":C,"data":X}},"data":D}`, close. D is passed on byte for byte. An unknown
command is passed on too: the broker has the code for it. Each user's messages are handed over one at a time and in
order, as the reference daemon did for a connection. A Worker runs this App like any other, in a process of its own or
on the server's loop, and ends a request that takes longer than its type may. Part of the server: msgspec is required.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Literal

import msgspec

from bester.broker.unix_socket import other_kind
from bester.broker.wire.messages import MAX_BODY_BYTES, Command
from bester.handlers.app import App
from bester.handlers.message import Message
from bester.handlers.payload import QuietError

CONNECTIONS = 64
"""Connections to the handler at once; such programs serve one at a time and keep a short backlog."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.002, 0.1
"""Bounds of the pause between two attempts to connect to a handler whose backlog is full; it doubles."""
HEADER_BYTES = 4
ENVELOPE_BYTES = 1024 * 1024
"""Bytes of a frame beside its data, which the broker bounds: a command names up to 10,000 targets."""
GOOD = ("0", "00")
TARGETS: dict[str, type] = {"sendClients": list, "sendServers": list, "sendHandler": str}
"""Type of each command's targets."""


class _Command(msgspec.Struct):
    type: str
    data: str | list[str]
    message_type: str | None = msgspec.field(name="messageType", default=None)


class _Header(msgspec.Struct):
    status: str
    command: msgspec.Raw = msgspec.Raw()


class _Frame(msgspec.Struct):
    header: _Header
    data: msgspec.Raw = msgspec.Raw()


_read_frame = msgspec.json.Decoder(_Frame).decode
_read_command = msgspec.json.Decoder(_Command).decode


def legacy_app(
    path: str,
    types: Sequence[str],
    *,
    order: Literal["user"] | None = "user",
    connections: int = CONNECTIONS,
    limit_bytes: int = MAX_BODY_BYTES + ENVELOPE_BYTES,
) -> App:
    """Return an App that passes messages of these types to the handler that listens at `path`.

    `order` None: a user's messages concurrently, for a handler that is faster so and needs no order.
    """
    app = App(credit=connections)

    async def forward(message: Message) -> Command:
        """Send the message to the handler behind the socket, and return its answer."""
        try:
            answer = await _exchange(path, message.raw, limit_bytes)
        except OSError as error:
            other = other_kind(path)
            why = f"it is {other}, not a socket" if other is not None else error.strerror or error
            raise QuietError(f"no handler at {path}: {why}") from None
        return command_of(answer)

    forward.__qualname__ = f"the handler at {path}"  # the name in the log
    app.handler(*types, order=order)(forward)
    return app


async def _exchange(path: str, data: bytes, limit_bytes: int) -> bytes:
    """Send one message and return the answered frame. Raises OSError, QuietError."""
    reader, writer = await asyncio.open_unix_connection(sock=await _connected(path))
    try:
        writer.write(len(data).to_bytes(HEADER_BYTES, "little") + data)
        length = int.from_bytes(await reader.readexactly(HEADER_BYTES), "little")
        if not 1 <= length <= limit_bytes:
            raise QuietError(f"the handler answered a frame of {length} bytes; 1 to {limit_bytes} are taken")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise QuietError("the handler closed the connection without an answer") from None
    finally:
        writer.transport.abort()


async def _connected(path: str) -> socket.socket:
    """Return a socket that is connected to the handler, once the handler has room in its backlog. Raises OSError."""
    pause_s = FIRST_PAUSE_S
    while True:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.setblocking(False)
            end.connect(path)
        except BlockingIOError:  # no more than is in the backlog waits in the system, so the rest waits here
            end.close()
        except BaseException:
            end.close()
            raise
        else:
            return end
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


def command_of(answer: bytes) -> Command:
    """Parse the answered frame. Raises QuietError for a malformed frame, and for a status that means failure."""
    try:
        answer.decode()  # Raw would accept invalid UTF-8
        frame = _read_frame(answer)
        if frame.header.status not in GOOD:
            raise QuietError(f"the handler answered status {frame.header.status!r}")
        command = _read_command(frame.header.command)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise QuietError(f"the handler's answer is not header and data: {error}") from None
    if not bytes(frame.data):
        raise QuietError("the handler's answer has no data")
    if not isinstance(command.data, TARGETS.get(command.type, object)):
        raise QuietError(f"the handler's {command.type} names its targets wrongly: {command.data!r}")
    targets = [command.data] if isinstance(command.data, str) else command.data
    return Command(command.type, targets, bytes(frame.data), command.message_type)
