"""Addresses: `host:port`, `[v6]:port` and ZeroMQ endpoints, and the test for those of this machine."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple


class HostPort(NamedTuple):
    """TCP address; `host` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_NEVER_IN_A_HOST = frozenset(":[]/@,;\"' \t\r\n\0")


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def parse_host_port(text: str) -> HostPort:
    """Parse `host:port` or `[v6]:port`, with a port from 0 to 65535. Raises ValueError with the fault."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text!r} is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError(f"{text!r}: an IPv6 address stands in brackets, nothing else")
    elif set(host) & _NEVER_IN_A_HOST:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, and a host name is one word")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{text!r}: the port is a number from 0 to 65535")
    return HostPort(host, int(port))


def is_host_port(target: str) -> bool:
    """Return whether a sendServers target is an address; any other target is the name of a configured server."""
    try:
        parse_host_port(target)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host; names other than localhost count as outside."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_numeric(host: str) -> bool:
    """Return whether a host is an IP address, and no name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def canonical(address: HostPort) -> HostPort:
    """Return the canonical form of an address: `localhost` becomes 127.0.0.1, an IPv6 address its short form."""
    if address.host == "localhost":
        return HostPort("127.0.0.1", address.port)
    try:
        return HostPort(str(ipaddress.ip_address(address.host)), address.port)
    except ValueError:
        return HostPort(address.host.lower(), address.port)


class Endpoint(NamedTuple):
    """ZeroMQ endpoint: transport `ipc` (with a path) or `tcp` (with a HostPort)."""

    transport: str
    path: str
    tcp: HostPort | None

    @property
    def local(self) -> bool:
        """Return whether only this machine can reach the endpoint."""
        return self.tcp is None or is_loopback(self.tcp.host)


def parse_endpoint(text: str) -> Endpoint:
    """Parse `ipc://PATH` or `tcp://HOST:PORT`. Raises ValueError with the fault."""
    transport, separator, rest = text.partition("://")
    if separator and rest:
        if transport == "ipc":
            return Endpoint("ipc", rest, None)
        if transport == "tcp":
            return Endpoint("tcp", "", parse_host_port(rest))
    raise ValueError(f"{text!r} is not ipc://PATH or tcp://HOST:PORT")
