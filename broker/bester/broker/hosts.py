"""Where the configured native servers are, as far as the names of their hosts could be looked up. Pure.

A table of this kind is made anew whenever a lookup ends; it is a value, and nothing here looks anything up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bester.broker.wire.address import is_loopback

LOOPBACK = frozenset({"127.0.0.1", "::1"})


class Place(NamedTuple):
    """What is known of one server's host.

    `addresses` are IP addresses, empty while there are none. `looked_up` is when the lookup that found them began
    (monotonic seconds); None for a host that is listed by its address, which cannot change.
    """

    addresses: tuple[str, ...] = ()
    looked_up: float | None = None


class Hosts(NamedTuple):
    """The table. `servers`: IP address → names of the servers there. `unknown`: servers of which no address is known.
    `looked_up`: server → when the lookup of its host's name began, for those listed by a name."""

    servers: Mapping[str, tuple[str, ...]] = {}
    unknown: frozenset[str] = frozenset()
    looked_up: Mapping[str, float] = {}

    def at(self, address: str) -> tuple[str, ...]:
        """Return the names of the servers at an IP address."""
        return self.servers.get(address, ())

    def may_be(self, claimed: str | None, since: float) -> frozenset[str]:
        """Return the servers that a peer at an address of nobody's might be, though the table does not show it.

        `claimed` is the name the peer gives itself, None where it gives none; `since` is when it came. A peer that
        claims the name of a listed server might be that one, unless its address was looked up since then. Any other
        might be any server of which that is so, for a server need not be listed by the name it gives itself.
        """
        doubtful = self.not_looked_up(since)
        return doubtful & {claimed} if claimed is not None and self._lists(claimed) else doubtful

    def not_looked_up(self, since: float) -> frozenset[str]:
        """Return the servers whose names were not looked up with success since then."""
        return self.unknown.union(name for name, at in self.looked_up.items() if at <= since)

    def _lists(self, name: str) -> bool:
        return name in self.unknown or name in self.looked_up or any(name in names for names in self.servers.values())

    def moved_since(self, before: Hosts) -> list[str]:
        """Return the servers that have an address, and had none or another one before."""
        then, now = before._by_server(), self._by_server()
        return [name for name, addresses in now.items() if then.get(name) != addresses]

    def _by_server(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for address, names in self.servers.items():
            for name in names:
                found.setdefault(name, set()).add(address)
        return found


def hosts_of(places: Mapping[str, Place]) -> Hosts:
    """Make the table of what is known of each server's host. On loopback, IPv4 and IPv6 are one host."""
    servers: dict[str, list[str]] = {}
    for name, place in places.items():
        for address in _with_loopback(place.addresses):
            servers.setdefault(address, []).append(name)
    return Hosts(
        {address: tuple(names) for address, names in servers.items()},
        frozenset(name for name, place in places.items() if not place.addresses),
        {name: place.looked_up for name, place in places.items() if place.addresses and place.looked_up is not None},
    )


def _with_loopback(addresses: Iterable[str]) -> set[str]:
    found = set(addresses)
    return found | LOOPBACK if any(map(is_loopback, found)) else found
