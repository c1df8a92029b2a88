"""Opens the native listeners of a configuration: TCP, Unix, TLS, WebSocket, each with its protocols' maker."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable

from bester.bridge import native_writing
from bester.bridge.bridge import Bridge
from bester.bridge.certificates import Certificates
from bester.bridge.connection import Connection
from bester.bridge.ends import Ends
from bester.bridge.listeners import Factory, Listener, listen_tcp, listen_tls, listen_unix, listen_web
from bester.broker.config import NativeConfig
from bester.broker.layer_turns import LayerTurns
from bester.broker.logs import facts
from bester.broker.tls_faults import TlsError
from bester.broker.tls_stream import TlsStream

PLAIN_ANSWER = native_writing.refused("tls-required")
"""Answer to plain text at a listener of TLS."""
PLAIN_HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 21\r\n\r\nuse wss:// (TLS) here"
"""Answer to plain HTTP at a listener of WebSockets over TLS."""

log = logging.getLogger("bester.bridge")


async def open_listeners(
    config: NativeConfig, add: Callable[[Listener], None], bridge: Bridge, certificates: Certificates, *, shared: bool
) -> None:
    """Open all listeners; `add` gets each when it is open, so that the caller can close those before a fault.
    `shared`: other processes listen at the same TCP addresses. Raises ConfigError."""
    loop = asyncio.get_running_loop()
    ends = Ends(_turns(loop))

    def connection() -> Connection:
        return Connection(bridge, loop, ends)

    for key, address, family in (
        ("[native] tcp4", config.tcp4, socket.AF_INET),
        ("[native] tcp6", config.tcp6, socket.AF_INET6),
    ):
        if address is not None:
            listener = await listen_tcp(
                key, address, connection, family=family, insecure=config.insecure, shared=shared
            )
            add(listener)
    if config.unix is not None:
        add(await listen_unix("[native] unix", str(config.unix), connection))
    turns = _turns(loop)
    for address in () if config.tls is None else config.tls.listen:
        add(await listen_tls(address, lambda: _secure(connection(), certificates, turns), shared=shared))
    if config.websocket is not None:
        factory, secure = _web(config, bridge, certificates, connection), config.tls is not None
        add(await listen_web(config.websocket, factory, secure=secure, shared=shared))


def _web(config: NativeConfig, bridge: Bridge, certificates: Certificates, new: Callable[[], Connection]) -> Factory:
    """Return the maker of a WebSocket listener's protocols: over TLS where there are certificates. `new` makes the
    connections above."""
    from bester.bridge.web_stream import Unended, WebStream  # most servers run without

    loop = asyncio.get_running_loop()
    limits, turns, tls_turns = bridge.limits, _turns(loop), _turns(loop)
    unended = Unended(limits.unfinished_bytes, limits.frame_s + config.max_frame / limits.frame_rate)

    def plain() -> WebStream:
        """Return the protocol of a connection without TLS."""
        return above(new())

    def above(connection: Connection) -> WebStream:
        """Return the protocol between a connection and TLS, or TCP."""

        def refused(why: str) -> None:
            address = connection.address
            log.warning(
                "WebSocket of %s refused: %s", address, why, extra=facts("web-refused", address=address, why=why)
            )

        return WebStream(
            connection, unended=unended, turns=turns, origins=config.websocket_origins, max_frame=config.max_frame,
            refused=refused,
        )  # fmt: skip

    def secure() -> TlsStream:
        """Return the protocol of a connection with TLS."""
        connection = new()
        failed = _teller(connection)
        return TlsStream(
            above(connection), certificates.listener, plain_answer=PLAIN_HTTP, turns=tls_turns, failed=failed
        )

    return plain if config.tls is None else secure


def _turns(loop: asyncio.AbstractEventLoop) -> LayerTurns:
    return LayerTurns(time.monotonic, loop.call_soon)


def _teller(connection: Connection) -> Callable[[TlsError], None]:
    """Return a function that tells the log why TLS has ended a connection."""

    def failed(fault: TlsError) -> None:
        address = connection.address
        log.warning(
            "TLS with %s failed: %s", address, fault, extra=facts("tls-failed", address=address, why=str(fault))
        )

    return failed


def _secure(connection: Connection, certificates: Certificates, turns: LayerTurns) -> TlsStream:
    """Return the protocol of TLS below a connection."""
    return TlsStream(
        connection, certificates.listener, plain_answer=PLAIN_ANSWER, turns=turns, opened=connection.secured,
        failed=_teller(connection),
    )  # fmt: skip
