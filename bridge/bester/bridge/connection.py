"""Native connection on the event loop: bytes to the bridge, frames to the socket. A shell, which decides nothing.

The transport's buffer holds nothing or one chunk: a chunk is written when the one before has left the process, so that
the bridge knows which bytes have left, and a slow reader's backlog stays in a queue that is counted.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import Any, cast

from bester.bridge import native, native_writing
from bester.bridge.bridge import Bridge
from bester.bridge.ends import Ends
from bester.bridge.outqueue import JOIN_BYTES, OutQueue
from bester.bridge.ports import Waiting
from bester.bridge.senders import Key
from bester.bridge.session import Session
from bester.bridge.states import State
from bester.bridge.steps import UNIX_HOST
from bester.broker.descriptors import is_among_last
from bester.broker.logs import facts
from bester.broker.tls_stream import TlsStream

log = logging.getLogger("bester.bridge")

CHECK_AGAIN_S = 0.01
"""For loops that finish a write later, and call nothing then."""
DESCRIPTORS_KEPT = 64
"""Descriptors that no client gets: handlers and servers may be many, and where none is left libzmq (up to 4.3.5 at
least) ends the process at the next connection to an ipc:// door."""
_CLOSING = State.CLOSING
_NO_ROOM = native_writing.report(native.AUTH_ID, 1, "overloaded")


class Connection(asyncio.Protocol):
    """A `ClientConnection` on an asyncio transport."""

    __slots__ = (
        "_bridge",
        "_checking",
        "_ending",
        "_ends",
        "_is_lost",
        "_loop",
        "_paused",
        "_peer_ended",
        "_transport",
        "abort_code",
        "address",
        "dirty",
        "out",
        "reading",
        "session",
        "stalled_bytes",
        "stalled_since",
        "timed_out",
    )

    session: Session  # set by the bridge's `admit`

    def __init__(self, bridge: Bridge, loop: asyncio.AbstractEventLoop, ends: Ends) -> None:
        self._bridge = bridge
        self._loop = loop
        self._ends = ends
        self._peer_ended = self._is_lost = False  # which the bridge has not been told yet
        self._transport: asyncio.Transport | None = None
        self._ending = False
        self._paused = False
        self._checking = False
        self.out: OutQueue[Waiting] = OutQueue()
        self.dirty = False
        self.abort_code: str | None = None
        self.address = "?"  # the peer's host, once there is a connection, also where the bridge has no room for it
        self.reading = True
        self.stalled_since = 0.0
        self.stalled_bytes = 0
        self.timed_out = False

    @property
    def sender(self) -> Key | None:
        """Return the key of the sender with whom this connection shares its turns, None where it has no session."""
        return None if self._transport is None else self.session.window.sender.key

    # --- from the loop --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Offer the connection to the bridge, or answer that there is no room. A peer that has reset its connection
        before has no address any more, and what it has sent is not read: it would count as a peer of this machine."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        # With no room in the transport's buffer, `resume_writing` means that a whole chunk has left.
        transport.set_write_buffer_limits(high=0)
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("socket")
        if not isinstance(peer, tuple) and own is not None and own.family != socket.AF_UNIX:
            transport.abort()
            return
        host = self.address = peer[0] if isinstance(peer, tuple) else UNIX_HOST
        self._ends.make_room(lambda: self._bridge.has_room(host))
        is_scarce = own is not None and is_among_last(own.fileno(), DESCRIPTORS_KEPT)
        if self._bridge.admit(self, host, is_scarce=is_scarce):
            self._transport = transport
        else:
            fields = facts("connection-refused", address=host)
            log.warning("connection from %s refused: no room for it", host, extra=fields)
            transport.write(_NO_ROOM)
            transport.close()

    def secured(self, stream: TlsStream) -> None:
        """Note the end of the TLS handshake."""
        certificate = stream.certificate
        if certificate is not None and self._transport is not None:
            self._bridge.on_certificate(self, certificate)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._bridge.on_bytes(self, data)

    def eof_received(self) -> bool:
        if self._transport is None or self._ending:
            return False  # both sides have ended: the transport closes
        self._peer_ended = True
        self._ends.take_in(self)
        return True

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self.timed_out = isinstance(exc, TimeoutError)
            self._is_lost = True
            self._ends.take_in(self)

    def go_on(self, enough: float) -> bool:
        """Tell the bridge of the end of the peer's stream, or of the connection; there is no more to do then."""
        if self._peer_ended:
            self._peer_ended = False
            if self._ending and self._transport is not None:  # this side's stream has ended meanwhile
                self._transport.close()
            else:
                self._bridge.on_peer_ended(self)
        if self._is_lost:
            self._is_lost = False
            self._bridge.on_connection_lost(self)
        return False

    # --- from the bridge ------------------------------------------------------------------------------------------

    def flush(self) -> bool:
        """Hand a chunk of the queued frames to the socket; end the connection where the session is closing and
        everything is sent. Return whether there is more that the socket may take."""
        transport = self._transport
        if transport is None or self._ending:
            return False
        out = self.out
        while chunk := out.take(self._bridge.limits.write_chunk):
            transport.write(chunk)
            if transport.is_closing():
                return False  # the write found the connection broken: the chunk has not left
            if transport.get_write_buffer_size():
                self._bridge.on_blocked(self)
                self._check_later(0)
                return False
            self._bridge.on_bytes_sent(self, out.on_sent())
            if out.pushed_bytes == out.sent_bytes:
                break
            if len(chunk) > JOIN_BYTES:
                return True  # others first; behind a small chunk comes a large one, or nothing
        if self.session.state is _CLOSING and not out.in_flight:
            self._end(transport)
        return False

    def _check(self) -> None:
        """Check whether the chunk in flight has left."""
        self._checking = False
        transport = self._transport
        if transport is None or not self.out.in_flight or transport.is_closing():
            return
        if transport.get_write_buffer_size():
            self._check_later(CHECK_AGAIN_S)
            return
        self._bridge.on_bytes_sent(self, self.out.on_sent())
        if self.out.queued_bytes or self.session.state is State.CLOSING:
            self._bridge.on_unblocked(self)  # written in turn: a crowd of readers may take up their data at once

    def _check_later(self, delay_s: float) -> None:
        """Check later, unless the loop has paused writing and will call `resume_writing`."""
        if not self._paused and not self._checking:
            self._checking = True
            self._loop.call_later(delay_s, self._check)

    def _end(self, transport: asyncio.Transport) -> None:
        """End the stream, and read on until the peer has read it: closing now could take the last frames away."""
        self._ending = True
        self._bridge.on_all_sent(self)
        if self.session.peer_ended or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()

    def set_reading(self, reading: bool) -> None:
        """Resume or pause reading."""
        self.reading = reading
        if self._transport is not None and not self._transport.is_closing():
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def unsent_bytes(self) -> int:
        """Return how many bytes of the chunk in flight the socket has not taken over."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def abort(self, why: str) -> None:
        """Cut the connection."""
        if why:
            session = self.session
            fields = facts("connection-cut", why=why, address=session.address, user=session.user)
            who = f"{session.user} at {session.address}" if session.user else session.address
            log.warning("connection of %s cut: %s", who, why, extra=fields)
        if self._transport is not None:
            if self.session.is_unanswered:
                _reset_at_close(self._transport)
            self._transport.abort()


def _reset_at_close(transport: asyncio.Transport) -> None:
    """Have the end of a TCP connection be a reset: no peer takes it for a peaceful one."""
    connection: Any = transport.get_extra_info("socket")
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except (AttributeError, OSError, ValueError):  # a closed socket
        return
