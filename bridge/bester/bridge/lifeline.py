"""The way between a worker process of a bridge and its parent: a socket, which is the worker's standard input.

The worker writes a line when a SIGHUP has it read its configuration again, and its addresses when it serves. The socket
ends with either process, in whatever way the process ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Sequence

STANDARD_INPUT = 0


class Lifeline(asyncio.Protocol):
    """The worker's end."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    async def follow(self, stop: asyncio.Event) -> None:
        """Set `stop` when the parent has ended."""
        self._stop = stop
        sock = socket.socket(fileno=os.dup(STANDARD_INPUT))
        sock.setblocking(False)
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)

    def reloads(self) -> None:
        """Tell the parent that a SIGHUP has the configuration read again from now on, and does not end this worker."""
        self._tell(None)

    def ready(self, addresses: Sequence[str]) -> None:
        """Tell the parent that this worker serves at these addresses."""
        self._tell(addresses)

    def _tell(self, value: Sequence[str] | None) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps(value).encode() + b"\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the parent has ended."""
        self._stop.set()


class ParentEnd(asyncio.Protocol):
    """The parent's end: calls `on_reloads` once a SIGHUP does not end the worker, and `on_ready` with its addresses."""

    def __init__(self, on_reloads: Callable[[], None], on_ready: Callable[[list[str]], None]) -> None:
        self._on_reloads = on_reloads
        self._on_ready = on_ready
        self._read = b""

    def data_received(self, data: bytes) -> None:
        """Read the lines that are whole."""
        *lines, self._read = (self._read + data).split(b"\n")
        for line in lines:
            addresses = json.loads(line)
            if addresses is None:
                self._on_reloads()
            else:
                self._on_ready(addresses)
