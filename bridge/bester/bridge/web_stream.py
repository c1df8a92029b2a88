"""WebSocket on an asyncio transport: a protocol to the transport below, a transport to the protocol above. A shell.

Each text message is one JSON frame, without the length before it. The protocol above sends and receives the frames as
on TCP: a browser has the same session, limits and reports as any other client. wsproto works on bytes alone, and the
stream carries them: what is written is in the transport below, whose buffer is empty when everything has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from collections.abc import Callable, Collection
from typing import cast
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from bester.bridge.frames import Splitter
from bester.bridge.standstill import AFTER_S, GAP_S
from bester.broker.layer import Layer
from bester.broker.layer_turns import LayerTurns

MAX_HEAD_BYTES = 16 * 1024
"""Bytes of the request for a WebSocket; a browser's has about a thousand."""
MAX_HEAD_PARTS = 256
"""Lines of the request, and commas in it, which separate the values of a header; a browser's has twenty of each. Each
is taken apart by itself: four thousand take 20 ms."""
_UNREADABLE = re.compile(rb"\n(?i:host):(?:[^\r\n]{262}|[^\r\n.]{80})|\n[ \t]")
"""A host longer than a name with its port may be, or a part of one: to decode 16 KiB of them takes a tenth of a second.
Neither may a header go on in the next line, which is obsolete, as its parts would be joined."""
_HEAD_END = re.compile(rb"\n\r?\n")
"""End of the request. What comes behind before the answer, which the protocol forbids, wsproto would lose unseen."""
PARTING_S = 1.0
"""Time of a peer to answer the end of the stream, before the connection is closed."""
_NOT_A_SOCKET = (
    b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"
)
_WHAT_THIS_IS = b"This is Bester, for WebSockets: one JSON frame a text message.\n"


class _UnreadableHeadError(Exception):
    """A request has a header that cannot be decoded."""


class Unended:
    """Messages of all WebSockets that have begun and not ended: the bytes held of them, the bound of these, and the
    seconds that one message may take."""

    __slots__ = ("held_bytes", "most_bytes", "patience_s")

    def __init__(self, most_bytes: int, patience_s: float) -> None:
        self.held_bytes = 0
        self.most_bytes = most_bytes
        self.patience_s = patience_s


