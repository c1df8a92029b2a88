"""Addresses of the configured native servers, as far as the names of their hosts are known. Pure.

A new table is made whenever a lookup ends; the table is a value, and this module looks nothing up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bester.broker.wire.address import HostPort, canonical, is_loopback

LOOPBACK = frozenset({"127.0.0.1", "::1"})


class HostAddresses(NamedTuple):
    """Lookup result of one server's host.

    `addresses` are IP addresses, empty while none is known. `looked_up` is the start of the lookup that found them, in
    monotonic seconds; None for a host that is listed by its address, which cannot change.
    """

    addresses: tuple[str, ...] = ()
    looked_up: float | None = None


class Hosts(NamedTuple):
    """Table of the hosts of native servers.

    `servers` maps an IP address to the names of the servers there. `unknown` are the servers without a known address.
    `looked_up` maps each server that is listed by a name to the start of its host's last lookup.
    """

    servers: Mapping[str, tuple[str, ...]] = {}
    unknown: frozenset[str] = frozenset()
    looked_up: Mapping[str, float] = {}

    def at(self, address: str) -> tuple[str, ...]:
        """Return the names of the servers at an IP address."""
        return self.servers.get(address, ())

    def may_be(self, claimed: str | None, since: float) -> frozenset[str]:
        """Return the servers that a peer at an unlisted address might be, since their addresses may have changed.

        `claimed` is the name that the peer gives itself, or None; `since` is the time of its connection. A peer that
        claims the name of a listed server might be that server, unless the server's address was looked up since then.
        Any other peer might be any server not looked up since then, as a server need not be listed by the name that it
        gives itself.
        """
        doubtful = self.not_looked_up(since)
        return doubtful & {claimed} if claimed is not None and self._lists(claimed) else doubtful

    def not_looked_up(self, since: float) -> frozenset[str]:
        """Return the servers without a successful lookup since a time."""
        return self.unknown.union(name for name, at in self.looked_up.items() if at <= since)

    def _lists(self, name: str) -> bool:
        return name in self.unknown or name in self.looked_up or any(name in names for names in self.servers.values())

    def moved_since(self, before: Hosts) -> list[str]:
        """Return the servers whose addresses are new or differ from those in `before`."""
        then, now = before._by_server(), self._by_server()
        return [name for name, addresses in now.items() if then.get(name) != addresses]

    def _by_server(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for address, names in self.servers.items():
            for name in names:
                found.setdefault(name, set()).add(address)
        return found


def hosts_of(found_by_server: Mapping[str, HostAddresses]) -> Hosts:
    """Make the table from the lookup result of each server's host. On loopback, IPv4 and IPv6 are one host."""
    servers: dict[str, list[str]] = {}
    for name, found in found_by_server.items():
        for address in _with_loopback(found.addresses):
            servers.setdefault(address, []).append(name)
    return Hosts(
        {address: tuple(names) for address, names in servers.items()},
        frozenset(name for name, found in found_by_server.items() if not found.addresses),
        {
            name: found.looked_up
            for name, found in found_by_server.items()
            if found.addresses and found.looked_up is not None
        },
    )


def is_named(host: str, certificate: Iterable[str]) -> bool:
    """Return whether a certificate with these names is one of this host. A name with a wildcard is that of no server:
    its certificate may be on any host of a domain. Neither is one beyond ASCII, which no host has in a certificate: the
    small letter of the sign for kelvin is a k."""
    wanted = _spelled(host)
    return any(_spelled(name) == wanted for name in certificate if name.isascii())


def _spelled(host: str) -> str:
    return host.lower().rstrip(".") if host.lower() == "localhost" else canonical(HostPort(host.rstrip("."), 0)).host


def _with_loopback(addresses: Iterable[str]) -> set[str]:
    found = set(addresses)
    return found | LOOPBACK if any(map(is_loopback, found)) else found
