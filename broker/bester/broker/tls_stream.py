"""TLS on an asyncio transport: a protocol to the transport below, a transport to the protocol above. A shell.

The ssl module works on memory, and the stream carries the bytes: the event loop's own TLS is not used. So encrypted
bytes are always in the transport below, whose buffer is empty when everything has left; a stream ends towards the other
side alone, as TCP does; a peer that speaks plain text is recognized; and the protocol of a listener has its connection
from the beginning, so that its bounds of number and time hold for the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar, cast

from bester.broker.layer import Layer
from bester.broker.layer_turns import LayerTurns
from bester.broker.names import connect
from bester.broker.tls_faults import PLAIN_TEXT, TlsError, fault_of
from bester.broker.tls_records import AT_ONCE, Records

RECORD_BYTES = 16 * 1024
"""Longest record of TLS."""
MOST_SHAKEN = 16 * 1024
"""Bytes of a client's handshake: OpenSSL takes a chain of certificates apart in one call, which takes six milliseconds
for as many bytes of the smallest ones. A server's chain of three certificates has some thousands."""
MOST_SHOWN = 2 * MOST_SHAKEN
"""Bytes of a server's handshake: its certificate may have many names. OpenSSL's own bound on a chain, 100 KB, would let
one take 33 ms."""
MOST_ANSWERED = 64 * 1024
"""Bytes of answers of TLS itself that a peer may leave unread, such as those to requests for new keys."""
MOST_BEHIND = 64 * 1024
"""Bytes of a peer behind its own notice of the end of its stream, which count as nothing."""
PARTING_S = 1.0
"""Time of a peer to read why the handshake failed, before the connection is closed."""
_ALERT, _HANDSHAKE = 0x15, 0x16
_HEAD_BYTES = 3
_NO_ROOM = b"\x15\x03\x03\x00\x02\x02\x50"
"""Alert internal_error, as a whole record: the handshake cannot go on."""

P = TypeVar("P", bound=asyncio.Protocol)


class Phase(Enum):
    SHAKING = "shaking"  # the handshake is under way
    OPEN = "open"  # both directions carry data
    ENDED = "ended"  # ended by this side: bytes that arrive are dropped


def _ignore(_: object) -> None:
    pass