class WebStream(Layer):
    """WebSocket connection. `origins` are the pages that may connect beside those of this host ("*": every page);
    `max_frame` is the length above which a message is not kept until its end, `unended` the bounds of those that have
    begun, `turns` the connections with frames that wait. `refused` is called with the reason why a request was refused,
    or the connection ended.

    `above` gets its connection before the handshake, so that its bounds of number and time hold for the handshake; what
    `above` writes before the end of the handshake ends the connection.
    """

    __slots__ = (
        "_above", "_came", "_deadline", "_enough", "_frames", "_head", "_max_frame", "_open", "_origins",
        "_over", "_parting", "_refused", "_socket", "_turns", "_unended", "_unread",
    )  # fmt: skip

    def __init__(
        self, above: asyncio.Protocol, *, unended: Unended, turns: LayerTurns, origins: Collection[str] = (),
        max_frame: int = 1024 * 1024, refused: Callable[[str], None] = lambda why: None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._above = above
        self._socket = WSConnection(ConnectionType.SERVER)
        self._frames = Splitter(2**31, 2**31)  # frames of `above`, whose chunks may begin and end within a frame
        self._origins = frozenset(origins)
        self._max_frame = max_frame
        self._refused = refused
        self._unended = unended
        self._turns = turns
        self._enough = 0.0  # time up to which this slice goes on
        self._unread = bytearray()  # bytes that were not handed to wsproto yet
        self._came = bytearray()  # bytes of a message that has not ended
        self._deadline: asyncio.TimerHandle | None = None
        self._over = False  # the rest of a message that is too long is dropped
        self._open = False
        self._parting = False  # refused: what still comes is dropped
        self._head: bytearray | None = bytearray()  # the request, until it is accepted

    # --- from the transport below -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._above.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the request, or of messages."""
        if self._below is None or self._below.is_closing() or self._parting:
            return
        if self._head is not None:
            self._head += data
            if len(self._head) > MAX_HEAD_BYTES:
                self._refuse("its request is too long")
                return
            if max(self._head.count(b"\n"), self._head.count(b",")) > MAX_HEAD_PARTS:
                self._refuse("its request has too many headers, or values in them")
                return
            if b"\0" in self._head:  # a frame's length; behind a letter of a request wsproto would wait for its end
                self._refuse("its request is for no WebSocket: it is binary")
                return
            if _UNREADABLE.search(self._head):
                self._refuse("its request is for no WebSocket: it names no host, or has a header of several lines")
                return
            end = _HEAD_END.search(self._head)
            if end is not None and end.end() < len(self._head):
                self._refuse("it goes on behind its request, and has not waited for the answer")
                return
        self._unread += data
        if self._turns.take_in(self):
            self._wait()

    def go_on(self, enough: float) -> bool:
        """Handle the request, or messages, up to the time `enough`; return whether there are more bytes to look at."""
        self._enough = enough
        try:
            self._read()
            for event in self._socket.events():
                self._on_event(event)
                if self._below is None or self._below.is_closing() or self._parting:
                    break
                if self._turns.clock() >= self._enough:
                    return True
        except RemoteProtocolError as error:
            self._on_fault(error)
        except (LocalProtocolError, UnicodeDecodeError) as error:
            self._end_over(error)
        except _UnreadableHeadError:
            self._refuse("its request is for no WebSocket: a header of it cannot be read")
        except BaseException:
            self.abort()
            raise
        self._catch_up()
        return False

    def _read(self) -> None:
        """Hand to wsproto what has come; a request is taken apart by this."""
        if self._unread and not self._parting:
            came, self._unread = bytes(self._unread), bytearray()
            try:
                self._socket.receive_data(came)
            except (UnicodeError, IndexError):  # raised for headers that are no text, and hosts that are no names
                raise _UnreadableHeadError from None

    def _end_over(self, error: Exception) -> None:
        self._refused(str(error))
        if self._below is not None:
            self._below.close()

    def eof_received(self) -> bool:
        """End the session: a WebSocket cannot end in one direction alone."""
        if self._waits:
            self._end_waits = True
            return True
        self._above.eof_received()
        return False

    def pause_writing(self) -> None:
        self._above.pause_writing()

    def resume_writing(self) -> None:
        self._above.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False
        self._turns.forget(self)
        self._take()
        self._above.connection_lost(exc)

    # --- events -------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Request):
            self._on_request(event)
        elif isinstance(event, TextMessage | BytesMessage):
            self._on_part(event)
        elif isinstance(event, Ping):
            if not self.get_write_buffer_size():  # a peer that pings and does not read gets no endless answers
                self._send(event.response())
        elif isinstance(event, CloseConnection):
            self._open = False
            with contextlib.suppress(LocalProtocolError):  # raised if this side has ended the stream before
                self._send(event.response())
            if self._below is not None:
                self._below.close()

    def _on_request(self, request: Request) -> None:
        origin = dict(request.extra_headers).get(b"origin", b"").decode("latin-1")
        if not self._may_connect(origin, request.host):
            self._send(RejectConnection(status_code=403, headers=[(b"content-type", b"text/plain")], has_body=True))
            text = f"pages of {origin} may not connect; [native] websocket_origins lists those that may\n"
            self._send(RejectData(data=text.encode(), body_finished=True))
            self._refused(f"a page of {origin!r} may not connect; list it in [native] websocket_origins")
            self.close()
            return
        self._send(AcceptConnection())
        self._open = True
        self._head = None

    def _may_connect(self, origin: str, host: str) -> bool:
        """Return whether a page may connect: one of this host, or a listed one. A program has no origin."""
        if not origin or origin in self._origins or "*" in self._origins:
            return True
        try:
            theirs, ours = urlsplit(origin).hostname, urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return theirs is not None and theirs == ours

    def _on_part(self, part: TextMessage | BytesMessage) -> None:
        """Collect a message; hand it on at its end, or as soon as it is too long, so that `above` refuses it."""
        if isinstance(part, BytesMessage):
            self._refused("it sends binary messages; a frame is a text message")
            self._send(CloseConnection(code=1003, reason="a frame is a text message"))
            self.close()
            return
        if self._over:
            return
        data = part.data.encode()
        self._came += data
        self._unended.held_bytes += len(data)
        if len(self._came) > self._max_frame:
            self._over = True
            self._pass_on(struct.pack("<I", len(self._take())))
        elif part.message_finished:
            body = self._take()
            self._pass_on(struct.pack("<I", len(body)) + body)
        elif self._unended.held_bytes > self._unended.most_bytes:
            self._end_early(1013, "too many messages have begun and not ended")
        elif self._deadline is None:
            self._allow(self._unended.patience_s)

    def _allow(self, seconds: float, *, may_excuse: bool = True) -> None:
        """Give the peer so long for the rest of a message. A process that stands still again and again excuses that
        once."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds

        def late() -> None:
            if may_excuse and loop.time() > due + GAP_S:  # the process stood still: the rest may have come, unread
                self._allow(AFTER_S, may_excuse=False)
            else:
                self._end_early(1008, "a message took too long")

        self._deadline = loop.call_at(due, late)

    def _pass_on(self, data: bytes) -> None:
        began = self._turns.clock()
        self._above.data_received(data)
        self._enough += self._turns.leave_out(began)

    def _take(self) -> bytearray:
        """Return what is held of a message, and hold it no more."""
        came, self._came = self._came, bytearray()
        self._unended.held_bytes -= len(came)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        return came

    def _end_early(self, code: int, why: str) -> None:
        """End the connection over a message that has begun."""
        self._take()
        self._over = True
        self._refused(why)
        if self._open:
            self._send(CloseConnection(code=code, reason=why))
        self.close()

    def _on_fault(self, error: RemoteProtocolError) -> None:
        if self._open and error.event_hint is not None:
            with contextlib.suppress(LocalProtocolError):
                self._send(error.event_hint)
            self._refused(str(error))
            self.close()
        else:
            self._refuse(f"its request is for no WebSocket: {error}")

    def _refuse(self, why: str) -> None:
        """Answer what is no request for a WebSocket, and end the stream. Read on until the peer ends it too: closing
        with bytes unread would reset the connection, and could take the answer away."""
        self._refused(why)
        self._parting = True
        if self._below is not None:
            self._below.write(_NOT_A_SOCKET % (len(_WHAT_THIS_IS), _WHAT_THIS_IS))
            if self._below.can_write_eof():
                self._below.write_eof()
            asyncio.get_running_loop().call_later(PARTING_S, self._below.close)

    def _send(self, event: Event) -> None:
        if self._below is not None:
            self._below.write(self._socket.send(event))

    # --- from the protocol above --------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write frames, each as one text message; the beginning of a frame waits for its end."""
        if not self._open:
            self.close()
            return
        for body in self._frames.feed(bytes(data)):
            self._send(TextMessage(data=body.decode(errors="replace")))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """Close the connection behind everything that was written."""
        if self._below is None or self._below.is_closing():
            return
        if not self._open:
            self._below.close()
            return
        self._open = False
        with contextlib.suppress(LocalProtocolError):
            self._send(CloseConnection(code=1000))
        asyncio.get_running_loop().call_later(PARTING_S, self._below.close)

    def abort(self) -> None:
        """Close the connection at once."""
        self._open = False
        if self._below is not None:
            self._below.abort()
