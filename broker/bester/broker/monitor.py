"""Events of a ZeroMQ socket's connections, read on the asyncio loop.

ZeroMQ connects, shakes hands and fails on a thread of its own, and says nothing of it: a wrong key looks like silence
for ever. Its monitor tells what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from typing import Any

import zmq

from bester.broker.wire.address import HostPort
from bester.broker.wire.trouble import Event

OnEvent = Callable[[int, int], None]
"""Called with an event (one of zmq.EVENT_…) and its value: a descriptor, or the number of an error."""
_EVENT = struct.Struct("=hi")
_NOBLOCK = int(zmq.NOBLOCK)


class Monitor:
    """Monitor of one socket; make it before the socket binds or connects, and close it before the socket."""

    def __init__(self, socket: zmq.Socket[bytes], events: int, on_event: OnEvent) -> None:
        self._socket = socket
        self._on_event = on_event
        self._pair = socket.get_monitor_socket(events)
        # Without a bound on the queue: ZeroMQ's thread would wait for room, and the end of the socket for the thread.
        # An event is a few bytes, and all are read in each turn of the loop.
        self._pair.rcvhwm = 0
        # Without the options of `Socket.recv`, which take eight times as long: strangers choose how many events there
        # are, and all are read at once.
        raw: Any = super(zmq.Socket, self._pair)
        self._receive: Callable[[int], bytes] = raw.recv
        self._loop = asyncio.get_running_loop()
        self._fd = int(self._pair.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self.read)
        self.read()  # the descriptor wakes only after a read that found nothing

    def read(self) -> None:
        """Call back for all events that have happened."""
        while not self._pair.closed:
            try:
                event, value = _EVENT.unpack_from(self._receive(_NOBLOCK))
            except zmq.ZMQError:  # EAGAIN: that was all
                return
            self._receive(_NOBLOCK)  # the endpoint, which comes with it
            self._on_event(event & 0xFFFF, value)

    def close(self) -> None:
        """Read no more events."""
        if self._pair.closed:
            return
        self._loop.remove_reader(self._fd)
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._pair.close(0)


MECHANISM_MISMATCH = 0x11000002
HELD_OFF = 500
"""ZAP's status for a party that is held off (`zap.LATER`)."""
_PLAIN_EVENTS: dict[int, Event] = {
    zmq.EVENT_CONNECTED: "connected",
    zmq.EVENT_CLOSED: "refused",
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "secured",
    zmq.EVENT_DISCONNECTED: "ended",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "cut",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "auth",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "protocol",
}
CONNECTING = sum(_PLAIN_EVENTS)
"""Events of the connecting side of a link."""
GREETING_S = 2.0
"""Time of what listens at an address to greet: ZeroMQ does so at once, on a thread that nothing else holds."""
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)


def event_of(event: int, value: int) -> Event:
    """Return an event of CONNECTING in the words of `wire.trouble`."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == MECHANISM_MISMATCH:
        return "mechanism"
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and value == HELD_OFF:
        return "held off"
    return _PLAIN_EVENTS[event]


async def greet(address: HostPort) -> Event:
    """Connect to an address as ZeroMQ does, and return what the other side's greeting says of it."""
    writer = None
    try:
        async with asyncio.timeout(GREETING_S):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(_GREETING)
            greeting = await reader.readexactly(len(_GREETING))
    except ConnectionRefusedError:
        return "refused"  # ended meanwhile
    except (OSError, EOFError, TimeoutError):
        return "foreign"
    finally:
        if writer is not None:
            writer.close()
    if greeting[:1] != b"\xff" or greeting[9:10] != b"\x7f":
        return "foreign"
    return "curve" if greeting[12:32].rstrip(b"\0") == b"CURVE" else "mechanism"
