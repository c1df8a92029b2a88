"""The kernel's buffers of a connection: how much they may hold here, and connections whose buffers are small.

The sizes differ from machine to machine, and grow while a connection is used. A test whose reader is to be slow makes
the buffers small, or sends more than they may ever hold.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

NARROW_BYTES = 64 * 1024
"""Small beside the messages of a test, and large enough for the loopback's packets of 64 KiB."""


def most_bytes_held() -> int:
    """Return how many of the bytes sent on a TCP connection that is not read the kernel may hold, at both its ends."""
    settings = Path("/proc/sys/net/ipv4")
    try:
        return sum(max(map(int, (settings / name).read_text().split())) for name in ("tcp_wmem", "tcp_rmem"))
    except OSError:  # another system, whose buffers are smaller
        return 64 * 1024 * 1024


def narrow_listener(server: Any) -> None:
    """Give the connections that an asyncio server will accept a small send buffer, which each has from the listener."""
    for listening in server.sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW_BYTES)


async def narrow_connection(
    host: str, port: int, limit: int = 64 * 1024
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection with small buffers at this end; the buffers must be small before the connection is made."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, NARROW_BYTES)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
        return await asyncio.open_connection(sock=sock, limit=limit)
    except BaseException:
        sock.close()
        raise


def stop_reading(writer: asyncio.StreamWriter) -> None:
    """Read no more from the connection of a stream: what comes stays in the kernel's buffers."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport reads too


def read_on(writer: asyncio.StreamWriter) -> None:
    """Read again after `stop_reading`."""
    writer.transport.resume_reading()  # type: ignore[attr-defined]  # a stream's transport reads too
