"""Readers of the named tables of `bester.toml` (handlers, parties, servers, types), and the rules among these tables.

Every function raises ConfigError with the first mistake: one line with its remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bester.broker.config import FabricConfig, HandlerConfig, PartyConfig, PeerConfig, login_deciders
from bester.broker.config_paths import Paths
from bester.broker.toml_table import Source, Table, nearest
from bester.broker.wire.address import parse_host_port
from bester.broker.wire.keys import must_encrypt, parse_key
from bester.broker.wire.messages import COMMANDS
from bester.broker.wire.type_names import AUTH_TYPE, type_fault

MAX_WORKERS = 256
"""Processes of one handler; more than any machine runs well."""
MIN_TIMEOUT_S, MAX_TIMEOUT_S = 0.1, 24 * 3600
"""A busy machine delays any handler by less than the first; a day is longer than any sender waits for a report."""
MAX_ATTEMPTS = 100
"""A message over which so many handlers have died will not spare the next."""
EVERY = "*"
"""Stands for every public type in `accept_types` and `send_types`."""
ANY = "any"
"""Stands for every user in `users`."""


def handler(name: str, table: Table, paths: Paths) -> HandlerConfig:
    """Return the handler of [handlers.NAME]."""
    given = [key for key in ("app", "command", "socket") if key in table]
    if len(given) != 1:
        problem = f"has {' and '.join(given)}; keep one of them" if given else "names nothing to run"
        example = "" if given else '; add app = "module:attribute", command = ["program"] or socket = "path"'
        table.fail(None, problem + example)
    app = table.text("app")
    if app is not None and not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", app):
        table.fail("app", f'{app!r} is not "module:attribute"; name the module without .py, a colon, and the App in it')
    command = table.texts("command")
    if command == ():
        table.fail("command", 'is empty; write the program and its arguments as ["program", "argument"]')
    auth = _decides(table)
    types = table.texts("types") if "types" in table else (name,)
    if "order" in table and "socket" not in table:
        remedy = 'in Python write @app.handler(…, order="user"), in another language set order in HELLO'
        table.fail("order", f"is for handlers at a socket; others ask for order themselves: {remedy}")
    return HandlerConfig(
        name=name,
        types=(AUTH_TYPE,) if auth else _types(table, "types", types or ()),
        workers=table.number("workers", 1, 1, MAX_WORKERS),
        app=app,
        command=command,
        socket=paths.socket(table, "socket"),
        order=table.choice("order", "user", ("user", "none")),
        timeout_s=table.decimal("timeout_s", 30.0, MIN_TIMEOUT_S, MAX_TIMEOUT_S) if "timeout_s" in table else None,
        attempts=table.number("attempts", 3, 1, MAX_ATTEMPTS),
        commands=_commands(table),
        shadow=_shadow(table),
        auth=auth,
    )


def _decides(table: Table) -> bool:
    """Return whether a handler decides logins, which goes with no key for messages."""
    auth = table.flag("auth")
    for key in ("types", "socket", "timeout_s", "attempts", "commands", "shadow") if auth else ():
        if key in table:
            table.fail(key, f"is not for a handler that decides logins ({AUTH_TYPE} alone); leave the key out")
    return auth


def _shadow(table: Table) -> bool:
    """Return whether a handler is a shadow; limits on what is carried out mean nothing for one."""
    shadow = table.flag("shadow")
    for key in ("workers", "timeout_s", "attempts", "commands") if shadow else ():
        if key in table:
            why = "several would share the copies" if key == "workers" else "nothing of a shadow is carried out"
            table.fail(key, f"is not for a shadow: {why}; leave the key out")
    return shadow


def party(name: str, table: Table) -> PartyConfig:
    """Return the party of [fabric.parties.NAME]."""
    for key in ("key", "role"):
        if key not in table:
            table.fail(None, f'has no {key}; a party has key = "…" and role = "handler"')
    role = table.choice("role", "", ("handler", "bridge", "operator"))
    types = _types(table, "types", table.texts("types") or (), granted=True) if role == "handler" else ()
    for key in ("types", "commands"):
        if role != "handler" and key in table:
            table.fail(key, f"is for handlers; a {role} serves no types, so leave the key out")
    return PartyConfig(
        name=name,
        key=table.checked("key", parse_key, table.text("key")),
        role=role,
        types=frozenset(types),
        commands=_commands(table),
    )


def _types(table: Table, key: str, types: tuple[str, ...], *, granted: bool = False) -> tuple[str, ...]:
    """Return the types of a handler. `granted`: a key may grant the deciding of logins as well."""
    if not types:
        table.fail(key, "is empty; name at least one message type")
    for each in types:
        fault = None if granted and each == AUTH_TYPE else type_fault(each)
        if each == AUTH_TYPE and fault is not None:
            table.fail(key, f"{fault}, or write auth = true for a handler that decides logins")
        if fault:
            table.fail(key if key in table else None, fault)
    return tuple(dict.fromkeys(types))


def _commands(table: Table) -> frozenset[str] | None:
    commands = table.texts("commands")
    for each in commands or ():
        if each not in COMMANDS:
            table.fail("commands", f"{each!r} is no command; {nearest(each, COMMANDS)}")
    return None if commands is None else frozenset(commands)


def server(name: str, table: Table, paths: Paths) -> PeerConfig:
    """Return the server of [servers.NAME]."""
    if ("fabric" in table) == ("native" in table):
        both = "fabric" in table
        remedy = "has both fabric and native; keep one" if both else 'needs fabric = "tcp://…" or native = "host:port"'
        table.fail(None, remedy)
    fabric, native = table.text("fabric"), table.text("native")
    endpoint = paths.endpoint(table, "fabric", fabric) if fabric else None
    public = table.text("key")
    if endpoint is None and public is not None:
        table.fail("key", "is for servers with fabric; a native one has no key, so leave it out")
    if endpoint is not None and endpoint.startswith("ipc://") and public is not None:
        table.fail("key", "is for tcp://; who may open the socket's file is trusted, so leave it out")
    if endpoint is not None and public is None and must_encrypt(endpoint):
        table.fail("fabric", f'{fabric!r} is beyond this machine; add key = "…", which `bester keys` prints there')
    tls = table.flag("tls")
    if native and native.startswith("tls://"):
        if "tls" in table and not tls:
            table.fail("native", f"{native!r} says TLS, and tls = false says none; remove one of them")
        native, tls = native.removeprefix("tls://"), True
    if not tls and "ca" in table:
        table.fail("ca", "is for a server with TLS; add tls = true, or leave this key out")
    address = table.checked("native", parse_host_port, native) if native else None
    if address and address.port == 0:
        table.fail("native", "port 0 is no port to connect to; write the port the server listens on")
    for key, habit in (
        ("reports", "always reports"), ("order", "always keeps the order of a type"), ("tls", "is known by its key")
    ):  # fmt: skip
        if fabric and key in table:
            table.fail(key, f"is for native servers: a fabric one {habit}; leave the key out")
    return PeerConfig(
        name=name,
        fabric=endpoint,
        native=address,
        accept_types=_types_of_server(table, "accept_types", frozenset()),
        send_types=_types_of_server(table, "send_types", None),
        trace=table.flag("trace"),
        reports=table.flag("reports", default=True),
        ordered=table.choice("order", "none", ("none", "type")) == "type",
        key=None if public is None else table.checked("key", parse_key, public),
        tls=tls,
        ca=paths.path(table, "ca"),
    )


def _types_of_server(table: Table, key: str, default: frozenset[str] | None) -> frozenset[str] | None:
    """Return the types that a server may send or be sent, None for every public type."""
    types = table.texts(key)
    if types is None:
        return default
    for each in types:
        fault = None if each == EVERY else type_fault(each)
        if fault:
            table.fail(key, fault)
    return None if EVERY in types else frozenset(types)


def users_of(table: Table) -> frozenset[str] | None:
    """Return the users who may send the type of [types.NAME], None for all."""
    if table.raw("users") in (None, ANY):
        return None
    users = table.texts("users") if isinstance(table.raw("users"), list) else None
    if users is None:
        table.fail("users", f'is a list of user names, or "{ANY}"; write users = ["…"]')
    return frozenset(users)


def require_one_budget_a_type(source: Source, handlers: Iterable[HandlerConfig]) -> None:
    """Require that handlers of one type have the same limits, as the broker does not distinguish handlers of a
    type."""
    first: dict[str, HandlerConfig] = {}
    for one in [each for each in handlers if not each.shadow]:
        for type_ in one.types:
            other = first.setdefault(type_, one)
            for key in ("timeout_s", "attempts", "commands"):
                here, there = getattr(one, key), getattr(other, key)
                if here != there:
                    source.fail(
                        f"handlers.{one.name}",
                        key,
                        f"is {_value_text(here)} here and {_value_text(there)} in [handlers.{other.name}], "
                        f"which handles {type_!r} too; write the same in both",
                    )


def require_no_login_decider(source: Source, fabric: FabricConfig, handlers: tuple[HandlerConfig, ...]) -> None:
    """Require that no handler is to decide logins where everybody is let in."""
    for section in login_deciders(fabric, handlers)[:1]:
        why = f'is "open", which lets everybody in, and [{section}] is to decide logins; remove one of them'
        source.fail("accounts", "auth", why)


def require_one_owner_a_key(source: Source, fabric: FabricConfig, servers: Mapping[str, PeerConfig]) -> None:
    """Require that no two parties have one key, as the key tells them apart."""
    owners: dict[str, str] = {}
    keyed = [(f"servers.{peer.name}", peer.key) for peer in servers.values() if peer.key is not None]
    keyed += [(f"fabric.parties.{party.name}", party.key) for party in fabric.parties.values()]
    for section, key in keyed:
        other = owners.setdefault(key, section)
        if other != section:
            source.fail(section, "key", f"is the key of [{other}] too; each party has a key of its own")


def _value_text(value: float | frozenset[str] | None) -> str:
    if value is None:
        return "not written"
    return str(sorted(value)) if isinstance(value, frozenset) else f"{value:g}"
