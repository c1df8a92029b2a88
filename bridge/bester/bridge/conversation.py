"""A connection to a server that speaks the native protocol: one message, one report.

The outcome of a message is the other server's report; an end of the connection without a report is passed on as it is,
and the broker decides:

    sent                  the other end has read the message and closed in peace, without a report
    failed:unreachable    with `unsent`: no connection was made, or TLS has failed (`why`), so nothing can have arrived
    failed:unreachable    without `unsent`: the connection was cut, no report came in time, or the answer was not the
                          native protocol (a proxy's error page, half a report, a report above the limit); the message
                          may have arrived
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from bester.bridge import native_reports
from bester.bridge.frames import Splitter
from bester.broker.tls_faults import TlsError
from bester.broker.wire.messages import Meta
from bester.broker.wire.outcomes import SENT, failed

Outcome = tuple[str, Meta]
"""Outcome of a message, and the meta of a Forwarded."""
READ: Outcome = (SENT, {})
CUT: Outcome = (failed("unreachable"), {})
MAX_OTHER = 64
"""Frames of a server before its report that are none: messages of its own may come first, and an answer without an end
must cost its own message alone. Together they have no more bytes than one may have: each is read whole."""
LONG_BYTES = 16 * 1024
"""Frame that is read in a turn of its own, as 16 MiB of JSON take 40 ms; and bytes after which a connection waits for
its turn: libuv reads a connection up to 32 times in one turn, 8 MiB."""
FIRST_LOOK_S = 0.001
LAST_LOOK_S = 0.05
"""No event tells that the other end has taken in the frame: the shell looks after the first time, then after twice as
long each time, up to the second: a round trip on a local network, and one over continents."""


class Conversation(asyncio.Protocol):
    """A connection: writes one frame in `begin`, and reads until a status report comes or the peer ends. `through` is
    called once, when the other end has taken in the frame; `hold` with each change of the bytes that are held of frames
    that are not read yet; `later` with a step that takes long, for one of the next turns of the loop."""

    def __init__(
        self, limit_bytes: int, done: asyncio.Future[Outcome], through: Callable[[], None],
        hold: Callable[[Conversation, int], None], later: Callable[[Callable[[], None]], None],
    ) -> None:  # fmt: skip
        self._splitter = Splitter(limit_bytes)
        self._hold = hold
        self._later = later
        self._held: deque[bytes] = deque()  # a long frame, and those behind it
        self._came = 0  # bytes since the connection last waited for a turn
        self._lost = False
        self._done = done
        self._through: Callable[[], None] | None = through
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._look_s = FIRST_LOOK_S
        self._looking: asyncio.TimerHandle | None = None
        self._parted = False
        self.fault: TlsError | None = None
        self._foreign = False  # the peer does not speak the native protocol: a peaceful end proves nothing
        self._others = self._other_bytes = 0  # frames that were no report

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._transport = transport

    def begin(self, frame: bytes) -> None:
        """Write the frame. Called by the task that waits for the connection: a connection that is given up in the
        moment in which it is made has sent nothing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)
            self._look()

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the peer: the report on the message, or an answer that is none."""
        if self._done.done():
            return
        self._is_through()  # a peer that answers has read
        for body in self._splitter.feed(data):
            if self._held or len(body) > LONG_BYTES:
                self._held.append(body)
            elif self._read(body):
                return
        if self._splitter.refused is not None and not self._held:
            self._end(CUT)
            return
        self._came += len(data)
        if self._held or self._came > LONG_BYTES:
            self._came = 0
            if self._transport is not None:
                self._transport.pause_reading()
            self._later(self._go_on)
        if self._held or self._splitter.change is not None:
            self._count()

    def _count(self) -> None:
        self._splitter.change = None
        self._hold(self, self._splitter.waiting_bytes + sum(map(len, self._held)))

    def _read(self, body: bytes) -> bool:
        """Read a frame; return whether the conversation has ended with it."""
        outcome = native_reports.outcome(body)
        if outcome is not None:
            self._end(outcome)
            return True
        self._foreign = self._foreign or not native_reports.is_object(body)
        self._others += 1
        self._other_bytes += len(body)
        if self._has_too_many_others():
            self._end(CUT)
            return True
        return False

    def _go_on(self) -> None:
        """Read the next long frame that is held, and the short ones behind it; then what has happened meanwhile."""
        while self._held:
            if self._read(self._held.popleft()):
                return
            if self._held and len(self._held[0]) > LONG_BYTES:
                self._later(self._go_on)
                self._count()
                return
        if self._done.done():  # given up meanwhile
            return
        self._count()
        if self._splitter.refused is not None or self._lost:
            self._end(CUT)
        elif self._parted and self._through is None:
            self._end(self._peaceful())
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _has_too_many_others(self) -> bool:
        return self._others >= MAX_OTHER or self._other_bytes > self._splitter.limit_bytes

    def give_up(self) -> None:
        """End the connection without a report: the message may have arrived."""
        self._end(CUT)

    def eof_received(self) -> bool:
        """Handle the end of the peer's stream: in peace, if the peer's system has taken in all of the frame; else
        `_look` finds a reset."""
        self._parted = True
        if self._through is None and not self._held:
            self._end(self._peaceful())
        return True

    def _peaceful(self) -> Outcome:
        """Return the outcome of a peaceful end: CUT where the peer does not speak the native protocol, or has sent a
        part of a frame."""
        cut_off = self._transport is not None and self._transport.get_extra_info("truncated") is True
        return CUT if self._foreign or self._splitter.waiting_bytes or cut_off else READ

    def connection_lost(self, exc: Exception | None) -> None:
        self.fault = exc if isinstance(exc, TlsError) else None
        self._lost = True
        if not self._held:
            self._end(CUT)

    def _look(self) -> None:
        """Check whether the other end has taken in the frame; check again in a while if not."""
        self._looking = None
        if self._transport is None or self._transport.is_closing():
            return
        if self._parted and is_reset(self._transport):  # no event tells: after the end of its stream nothing is read
            self._end(CUT)
            return
        if self._transport.get_write_buffer_size() or unacknowledged_bytes(self._transport):
            self._looking = self._loop.call_later(self._look_s, self._look)
            self._look_s = min(2 * self._look_s, LAST_LOOK_S)
            return
        self._is_through()
        if self._parted and not self._held:
            self._end(self._peaceful())

    def _is_through(self) -> None:
        through, self._through = self._through, None
        if through is not None:
            through()

    def _end(self, outcome: Outcome) -> None:
        if self._looking is not None:
            self._looking.cancel()
        if not self._done.done():
            self._done.set_result(outcome)
        self.close()

    def close(self) -> None:
        """End the connection. What the other end has not read counts no more: it would keep the connection open for as
        long as the other end likes."""
        self._held.clear()
        self._splitter.drop()
        self._hold(self, 0)
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()


def unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes of a connection the other end's system has not taken in yet; 0 where that is not known."""
    if sys.platform != "linux":
        return 0
    connection: Any = transport.get_extra_info("socket")
    try:
        return int(struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (AttributeError, OSError, ValueError):
        return 0


def is_reset(transport: asyncio.Transport) -> bool:
    """Return whether the other end's system has refused bytes of a connection."""
    connection: Any = transport.get_extra_info("socket")
    try:
        return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    except (AttributeError, OSError, ValueError):
        return True  # the socket is closed
