"""The sockets of a link's connecting side: one for each attempt to reach the broker, and why an attempt has failed.

ZeroMQ is given addresses, never names: its lookups would block the thread that moves all its bytes, and its end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial

import zmq

from bester.broker.descriptors import SCARCE
from bester.broker.fabric_socket import FabricSocket, new_context
from bester.broker.keys import LinkKeys
from bester.broker.lookups import PATIENCE_S
from bester.broker.monitor import CONNECTING, event_of, greet
from bester.broker.names import find, numeric, reason
from bester.broker.wire.address import HostPort, parse_endpoint
from bester.broker.wire.trouble import Attempt, Found

FIRST_RECONNECT_MS = 1
LAST_RECONNECT_MS = 200
"""Bounds of ZeroMQ's doubling back-off. The first attempt tells that a broker is dead, where nothing listens any more:
its users wait for that attempt, and are served by another broker afterwards."""

Context = zmq.Context[zmq.Socket[bytes]]


class Dialer:
    """Maker of the sockets that connect a link to `endpoint`.

    `new_socket` makes a DEALER that is not connected; `on_socket` gets it when ZeroMQ has taken the endpoint.
    `on_no_socket(why)`: there is none now, as a name cannot be looked up, or the system has no descriptors. Of a
    connected socket `on_handshake_failed` tells that no answer will come, and `on_nobody_there` that no program listens
    at the endpoint, or that this user may not speak to it; `on_connection(descriptor, begins)` tells of
    each connection, before its handshake and at its end. `is_wanted` is asked after a lookup. `keys` and `called` are
    the link's.
    """

    def __init__(
        self,
        endpoint: str,
        new_socket: Callable[[Context], FabricSocket],
        on_socket: Callable[[FabricSocket], None],
        on_no_socket: Callable[[str], None],
        on_handshake_failed: Callable[[], None],
        on_nobody_there: Callable[[], None],
        on_connection: Callable[[int, bool], None],
        *,
        is_wanted: Callable[[], bool],
        keys: LinkKeys | None,
        called: str,
    ) -> None:
        self._endpoint = endpoint
        self._new_socket = new_socket
        self._on_socket = on_socket
        self._on_no_socket = on_no_socket
        self._on_handshake_failed = on_handshake_failed
        self._on_nobody_there = on_nobody_there
        self._on_connection = on_connection
        self._is_wanted = is_wanted
        self._keys = keys
        self._called = called
        self._context: Context | None = None
        self._attempt = Attempt(endpoint, called)
        self._lookup: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[None] | None = None
        self._opened = 0  # number of sockets so far: the addresses of a name are tried in turn

    @property
    def is_open(self) -> bool:
        """Return whether there is a context to close."""
        return self._context is not None

    @property
    def is_looking_up(self) -> bool:
        """Return whether a name in the endpoint is being looked up."""
        return self._lookup is not None

    def why(self) -> str:
        """Return why the latest attempt has led to no link, in words for people."""
        return self._attempt.why()

    def reserve(self) -> FabricSocket | None:
        """Open the descriptors of the first attempt, and return its socket, connected; None where a name is to be
        looked up first. Raises OSError where the system has no descriptors, and zmq.ZMQError for an endpoint that
        ZeroMQ does not take."""
        self._context = new_context()
        try:
            tcp = _tcp_of(self._endpoint)
            if tcp is None:
                return self._connect(self._context, self._endpoint)
            if addresses := numeric(tcp.host)[:1]:
                return self._connect(self._context, f"tcp://{tcp._replace(host=addresses[0])}")
            self._context.socket(zmq.DEALER).close(linger=0)  # a context's threads begin with its first socket
        except zmq.ZMQError as error:
            self.release()
            if error.errno not in SCARCE:
                raise
            raise OSError(error.errno, error.strerror) from None
        return None

    def release(self) -> None:
        """Close what `reserve` has opened, but for its socket, which is closed before."""
        if self._context is not None:
            self._context.term()
            self._context = None

    def dial(self, *, is_first: bool = False) -> None:
        """Connect a new socket, after the lookup of a name in the endpoint. Where the first endpoint is one that ZeroMQ
        does not take, raises zmq.ZMQError, for the caller of `start`; a later one would raise in a timer, and end the
        link without a word."""
        if self._context is None:
            self._context = new_context()
        tcp = _tcp_of(self._endpoint)
        if tcp is None:
            self._open(self._context, self._endpoint, is_first=is_first)
        elif addresses := numeric(tcp.host)[:1]:  # brokers on `localhost` listen on IPv4
            self._open_tcp(self._context, addresses, tcp, is_first=is_first)
        elif self._lookup is None:
            self._lookup = asyncio.get_running_loop().create_task(self._find(self._context, tcp))

    async def close(self) -> None:
        """Give up what is under way, and wait until the closed sockets have sent their last bytes."""
        for task in (self._lookup, self._probe):
            if task is not None:
                task.cancel()
        context, self._context = self._context, None
        if context is None:
            return
        try:
            await asyncio.to_thread(context.term)
        except RuntimeError:  # the system has no thread for it; then the loop waits, as long as the socket lingers
            context.term()

    async def _find(self, context: Context, tcp: HostPort) -> None:
        try:
            addresses = await find(tcp.host, PATIENCE_S)
        except OSError as error:
            self._lookup = None
            if self._is_wanted():
                self._on_no_socket(f"the name {tcp.host} cannot be looked up: {reason(error)}")
            return
        self._lookup = None
        if self._is_wanted():  # unless the link was left meanwhile
            self._open_tcp(context, addresses, tcp)

    def _open_tcp(self, context: Context, addresses: tuple[str, ...], tcp: HostPort, *, is_first: bool = False) -> None:
        address = tcp._replace(host=addresses[self._opened % len(addresses)])
        self._opened += 1
        self._open(context, f"tcp://{address}", is_first=is_first)

    def _open(self, context: Context, endpoint: str, *, is_first: bool) -> None:
        try:
            socket = self._connect(context, endpoint)
        except zmq.ZMQError as error:
            if is_first and error.errno not in SCARCE:
                raise
            self._on_no_socket(f"no socket can be opened: {error.strerror}")
            return
        self._on_socket(socket)

    def _connect(self, context: Context, endpoint: str) -> FabricSocket:
        """Return a new socket that is connected, and not read from yet. Raises zmq.ZMQError."""
        socket = self._new_socket(context)
        socket.socket.ipv6 = "[" in endpoint  # required for IPv6 addresses
        socket.socket.reconnect_ivl, socket.socket.reconnect_ivl_max = FIRST_RECONNECT_MS, LAST_RECONNECT_MS
        if self._keys is not None:
            self._keys.set_on(socket.socket)
        own, other = (self._keys.pair.public, self._keys.server) if self._keys is not None else (None, None)
        self._attempt = Attempt(self._endpoint, self._called, own, other)
        try:
            socket.watch(CONNECTING, partial(self._on_event, self._attempt, endpoint))
            socket.socket.connect(endpoint)
        except zmq.ZMQError:
            socket.close()
            raise
        return socket

    def _on_event(self, attempt: Attempt, endpoint: str, event: int, value: int) -> None:
        """Take in what happened to the connection; after a handshake that failed wait no longer for an answer."""
        if event in (zmq.EVENT_CONNECTED, zmq.EVENT_DISCONNECTED):
            self._on_connection(value, event == zmq.EVENT_CONNECTED)
        happened = event_of(event, value)
        if attempt.take("forbidden" if happened == "refused" and _is_forbidden(endpoint) else happened):
            self._on_handshake_failed()
        elif attempt.found in (Found.REFUSED, Found.FORBIDDEN):
            self._on_nobody_there()
        elif attempt.in_doubt and self._probe is None and (tcp := _tcp_of(endpoint)) is not None:
            self._probe = asyncio.get_running_loop().create_task(self._look_who(attempt, tcp))

    async def _look_who(self, attempt: Attempt, tcp: HostPort) -> None:
        """Ask what listens for its greeting: a Bester with another key ends a handshake in silence, as others do."""
        found = await greet(tcp)
        self._probe = None
        if attempt is self._attempt and attempt.take_greeting(found):
            self._on_handshake_failed()


def _is_forbidden(endpoint: str) -> bool:
    """Return whether this user may not open the file of an ipc endpoint: ZeroMQ says only that nothing is connected."""
    transport, _, path = endpoint.partition("://")
    if transport != "ipc":
        return False
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _tcp_of(endpoint: str) -> HostPort | None:
    """Return the address of a tcp endpoint; None for any other, and for an invalid one, which ZeroMQ refuses."""
    try:
        return parse_endpoint(endpoint).tcp
    except ValueError:
        return None
