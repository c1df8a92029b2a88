"""Listeners of the bridge: TCP and Unix sockets, bound with the options that every connection inherits.

A socket that the service manager passes takes the place of a new one at its address, and outlives this process: what
connects during a restart waits in it.

A listener that cannot be opened is a ConfigError that names the key and the remedy. A plaintext listener that other
machines can reach is refused unless the operator says `insecure`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import Callable
from typing import NamedTuple

from bester.broker import unix_socket
from bester.broker.names import find
from bester.broker.systemd import service_manager
from bester.broker.unix_socket import UnixSocket
from bester.broker.wire.address import HostPort, is_loopback
from bester.broker.wire.codes import ConfigError

BACKLOG = 8192
"""A storm of reconnecting clients waits here; with asyncio's own 100 it would wait for TCP's timers."""
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 10, 3
"""Time to find a silent peer dead: a minute and a half."""
USER_TIMEOUT_MS = 30_000
"""Time for bytes to be acknowledged: the bytes that a kernel holds for a dead peer are lost, and this bounds how
many."""
DESCRIPTORS_APART = 128
"""Descriptors that the process needs for other things than native connections."""
LOOKUP_S = 5.0
"""Time for a listener's name to be looked up; no client is served meanwhile."""
NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV

Factory = Callable[[], asyncio.BaseProtocol]


class Listener(NamedTuple):
    """Open listener: its URL as the informer shows it, e.g. `tcp4://127.0.0.1:2223`."""

    url: str
    server: asyncio.AbstractServer
    unix: UnixSocket | None

    @property
    def address(self) -> str:
        """Address as `host:port`, the path of a Unix socket, `tls://host:port` or `ws://host:port`."""
        return self.url if self.url.startswith(("tls://", "ws://", "wss://")) else self.url.partition("://")[2]

    def close(self) -> None:
        """Stop listening; connections stay. The file of a Unix socket is removed if it still belongs to this
        listener."""
        if self.unix is not None:
            self.unix.remove()
        self.server.close()


TLS_KEY = "[native.tls] listen"
WEB_KEY = "[native] websocket"


def check_plaintext(key: str, address: HostPort, insecure: bool) -> None:
    """Refuse a listener without TLS that other machines can reach. Raises ConfigError."""
    if not insecure and not is_loopback(address.host):
        raise ConfigError(
            f"{key} = {str(address)!r} would take passwords in plain text from other machines: "
            'listen on 127.0.0.1 or "[::1]", with [native.tls] there, or set insecure = true if the network is yours'
        )


def family_of(address: HostPort) -> int:
    """Return the family of the sockets of an address that is no name."""
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


async def listen_tls(address: HostPort, factory: Factory, *, shared: bool = False) -> Listener:
    """Listen on a TCP address for the protocols of TLS that `factory` makes. Raises ConfigError."""
    listener = await listen_tcp(TLS_KEY, address, factory, family=family_of(address), insecure=True, shared=shared)
    return listener._replace(url=f"tls://{listener.address}")


async def listen_web(address: HostPort, factory: Factory, *, secure: bool, shared: bool = False) -> Listener:
    """Listen on a TCP address for WebSockets, over TLS where `secure`. Raises ConfigError."""
    listener = await listen_tcp(WEB_KEY, address, factory, family=family_of(address), insecure=True, shared=shared)
    return listener._replace(url=f"{'wss' if secure else 'ws'}://{listener.address}")


async def listen_tcp(
    key: str, address: HostPort, factory: Factory, *, family: int, insecure: bool = False, shared: bool = False
) -> Listener:
    """Listen on a TCP address; port 0 takes a free one. `key` is the configuration key, for errors. `shared`: other
    processes of this user may listen there as well, and the system gives each connection to one of them. Raises
    ConfigError."""
    check_plaintext(key, address, insecure)
    loop = asyncio.get_running_loop()
    sock = await bind_tcp(key, address, family=family, shared=shared)
    try:
        server = await loop.create_server(factory, sock=sock, backlog=BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(_why_not(key, address, error)) from None
    kind = "tcp6" if family == socket.AF_INET6 else "tcp4"
    return Listener(f"{kind}://{address._replace(port=sock.getsockname()[1])}", server, None)


async def bind_tcp(key: str, address: HostPort, *, family: int, shared: bool = False) -> socket.socket:
    """Return a socket that is bound as `listen_tcp` says, and does not listen yet, but for one that the service manager
    has passed. Raises ConfigError."""
    try:
        hosts = [host for host in await find(address.host, LOOKUP_S) if (":" in host) is (family == socket.AF_INET6)]
    except OSError:
        hosts = []
    if not hosts:
        kind = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise ConfigError(f"{key}: {address.host!r} is no {kind} address of this machine")
    sock: socket.socket | None = None
    try:
        where = socket.getaddrinfo(hosts[0], address.port, type=socket.SOCK_STREAM, flags=NUMERIC)[0][4]
        sock = service_manager().take(family, where)
        if sock is not None:
            _set_options(sock)
        else:
            sock = socket.socket(family, socket.SOCK_STREAM)
            _set_options(sock)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(where)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise ConfigError(_why_not(key, address, error)) from None
    return sock


def _set_options(sock: socket.socket) -> None:
    """Set the options of a listener; Linux hands them on to each accepted connection, so that none costs anything
    later."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
    ):
        if hasattr(socket, name):  # some systems lack some of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _why_not(key: str, address: HostPort, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{key} = {str(address)!r}: port {address.port} is in use; stop its owner or choose another port"
    if error.errno == errno.EACCES:
        return f"{key} = {str(address)!r}: this port needs privileges; choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{key} = {str(address)!r}: this machine has no such address; use 127.0.0.1 or one of its own"
    if error.errno == errno.EINVAL and address.host.lower().startswith("fe80:") and "%" not in address.host:
        interface = address._replace(host=f"{address.host}%eth0")
        return f"{key} = {str(address)!r}: an address of one link needs its interface; write it as {str(interface)!r}"
    return f"{key} = {str(address)!r}: cannot listen: {error.strerror}; choose another address"


async def listen_unix(key: str, path: str, factory: Factory, *, mode: int | None = None) -> Listener:
    """Listen on a Unix socket, replacing the file of a dead server, but not that of a living one. Raises
    ConfigError."""
    loop = asyncio.get_running_loop()
    passed = service_manager().take(socket.AF_UNIX, path)
    if passed is not None:  # the file is the service manager's
        passed.setblocking(False)
        return Listener(f"unix://{path}", await loop.create_unix_server(factory, sock=passed, backlog=BACKLOG), None)
    bound = unix_socket.listen(f"{key} = {path!r}", path, backlog=BACKLOG, mode=mode)
    try:
        server = await loop.create_unix_server(factory, sock=bound.socket, backlog=BACKLOG)
    except BaseException:
        bound.remove()
        bound.socket.close()
        raise
    return Listener(f"unix://{path}", server, bound)


def raise_descriptor_limit() -> int:
    """Raise the limit of descriptors of this process as far as allowed; return how many native connections that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(DESCRIPTORS_APART, soft - DESCRIPTORS_APART) if soft != resource.RLIM_INFINITY else 1 << 30
