"""Addresses: `host:port`, `[v6]:port` and ZeroMQ endpoints, origins of pages; the test for those of this machine."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from typing import NamedTuple


class HostPort(NamedTuple):
    """TCP address; `host` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


MAX_HOST = 253
"""Characters of a host's name, as DNS has it (RFC 1035)."""
SHOWN = 40
"""Characters shown of one that is too long."""
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
    if len(host) > MAX_HOST:
        raise ValueError(f"{text[:SHOWN]!r}…: a host's name has {MAX_HOST} characters at most")
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


def network_of(address: str) -> str:
    """Return the unit that counts as one address: the /64 of an IPv6 address, which one host or household has, else the
    address."""
    try:
        v6 = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if v6.ipv4_mapped is not None:
        return str(v6.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(v6) >> 64 << 64))


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


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_THIS_HOST = ipaddress.IPv4Network("0.0.0.0/8")
_EMBEDDED_V4 = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv6 addresses that a gateway translates to the IPv4 address in their last four bytes (NAT64)."""


def parse_network(text: str) -> Network:
    """Parse an IP address or a network (`10.0.0.0/8`). Raises ValueError with the fault."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address and no network, as 10.0.0.5 or 10.0.0.0/8") from None


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]*", re.ASCII)
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443", re.ASCII)


def parse_origin(text: str) -> str:
    """Return a page's origin, written as browsers send one, or `*`. Raises ValueError for any other text, which would
    never equal an origin."""
    if text in ("*", "null"):
        return text
    if not text.isascii() or not _ORIGIN.fullmatch(text) or _DEFAULT_PORT.fullmatch(text):
        rules = "small letters of ASCII, no path, no final slash, no port 80 or 443 of its own"
        raise ValueError(f'{text!r} is no origin as browsers send it; write "https://chat.example": {rules}')
    return text


def is_within(address: str, networks: tuple[Network, ...]) -> bool:
    """Return whether a text is an IP address in one of these networks."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(ip in network for network in networks)


def is_neighbour(address: str) -> bool:
    """Return whether a text is an IP address of this machine or its link (loopback, link-local), or one of no single
    host (0.0.0.0, multicast)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _EMBEDDED_V4:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_neighbour(str(inner))
    elif ip in _THIS_HOST:
        return True
    return ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast or ip.is_reserved


class Endpoint(NamedTuple):
    """ZeroMQ endpoint: transport `ipc` (with a path) or `tcp` (with a HostPort)."""

    transport: str
    path: str
    tcp: HostPort | None

    @property
    def local(self) -> bool:
        """Return whether only this machine can reach the endpoint."""
        return self.tcp is None or is_loopback(self.tcp.host)


PATH_BYTES = 107
"""Longest path of a Unix socket on Linux."""
_BETWEEN_ENDPOINTS = re.compile(r",\s*(?=[a-z]+://)")


def endpoints_to(texts: Iterable[str]) -> list[str]:
    """Return the endpoints to connect to that texts name, each once. Commas separate those in one text; a comma inside
    of a path separates nothing. Raises ValueError with the fault."""
    endpoints = list(dict.fromkeys(part.strip() for text in texts for part in _BETWEEN_ENDPOINTS.split(text)))
    for text in endpoints:
        endpoint = parse_endpoint(text)
        if endpoint.tcp is not None and endpoint.tcp.port == 0:
            raise ValueError(f"{text!r}: port 0 is no port to connect to; write the port the broker listens on")
        length = len(os.fsencode(endpoint.path))
        if length > PATH_BYTES:
            raise ValueError(f"{text!r}: {length} bytes, and a Unix socket's path has {PATH_BYTES} at most")
    return endpoints


def parse_endpoint(text: str) -> Endpoint:
    """Parse `ipc://PATH` or `tcp://HOST:PORT`. Raises ValueError with the fault."""
    transport, separator, rest = text.partition("://")
    if _BETWEEN_ENDPOINTS.search(text):
        raise ValueError(f"{text!r} is several endpoints, and not one; write each by itself")
    if separator and rest:
        if transport == "ipc":
            return Endpoint("ipc", rest, None)
        if transport == "tcp":
            return Endpoint("tcp", "", parse_host_port(rest))
    raise ValueError(f"{text!r} is not ipc://PATH or tcp://HOST:PORT")
