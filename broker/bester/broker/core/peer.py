"""A peer on a link, and the rules of its HELLO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bester.broker.core import policy
from bester.broker.core.auth import AuthHandler
from bester.broker.core.effects import Link
from bester.broker.core.pools import Worker
from bester.broker.core.resume import BridgeResume
from bester.broker.core.settings import Limits, Settings
from bester.broker.core.shadows import Shadow
from bester.broker.wire.messages import MAX_NAME, SILENT_HEARTBEATS, VERSION, Error, Hello

MAX_SHARED = 64
"""Characters of the name that a handler has at each of its brokers."""
_HELLO_OP = 1


class Peer:
    """Party on a link that has sent HELLO.

    `logins` are the sessions whose password is being checked; `resume` is the state of a bridge over all its links,
    None for a bridge in this process, whose link is never lost. `process` is the number of the process at the other
    end, None where the shell does not know it. `version` and `software` are what a handler says about its
    program; it has a `worker`, a `shadow`, or an `auth` (it decides logins). `figures` are the counts that a bridge
    tells.
    """

    __slots__ = (
        "auth",
        "figures",
        "last_heard",
        "leaving",
        "link",
        "listeners",
        "logins",
        "name",
        "prefix",
        "process",
        "resume",
        "role",
        "shadow",
        "software",
        "types",
        "version",
        "worker",
    )

    def __init__(self, link: Link, role: str, name: str, now: float) -> None:
        self.link = link
        self.role = role
        self.name = name
        self.last_heard = now
        self.leaving = False
        self.worker: Worker | None = None
        self.shadow: Shadow | None = None
        self.auth: AuthHandler | None = None
        self.types: frozenset[str] = frozenset()
        self.logins: set[int] = set()
        self.prefix = ""
        self.resume: BridgeResume | None = None
        self.listeners: list[str] = []
        self.process: int | None = None
        self.figures: dict[str, int] = {}
        self.version: str | None = None
        self.software: str | None = None

    def is_silent(self, limits: Limits, now: float, is_stopped: Callable[[int], bool]) -> bool:
        """Return whether nothing came from the peer for too long, until `now`: the time up to which the peer's socket
        was read. A direct link is this process, and never silent.

        A lease is for a handler that works and cannot speak meanwhile: a handler whose process is stopped has none.
        """
        if self.link.door == "direct":
            return False
        silent_s = now - self.last_heard
        holder = self.worker or self.auth
        if silent_s <= SILENT_HEARTBEATS * limits.heartbeat_s:
            return holder is not None and 0 < holder.lease_s < silent_s and bool(holder.inflight)
        if holder is None or not holder.inflight or silent_s > holder.lease_s:
            return True
        return self.process is not None and is_stopped(self.process)


class HandlerOptions:
    """Options of a handler's HELLO: its types, credit, lease and ordered types, whether it asks for copies alone
    (`shadow`), and the name that it has at each of its brokers, where it has several (`shared`)."""

    __slots__ = ("credit", "lease_s", "ordered", "shadow", "shared", "types")

    def __init__(
        self, types: frozenset[str], credit: int, lease_s: float, ordered: frozenset[str], shadow: bool = False,
        shared: str | None = None,
    ) -> None:  # fmt: skip
        self.types = types
        self.credit = credit
        self.lease_s = lease_s
        self.ordered = ordered
        self.shadow = shadow
        self.shared = shared


def refusal(settings: Settings, link: Link, hello: Hello) -> Error | None:
    """Return the ERROR that answers a HELLO which cannot be accepted, None where the HELLO is good."""
    if hello.version != VERSION:
        return Error("version", f"version {hello.version} is not spoken here; {VERSION} is", _HELLO_OP)
    if not hello.name or len(hello.name) > MAX_NAME or not hello.name.isprintable():
        return Error("malformed", f"a name has 1 to {MAX_NAME} printable characters", _HELLO_OP)
    why = policy.may_join(settings, link, hello.role, hello.name)
    if why is not None:
        return Error("not-allowed", why, _HELLO_OP)
    return None


def foreign_types(settings: Settings, link: Link, name: str, options: HandlerOptions, *, shadow: bool) -> Error | None:
    """Return the ERROR that answers a handler which wants to serve types that are not for it."""
    refused = policy.may_decide(settings, link, name, options.types, shadow=shadow)
    if refused is not None:
        return Error(*refused, _HELLO_OP)
    why = policy.may_join(settings, link, "handler", "", options.types)
    return None if why is None else Error("not-allowed", why, _HELLO_OP)


def handler_options(limits: Limits, options: dict[str, Any]) -> HandlerOptions | Error:
    """Read a handler's options; unknown ones are ignored."""
    types = options.get("types")
    if not isinstance(types, list) or not types or any(type(name) is not str or not name for name in types):
        packed = isinstance(types, list) and any(type(name) is bytes for name in types)
        hint = "; pack texts as str, not as bytes" if packed else ""
        text = f'a handler says which types it serves: options {{"types": ["chat", …]}}{hint}'
        return Error("malformed", text, _HELLO_OP)
    if len(types) > limits.max_types:
        return Error("malformed", f"more than {limits.max_types} types", _HELLO_OP)
    for name in types:
        refused = policy.may_serve(name)
        if refused is not None:
            return Error(*refused, _HELLO_OP)
    credit = options.get("credit", 1)
    if type(credit) is not int or not 1 <= credit <= limits.max_credit:
        return Error("malformed", f"credit is a number from 1 to {limits.max_credit}", _HELLO_OP)
    lease_ms = options.get("lease_ms", 0)
    if type(lease_ms) is not int or not 0 <= lease_ms <= limits.max_lease_s * 1000:
        most = round(limits.max_lease_s * 1000)
        return Error("malformed", f"lease_ms is a number of milliseconds, {most} at most", _HELLO_OP)
    order = options.get("order", {})
    if not isinstance(order, dict) or any(how != "user" for how in order.values()):
        return Error("malformed", 'order is a map {type: "user"}', _HELLO_OP)
    shadow = options.get("shadow", False)
    if type(shadow) is not bool:  # in doubt a program that means no effects must not have any
        return Error("malformed", "shadow is true or false", _HELLO_OP)
    shared = options.get("shared")
    if shared is not None and (type(shared) is not str or not 0 < len(shared) <= MAX_SHARED):
        return Error("malformed", f"shared is a text of 1 to {MAX_SHARED} characters", _HELLO_OP)
    return HandlerOptions(frozenset(types), credit, lease_ms / 1000, frozenset(order), shadow, shared)