class TlsStream(Layer):
    """TLS connection. `host` is the name that the server's certificate must have; None at the server's side.

    At the server's side `above` gets its connection before the handshake, and what it writes before the end of the
    handshake ends the connection; at the client's side `above` gets its connection after the handshake. `opened` is
    called after the handshake, `failed` once where TLS ends the connection. `plain_answer` is sent to a peer that
    speaks plain text. With `turns` handshakes and records have a part of each turn of the loop.
    """

    __slots__ = (
        "_above", "_answered_bytes", "_behind_bytes", "_connected", "_failed", "_fault", "_head", "_host", "_in",
        "_opened", "_out", "_peer_ended", "_phase", "_plain_answer", "_records", "_shaken_bytes", "_ssl", "_truncated",
        "_turns", "certificate", "waiter",
    )  # fmt: skip

    def __init__(
        self,
        above: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        host: str | None = None,
        plain_answer: bytes = b"",
        turns: LayerTurns | None = None,
        opened: Callable[[TlsStream], None] = _ignore,
        failed: Callable[[TlsError], None] = _ignore,
    ) -> None:
        super().__init__()
        self._above = above
        self._host = host
        self._plain_answer = plain_answer
        self._turns = turns
        self._opened = opened
        self._failed = failed
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._records = Records()
        self._shaken_bytes = 0  # bytes of the handshake that were handed to TLS
        self._answered_bytes = 0  # bytes of TLS itself since everything had left the transport below
        self._behind_bytes = 0  # bytes behind the peer's notice
        self._ssl = context.wrap_bio(self._in, self._out, server_side=host is None, server_hostname=host)
        self._phase = Phase.SHAKING
        self._head: bytes | None = b""  # the first bytes of the peer, until there are enough to tell what they are
        self._connected = False  # `above` has its connection
        self._fault: TlsError | None = None
        self._peer_ended = self._truncated = False
        self.waiter: asyncio.Future[None] | None = None
        self.certificate: tuple[str, ...] | None = None
        """Names in the verified certificate of a client: hosts, addresses. Empty where the client has shown none; None
        where none was asked for."""

    def _names_shown(self) -> tuple[str, ...] | None:
        """Return the names for `certificate`. Raises ValueError, or an error of TLS, for names that are no text."""
        if self._host is not None or self._ssl.context.verify_mode is ssl.CERT_NONE:
            return None
        shown = self._ssl.getpeercert() or {}
        rows = cast(tuple[tuple[str, str], ...], shown.get("subjectAltName", ()))
        return tuple(value for kind, value in rows if kind in ("DNS", "IP Address"))

    # --- from the transport below -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        if self._host is None:
            self._connect_above()
        else:
            self._shake()

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the peer: of the handshake, or encrypted ones of the stream."""
        if self._peer_ended:
            self._behind_bytes += len(data)
            if self._behind_bytes > MOST_BEHIND:
                self._fail(TlsError("it sends on behind its own notice that its stream ends"))
        elif self._phase is Phase.OPEN:
            self._records.add(data)
            self._take_turn()
        elif self._phase is Phase.SHAKING:
            if self._head is not None:
                data = self._head + data
                if len(data) < _HEAD_BYTES:
                    self._head = data
                    return
                self._head = None
                if data[0] not in (_ALERT, _HANDSHAKE) or data[1] != 3 or data[2] > 4:
                    self._on_plain_text()
                    return
            self._records.add(data)
            self._take_turn()

    def _take_turn(self) -> None:
        if self._turns is None:
            self.go_on(math.inf)
        elif self._turns.take_in(self):
            self._wait()

    def go_on(self, enough: float) -> bool:
        """Go on with the handshake, and decrypt what has come behind, up to the time `enough`; return whether there is
        more."""
        try:
            if self._phase is Phase.SHAKING:
                self._shake()
            if self._phase is Phase.OPEN and self._read(enough):
                return True
        except BaseException:
            self.abort()
            raise
        self._catch_up()
        return False

    def eof_received(self) -> bool:
        """Handle the end of the peer's bytes: without the notice of TLS before, the stream may be cut off."""
        if self._waits:
            self._end_waits = True
            return True
        if self._phase is Phase.SHAKING:
            self._fail(TlsError("the other side closed the connection during the TLS handshake", unread=True))
        if self._phase is Phase.ENDED:
            return False
        if self._peer_ended:
            return True
        self._peer_ended = self._truncated = True
        return bool(self._above.eof_received())

    def pause_writing(self) -> None:
        if self._connected:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._connected:
            self._above.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol above of the end of its connection; TLS is the reason where TLS has ended it."""
        if self._turns is not None:
            self._turns.forget(self)
        if self._phase is Phase.SHAKING:
            why = "was lost" if exc is not None else "was closed"
            self._fail(TlsError(f"the connection {why} during the TLS handshake", unread=True))
        self._phase = Phase.ENDED
        if self._connected:
            self._connected = False
            self._above.connection_lost(self._fault or exc)

    # --- the handshake, and what comes behind -------------------------------------------------------------------

    def _connect_above(self) -> None:
        self._connected = True
        self._above.connection_made(self)

    def _feed(self, most: int = AT_ONCE) -> int:
        """Hand the next records to TLS, `most` of them at most; return how many bytes these were."""
        taken = self._records.take(most)
        self._in.write(taken)
        return len(taken)

    def _shake(self) -> None:
        while True:
            try:
                self._ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._pump()
                most_bytes = MOST_SHAKEN if self._host is None else MOST_SHOWN
                if self._shaken_bytes > most_bytes:
                    self._fail(TlsError(f"its handshake has more than {most_bytes >> 10} KiB", unread=True))
                    return
                fed_bytes = self._feed(1)
                if not fed_bytes:
                    return
                self._shaken_bytes += fed_bytes
            except ssl.SSLError as error:
                self._pump()  # the alert that tells the peer why
                self._fail(fault_of(error, self._host))
                return
        try:
            self.certificate = self._names_shown()
        except (ValueError, ssl.SSLError):
            self._fail(TlsError("its certificate cannot be read: a name in it is no text", unread=True))
            return
        self._phase = Phase.OPEN
        self._records.keeps_alerts = self._would_be_kept()
        self._records.on_data()
        self._pump()
        if self._host is not None:
            self._connect_above()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
        self._opened(self)

    def _would_be_kept(self) -> bool:
        """Return whether OpenSSL keeps the client's chain of certificates behind the end of the connection.

        A session of TLS 1.2 stays in the context, for two hours, to be resumed: up to 20,480 of them, each with its
        chain, which takes ten times the bytes of the handshake. The ssl module has no switch for that. A session
        leaves with its connection where no notice of the end has come through OpenSSL, either way. The end of TCP says
        the same to this side; and a server that sends here has its report before.
        """
        return (
            self._host is None
            and self._ssl.version() == "TLSv1.2"
            and self._ssl.context.verify_mode is not ssl.CERT_NONE
            and self._ssl.getpeercert(True) is not None
        )

    def _read(self, enough: float) -> bool:
        """Decrypt what has come up to the time `enough`, and pass it on as one piece; return whether there is more."""
        pieces: list[bytes] = []
        fault = None
        notified = has_more = False
        read, clock = self._ssl.read, None if self._turns is None else self._turns.clock
        while True:
            try:
                piece = read(RECORD_BYTES)
            except ssl.SSLWantReadError:
                why = self._records.fault()
                if why is not None:
                    fault = TlsError(why)
                if fault is not None or not self._feed():
                    notified = self._records.is_over
                    break
            except ssl.SSLError as error:
                fault = fault_of(error, self._host)
                break
            else:
                if not piece:
                    notified = True
                    break
                pieces.append(piece)
                self._records.on_data()
            if clock is not None and clock() >= enough:
                has_more = True
                break
        fault = self._answer() or fault
        if pieces:
            began = 0.0 if self._turns is None else self._turns.clock()
            self._above.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if self._turns is not None:
                self._turns.leave_out(began)
        if fault is not None:
            self._fail(fault)
        elif notified and not self._peer_ended and self._phase is Phase.OPEN:
            self._peer_ended = True
            self._records.drop()
            if not self._above.eof_received():
                self.close()
        return has_more

    def _answer(self) -> TlsError | None:
        """Hand the answers of TLS itself to the transport below; return the fault where the peer leaves them unread."""
        answer_bytes = self._out.pending
        if answer_bytes and self._below is not None:
            self._pump()
            self._answered_bytes = self._answered_bytes + answer_bytes if self._below.get_write_buffer_size() else 0
            if self._answered_bytes > MOST_ANSWERED:
                return TlsError("it asks for answers of TLS, and reads none of them")
        return None

    def _pump(self) -> None:
        """Hand encrypted bytes to the transport below."""
        if self._out.pending and self._below is not None:
            self._below.write(self._out.read())

    def _on_plain_text(self) -> None:
        if self._host is None and self._below is not None:
            self._below.write(self._plain_answer)
            self._fail(TlsError("it speaks plain text to a listener of TLS", unread=True))
        else:
            self._fail(TlsError(PLAIN_TEXT, unread=True))

    def _fail(self, fault: TlsError) -> None:
        """End the connection because of TLS; a client has a moment to read the reason."""
        if self._fault is not None or self._phase is Phase.ENDED:
            return
        self._fault, self._phase = fault, Phase.ENDED
        below = self._below
        if below is not None and not below.is_closing():
            if self._host is None and below.can_write_eof():
                below.write_eof()
                asyncio.get_running_loop().call_later(PARTING_S, below.close)
            else:
                below.close()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(fault)
        self._failed(fault)

    # --- from the protocol above --------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt data, and hand it to the transport below."""
        if self._phase is Phase.OPEN:
            try:
                done = self._ssl.write(data)
                while done < len(data):
                    done += self._ssl.write(memoryview(data)[done:])
            except ssl.SSLError as error:
                self._fail(fault_of(error, self._host))
                return
            self._pump()
        elif self._phase is Phase.SHAKING and self._below is not None:
            self._below.write(_NO_ROOM)
            self._fail(TlsError("the connection was ended before the TLS handshake", unread=True))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """End the stream towards the peer; bytes of the peer that still come are dropped."""
        self._notify()
        if self._below is not None and not self._below.is_closing():
            self._below.write_eof()

    def close(self) -> None:
        """Close the connection behind everything that was written."""
        self._notify()
        if self._below is not None:
            self._below.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._phase = Phase.ENDED
        if self._below is not None:
            self._below.abort()

    def _notify(self) -> None:
        """Tell the peer that the stream ends here, and was not cut off."""
        if self._phase is Phase.OPEN and not self._records.keeps_alerts:
            with contextlib.suppress(ssl.SSLError):  # the peer's own notice is not waited for
                self._ssl.unwrap()
            self._pump()
        self._phase = Phase.ENDED

    def is_closing(self) -> bool:
        return self._phase is Phase.ENDED or super().is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact of the transport below; `ssl_object`, and `truncated`: the peer's bytes ended without the
        notice of TLS."""
        if name == "ssl_object":
            return self._ssl
        if name == "truncated":
            return self._truncated
        return super().get_extra_info(name, default)


async def connect_tls(
    protocol: Callable[[], P],
    addresses: tuple[str, ...],
    port: int,
    timeout_s: float,
    context: ssl.SSLContext,
    host: str,
    handshake_s: float | None = None,
    turns: LayerTurns | None = None,
) -> P:
    """Connect to the first address that accepts, and shake hands within `handshake_s` (None: the rest of `timeout_s`).
    With `turns` the peer's handshake and records have a part of each turn of the loop.

    Raises OSError: TlsError where TLS is the reason.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    made: list[P] = []

    def make() -> TlsStream:
        above = protocol()
        made[:] = [above]
        stream = TlsStream(above, context, host=host.rstrip("."), turns=turns)
        stream.waiter = loop.create_future()
        stream.waiter.add_done_callback(lambda done: done.cancelled() or done.exception())  # a waiter may give up
        return stream

    stream = await connect(make, addresses, port, timeout_s)
    assert stream.waiter is not None
    allowed_s = max(0.0, deadline - loop.time()) if handshake_s is None else handshake_s
    try:
        async with asyncio.timeout(allowed_s):
            await stream.waiter
    except TimeoutError:
        stream.abort()
        raise TlsError("the TLS handshake was not answered in time; is TLS spoken there?", unread=True) from None
    except BaseException:
        stream.abort()
        raise
    return made[0]
