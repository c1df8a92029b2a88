"""Who may do what. One place: every path through the broker asks here, and nowhere else is it decided.

Identity comes from the edge: the door a link came in by, the address a bridge saw, the name a key or a listing
vouches for. What a message says of itself decides nothing.
"""

from __future__ import annotations

from bester.broker.core.settings import Settings
from bester.broker.hosts import Hosts
from bester.broker.wire.messages import ROLES, is_reserved

OUTCOME_TYPE = "bester.outcome"
"""What became of our messages: any server that is listed may tell, whatever else it may send."""
TRUSTED_DOORS = ("ipc", "direct")
"""A directory of mode 0700, or our own process."""


def may_join(settings: Settings, door: str, role: str, name: str) -> str | None:
    """May a party of this role come in by this door? Returns why not, or None."""
    if role not in ROLES:
        return f"the role is one of {', '.join(ROLES)}"
    if role == "server":
        if settings.accept == "none":
            return "this server takes no messages from servers ([federation] accept)"
        if settings.accept == "open":
            return None
        if door not in TRUSTED_DOORS:
            return 'a server without a key is let in over tcp only where [federation] accept = "open"'
        if name not in settings.routes:
            return f"server {name!r} is not listed under [servers]"
        return None
    if door not in TRUSTED_DOORS and role != "handler":
        return f"a {role} is let in over ipc only"
    return None


def may_enter(settings: Settings, peer: str | None, type_: str) -> str | None:
    """May a message of this type enter from this server? Returns a code, or None. `peer` None: not identified."""
    if settings.accept == "none":
        return "not-allowed"
    route = settings.routes.get(peer) if peer is not None else None
    if type_ == OUTCOME_TYPE and route is not None:
        return None
    if is_reserved(type_):
        return "reserved"
    if route is None:
        return None if settings.accept == "open" else "not-allowed"
    if route.accept_types is not None and type_ not in route.accept_types:
        return "not-allowed"
    return None


def fabric_peer(door: str, name: str) -> str | None:
    """Name the server behind a fabric link: the name it says it has, where the door vouches for it."""
    return name if door in TRUSTED_DOORS else None


def native_peer(settings: Settings, hosts: Hosts, host: str, claimed: str | None, type_: str) -> str | None:
    """Name the configured server at this address.

    Where several share the address, the header's claim picks one of them; without a claim (the reference makes
    none) it is the first that may send this type.
    """
    names = hosts.at(host)
    if claimed in names:
        return claimed
    for name in names:
        if may_enter(settings, name, type_) is None:
            return name
    return names[0] if names else None


def is_stranger(settings: Settings, hosts: Hosts, peer: str | None, claimed: str | None, type_: str) -> bool:
    """Say whether a native peer, which its address makes the server `peer`, would be told for good that it may not send
    this type, or would pass for another server, only because no listed server is known to be at its address."""
    if peer is not None:
        return claimed in hosts.unknown
    return settings.accept == "listed" or (settings.accept == "open" and may_enter(settings, None, type_) is not None)


def that_may(settings: Settings, servers: frozenset[str], type_: str) -> frozenset[str]:
    """Return those of some listed servers that may send this type."""
    return frozenset(name for name in servers if may_enter(settings, name, type_) is None)


def may_send_to_stranger(settings: Settings) -> bool:
    """May a handler send to a `host:port` that is not configured?"""
    return settings.accept == "open"
