"""Permissions: which role may send and ask which message, who may join, which types may enter, be served and be named,
which commands a handler may use, and where messages may be sent.

Every path through the broker asks here; no other module decides. Identity comes from the edge: the door by which a link
came in, the address that a bridge saw, the name for which a key or a listing vouches. A message's claims about itself
decide nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.hosts import Hosts, is_named
from bester.broker.wire.address import is_neighbour, is_within, parse_host_port
from bester.broker.wire.messages import (
    ROLES,
    Ask,
    Close,
    Command,
    Confirm,
    Emit,
    Forwarded,
    Login,
    Open,
    Relay,
    Reply,
    Submit,
    Trace,
)
from bester.broker.wire.outcomes import OUTCOME_TYPE
from bester.broker.wire.type_names import AUTH_TYPE, is_reserved, type_fault
from bester.broker.wire.unpacking import MAX_WEIGHT

MAY_SEND: Mapping[str, tuple[type[Any], ...]] = {
    "handler": (Reply, Emit, Ask),
    "bridge": (Submit, Confirm, Forwarded, Login, Open, Close, Ask),
    "server": (Relay, Trace),
    "operator": (Ask,),
}
"""Operations by role. HELLO, HEARTBEAT, GOODBYE and ERROR are open to every role."""
_EVERY_ASKER = frozenset(role for role, kinds in MAY_SEND.items() if Ask in kinds)
_OPERATOR = frozenset({"operator"})
MAY_ASK: Mapping[str, frozenset[str]] = {
    "listClients": _EVERY_ASKER,
    "isClient": _EVERY_ASKER,
    "serverInfo": _EVERY_ASKER,
    "passwd": frozenset({"bridge"}),  # for one of its sessions, about that user's own password
    "outcome": frozenset({"bridge"}),  # for one of its sessions, about that user's own messages
    "trace": frozenset({"operator", "bridge"}),  # shows where the messages of others went
    "follow": _OPERATOR,  # the same over other servers
    "types": _OPERATOR,
    "status": _OPERATOR,
    "sessions": _OPERATOR,
    "figures": frozenset({"bridge"}),  # tells, and asks nothing
    "record": _OPERATOR,  # shows the messages of others
    "deadList": _OPERATOR,
    "deadShow": _OPERATOR,
    "deadReplay": _OPERATOR,
    "deadDrop": _OPERATOR,
    "peers": _OPERATOR,
    "peerRetry": _OPERATOR,
    "peerHold": _OPERATOR,
    "peerRelease": _OPERATOR,
    "peerDrop": _OPERATOR,
}
"""Roles by question."""
SECRET_TYPES = frozenset({AUTH_TYPE})
"""Requests of these types hold passwords: their bodies are kept nowhere."""
TRUSTED_DOORS = ("ipc", "direct")
"""A directory of mode 0700, or this process itself."""
KEYED_DOOR = "curve"
"""The door of parties with a key, each of which is good for one role."""


def most_values(settings: Settings, link: Link) -> int:
    """Return how many values a message of this link may have, see `unpacking.MAX_WEIGHT`: as many as are read at all
    for parties of this machine and bridges, whose batches of confirmations are the longest messages."""
    if link.door in TRUSTED_DOORS:
        return MAX_WEIGHT
    grant = settings.grants.get(link.party) if link.door == KEYED_DOOR else None
    return MAX_WEIGHT if grant is not None and grant.role == "bridge" else settings.limits.max_values


def may_ask(role: str, question: str) -> bool:
    """Return whether a peer of this role may ask this question; nobody may ask one that does not exist."""
    return role in MAY_ASK.get(question, ())


def may_serve(type_: str) -> tuple[str, str] | None:
    """Return (code, text) of the refusal where no handler may serve this type, None where one may. Which handlers may
    serve `bester.auth` is for `may_decide`."""
    fault = None if type_ == AUTH_TYPE else type_fault(type_)
    if fault is None:
        return None
    return "reserved" if is_reserved(type_) else "malformed", fault


def may_decide(
    settings: Settings, link: Link, name: str, types: Collection[str], *, shadow: bool
) -> tuple[str, str] | None:
    """Return (code, text) of the refusal where a handler of these types may not decide logins, None where it may, or
    does not want to."""
    if AUTH_TYPE not in types:
        return None
    grant = settings.grants.get(link.party) if link.door == KEYED_DOOR else None
    granted = AUTH_TYPE in grant.types if grant is not None else name in settings.auth_handlers
    if not granted or (grant is None and link.door not in TRUSTED_DOORS):
        return "reserved", f"{AUTH_TYPE!r} is for a handler with auth = true, or with a key that grants this type"
    if shadow:
        return "not-allowed", f"{AUTH_TYPE!r} has passwords, of which a shadow gets no copies"
    if len(types) > 1:
        return "not-allowed", f"a handler of {AUTH_TYPE!r} serves no other type; serve the others in another process"
    return None


def is_decided_by_handler(settings: Settings) -> bool:
    """Return whether a handler decides logins, connected or not, and the passwords of accounts do not."""
    return bool(settings.auth_handlers) or any(AUTH_TYPE in grant.types for grant in settings.grants.values())


def may_emit(types: Collection[str], type_: str) -> str | None:
    """Return the reason why a handler that serves `types` may not emit this type, None where it may."""
    return None if type_ in types else f"{type_!r} is not one of this handler's types"


def may_name(type_: str) -> str | None:
    """Return the code of the refusal where a message or a command may not name this type, None where it may."""
    return "reserved" if is_reserved(type_) else None


def guarded_types(settings: Settings) -> frozenset[str]:
    """Return the types that not every user may send; `may_submit` decides on these alone."""
    return frozenset(settings.type_users) | SECRET_TYPES


def may_submit(settings: Settings, user: str, type_: str) -> str | None:
    """Return the code of the refusal where a user may not send a guarded type, None where the user may."""
    if is_reserved(type_):
        return "reserved"
    users = settings.type_users.get(type_)
    return None if users is None or user in users else "not-allowed"


def may_command(settings: Settings, granted: frozenset[str] | None, type_: str, commands: list[Command]) -> str | None:
    """Return the reason why the handler of a type may not use these commands, None where it may.

    `granted` are the commands that the handler's key grants, None where every command is.
    """
    declared = settings.type_commands.get(type_)
    for command in commands:
        if granted is not None and command.command not in granted:
            return f"this handler may not use {command.command}"
        if declared is not None and command.command not in declared:
            return f"handlers of {type_!r} may not use {command.command} ([handlers] commands)"
    return None


def is_limited(settings: Settings, granted: frozenset[str] | None, types: frozenset[str]) -> bool:
    """Return whether a handler of these types may be refused a command; `may_command` decides on no other handler."""
    return granted is not None or not types.isdisjoint(settings.type_commands)


def may_keep(type_: str) -> bool:
    """Return whether bodies of this type may be kept in dead letters."""
    return type_ not in SECRET_TYPES


def may_join(settings: Settings, link: Link, role: str, name: str, types: Collection[str] = ()) -> str | None:
    """Return the reason why a peer of this role may not come in by this link, None where it may. `types` are those that
    a handler wants to serve."""
    door = link.door
    if role not in ROLES:
        return f"the role is one of {', '.join(ROLES)}"
    if door == KEYED_DOOR:
        return _may_use_key(settings, link.party, role, name, types)
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
        return (
            f"{_article(role)} is let in over ipc, or over an encrypted tcp:// with a key of its own; "
            'put "ipc://DATA_DIR/fabric.sock" into [fabric] listen'
        )
    return None


def _article(role: str) -> str:
    return f"an {role}" if role == "operator" else f"a {role}"


def _may_use_key(settings: Settings, key: str, role: str, name: str, types: Collection[str]) -> str | None:
    grant = settings.grants.get(key)
    if grant is None:
        return f"the key {key} is not known here"
    if grant.role != role:
        return f"this key is for {_article(grant.role)}, and not for {_article(role)}"
    if role == "server":
        if settings.accept == "none":
            return "this server takes no messages from servers ([federation] accept)"
        if name != grant.name:
            return f"this key is that of server {grant.name!r}, and not of {name!r}"
    foreign = sorted(set(types) - grant.types)
    if foreign:
        return f"this key is not for the type {foreign[0]!r}; it is for {', '.join(sorted(grant.types))}"
    return None


def may_enter(settings: Settings, peer: str | None, type_: str) -> str | None:
    """Return the code of the refusal where a server may not send this type, None where it may.

    `peer` is the server's name, None where the server is not identified.
    """
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


def may_trace(settings: Settings, peer: str | None) -> bool:
    """Return whether a server is told the steps of the messages that it sent here."""
    route = settings.routes.get(peer) if peer is not None else None
    return route is not None and route.trace


def fabric_peer(door: str, name: str) -> str | None:
    """Return the name of the server at a fabric link: the name it claims, where the door vouches for it (by a key,
    which is let in with its own name alone); else None."""
    return name if door in TRUSTED_DOORS or door == KEYED_DOOR else None


def is_server_name(settings: Settings, host: str) -> bool:
    """Return whether a host is called as a server is: this one or a configured one, which may be named by an address.
    Another program at that address must not pass for the server."""
    return host == settings.name or host in settings.routes


def native_peer(
    settings: Settings, hosts: Hosts, host: str, claimed: str | None, type_: str, certificate: Collection[str] = ()
) -> str | None:
    """Return the name of the configured server that a native peer is, None where it is none.

    A peer with a certificate is a server whose host the certificate names, and a peer without one is a server at its
    address, unless that server has to show a certificate. Where several servers share name or address, the header's
    claim picks one of them; without a claim (the reference makes none) the first that may send this type.
    """
    if certificate:
        names = certified(settings, certificate)
    else:
        names = tuple(name for name in hosts.at(host) if not _is_certified(settings, name))
    if claimed in names:
        return claimed
    for name in names:
        if may_enter(settings, name, type_) is None:
            return name
    return names[0] if names else None


def is_stranger(settings: Settings, hosts: Hosts, peer: str | None, claimed: str | None, type_: str) -> bool:
    """Return whether a native peer without a certificate could be a listed server whose address is not known yet.

    `peer` is the server at the peer's address. Such a peer must not be refused this type for good, nor pass for another
    server, before the listed names have been looked up.
    """
    if peer is not None:
        return claimed in hosts.unknown
    return settings.accept == "listed" or (settings.accept == "open" and may_enter(settings, None, type_) is not None)


def that_may(settings: Settings, servers: frozenset[str], type_: str) -> frozenset[str]:
    """Return those of the given listed servers that may send this type without a certificate."""
    return frozenset(
        name for name in servers if not _is_certified(settings, name) and may_enter(settings, name, type_) is None
    )


def certified(settings: Settings, certificate: Collection[str]) -> tuple[str, ...]:
    """Return the names of the native servers whose host is one of the names in a verified certificate."""
    return tuple(
        name
        for name, route in settings.routes.items()
        if route.native is not None and is_named(parse_host_port(route.native).host, certificate)
    )


def _is_certified(settings: Settings, server: str) -> bool:
    """Return whether a server proves itself by its certificate alone."""
    route = settings.routes.get(server)
    return route is not None and route.certified


def may_send(settings: Settings, route: Route, target: str, type_: str) -> str | None:
    """Return the code of the refusal where a message of this type may not be sent to a server, None where it may.

    A server that is not configured (`route` has no name) is sent to only where federation is open, and never at an
    address of this machine or its link; a bridge looks at the addresses of a name in the same way.
    """
    if is_reserved(type_):
        return None if type_ == OUTCOME_TYPE and route.name else "reserved"
    if route.name:
        return None if route.send_types is None or type_ in route.send_types else "not-allowed"
    host = parse_host_port(target).host
    host = "127.0.0.1" if host == "localhost" else host
    near = is_neighbour(host) and not is_within(host, settings.reachable)
    return "not-allowed" if settings.accept != "open" or near else None
