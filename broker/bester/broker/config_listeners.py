"""Listeners of a configuration, by the keys that name them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from bester.broker.config import Config
from bester.broker.wire.address import HostPort, is_numeric, parse_endpoint


class Listener(NamedTuple):
    """Listener of the configuration: the section and key that name it, and its address or the path of its Unix
    socket."""

    section: str
    key: str
    at: HostPort | Path

    def __str__(self) -> str:
        return f"[{self.section}] {self.key}"


def listeners_of(config: Config) -> Iterator[Listener]:
    """Yield the listeners of a configuration."""
    native, operator = config.native, config.operator
    for endpoint in map(parse_endpoint, config.fabric.listen):
        yield Listener("fabric", "listen", Path(endpoint.path) if endpoint.tcp is None else endpoint.tcp)
    ports = {"tcp4": native.tcp4, "tcp6": native.tcp6, "unix": native.unix, "websocket": native.websocket}
    for key, at in ports.items():
        if at is not None:
            yield Listener("native", key, at)
    for address in () if native.tls is None else native.tls.listen:
        yield Listener("native.tls", "listen", address)
    if config.informer is not None:
        yield Listener("informer", "unix", config.informer)
    if operator.http is not None:
        yield Listener("operator", "http", operator.http)


def clash_of(config: Config) -> tuple[Listener, str] | None:
    """Return a listener that can have no place beside another one, with the fault and the remedy; None where each has
    a place of its own."""
    for first, second in combinations(listeners_of(config), 2):
        if _clash(first.at, second.at):
            if str(first) == str(second):
                return second, f"{str(second.at)!r} is named twice; remove one"
            another = "path" if isinstance(second.at, Path) else "port"
            return second, f"is where {first} listens already; choose another {another}"
    return None


def _clash(one: HostPort | Path, other: HostPort | Path) -> bool:
    if not isinstance(one, HostPort) or not isinstance(other, HostPort):
        return one == other
    if one.port != other.port or one.port == 0 or (":" in one.host) != (":" in other.host):
        return False
    return one.host == other.host or _is_everywhere(one.host) or _is_everywhere(other.host)


def _is_everywhere(host: str) -> bool:
    """Return whether a host stands for every address of this machine."""
    return host == "*" or (is_numeric(host) and ip_address(host.partition("%")[0]).is_unspecified)
