"""A listening socket of ZeroMQ that accepts nobody for a while (Linux).

ZeroMQ can only end a listener, and with it ends all connections that have come by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterator

_ATTACH_FILTER, _DETACH_FILTER = 26, 27
"""SO_ATTACH_FILTER and SO_DETACH_FILTER of Linux, which Python does not name."""
_DROP = struct.pack("=HBBI", 6, 0, 0, 0)
"""A program of one instruction of the system's packet filter: keep nothing of any packet."""


def prepare(descriptor: int) -> None:
    """Make a listening socket of ZeroMQ's, which is blocking, one where no thread waits when another was first."""
    os.set_blocking(descriptor, False)


def hold(descriptor: int) -> bool:
    """Let nobody in by a listening socket, and return whether this system can. The systems of those who come try again
    by themselves; those who wait to be accepted are parted from."""
    if sys.platform != "linux":
        return False
    program = ctypes.create_string_buffer(_DROP)
    with _listener(descriptor) as listener, contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
        with contextlib.suppress(OSError):  # nobody waits, or no descriptor is left
            while True:
                listener.accept()[0].close()
        return True
    return False


def let_in(descriptor: int) -> None:
    """Let everybody in again."""
    with _listener(descriptor) as listener, contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


@contextlib.contextmanager
def _listener(descriptor: int) -> Iterator[socket.socket]:
    """Yield a socket for a descriptor, which stays ZeroMQ's."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    try:
        yield listener
    finally:
        listener.detach()
