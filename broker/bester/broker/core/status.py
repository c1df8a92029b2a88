"""The status of a broker as one value: who is connected, what waits, what fails and why, how full each bound is. Pure.

`bester status`, the metrics, the API and the page show this value alone, so that they agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bester.broker.core.directory import Directory
from bester.broker.core.effects import Link
from bester.broker.core.figures import BUCKETS_S, Figures, TypeFigures
from bester.broker.core.inspection import Inspection
from bester.broker.core.peer import Peer
from bester.broker.core.queues import Queues
from bester.broker.core.relays import Relays
from bester.broker.core.settings import COUNTED, Settings
from bester.broker.core.standing import Standing
from bester.broker.core.symptoms import full_mailboxes
from bester.broker.store_requests import is_mailbox
from bester.broker.wire.trouble import is_of_keys

MAX_HANDLERS = 1_000
"""Handlers in one status; those beyond are counted."""
MAX_SESSIONS = 1_000
"""Users in one list of sessions; those beyond are counted."""
MAX_FIGURES = 128
"""Figures that a bridge may send of itself."""
MAX_NAME = 64
"""Characters of the name of such a figure."""


def status_of(
    settings: Settings, seen: Inspection, figures: Figures, peers: Iterable[Peer], queues: Queues, relays: Relays,
    standing: Standing, oldest_s: Mapping[str, float], now: float, *, up_s: float, draining: bool,
    symptoms: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return the status as maps of plain values. Times are in seconds, sizes in bytes.

    `types` has for each type its figures (see TypeFigures), with `waiting`, `inflight` and `workers`; `buckets_s` are
    the ends of the histograms' buckets. `servers` are the configured ones, `oldest_s` the ages of their oldest queued
    messages; `bounds` are pairs of used and most. `reached` counts how often something was refused, dropped or
    forgotten at a bound. `broker` is this broker's name where the store may be shared. `declared` are the types of
    declared handlers. `symptoms` are further facts for the doctor, such as the other `brokers` of the server.
    """
    peers = list(peers)
    handlers = [peer for peer in peers if peer.worker is not None or peer.auth is not None]
    served: dict[str, int] = {}
    for peer in handlers:
        for type_ in peer.types:
            served[type_] = served.get(type_, 0) + 1
    named = (*settings.declared_types, *served, *seen.workers.waiting, *seen.workers.inflight)
    types = {type_: _type() for type_ in named} | figures.as_map()
    for type_, row in types.items():
        row["workers"] = served.get(type_, 0)
        row["waiting"] = seen.workers.waiting.get(type_, 0)
        row["inflight"] = seen.workers.inflight.get(type_, 0)
    mailboxes = [state for key, state in seen.queues.table.items() if is_mailbox(key)]
    return {
        "server": settings.name,
        "broker": settings.broker,
        "up_s": round(up_s, 3),
        "draining": draining,
        "users": seen.users,
        "sessions": seen.sessions,
        "peers": dict(seen.peers),
        "logins": dict(figures.logins),
        "lockouts": figures.lockouts,
        "cases": seen.cases,
        "deliveries": seen.deliveries,
        "types": types,
        "buckets_s": list(BUCKETS_S),
        "handlers": [_handler(peer, now) for peer in handlers[:MAX_HANDLERS]],
        "more_handlers": max(0, len(handlers) - MAX_HANDLERS),
        "bridges": [_bridge(peer) for peer in peers if peer.role == "bridge"],
        "servers": [
            _server(name, settings, queues, relays, standing, oldest_s.get(name), now) for name in settings.routes
        ],
        "queued": {
            "messages": seen.queues.messages, "bytes": seen.queues.size_bytes, "inflight": seen.queues.inflight,
            "mailboxes": len(mailboxes), "mailbox_messages": sum(state.messages for state in mailboxes),
        },
        "store": figures.store.as_map(),
        "bounds": {name: [bound.used, bound.most] for name, bound in seen.bounds.items()},
        "reached": {name: seen.reached[name] for name in COUNTED},
        "declared": sorted(settings.declared_types),
        "full_mailboxes": full_mailboxes(seen.queues.table, settings.bounds),
        **symptoms,
    }  # fmt: skip


def sessions_of(directory: Directory) -> dict[str, Any]:
    """Return `users`, a list of names with the number of their sessions, by name, and `left`, how many are missing."""
    users = sorted(directory.users())
    rows = [
        {"user": user, "sessions": sum(map(len, (directory.places(user) or {}).values()))}
        for user in users[:MAX_SESSIONS]
    ]
    return {"users": rows, "left": max(0, len(users) - MAX_SESSIONS)}


def figures_of(argument: object) -> dict[str, int] | None:
    """Return the figures that a bridge sends of itself, None where the argument is none: names and numbers."""
    if type(argument) is not dict or len(argument) > MAX_FIGURES:
        return None
    fits = all(type(name) is str and len(name) <= MAX_NAME and type(each) is int for name, each in argument.items())
    return dict(argument) if fits else None


def _type() -> dict[str, Any]:
    return TypeFigures().as_map()


def _handler(peer: Peer, now: float) -> dict[str, Any]:
    worker = peer.worker or peer.auth
    assert worker is not None
    return {
        "name": peer.name, "types": sorted(peer.types), "credit": worker.credit, "inflight": len(worker.inflight),
        "stuck": worker.stuck, "leaving": peer.leaving, "silent_s": round(now - peer.last_heard, 3),
    }  # fmt: skip


def _bridge(peer: Peer) -> dict[str, Any]:
    return {"name": peer.name, "listeners": list(peer.listeners), "figures": dict(peer.figures)}


def _server(
    name: str, settings: Settings, queues: Queues, relays: Relays, standing: Standing, oldest_s: float | None,
    now: float,
) -> dict[str, Any]:  # fmt: skip
    up = Link("server", name.encode()) in relays.links
    server, lanes = standing.of(name, now), queues.lanes_to(name)
    state = "up" if up else "down" if settings.routes[name].fabric is not None else server.state
    retries: Mapping[str, float] = {queue.key: queue.retry_at for queue in lanes if queue.ready}
    return {
        "name": name,
        "state": state,
        "held": name in standing.held,
        "since_s": round(now - server.since, 3),
        "queued": sum(queue.messages for queue in lanes),
        "bytes": sum(queue.size_bytes for queue in lanes),
        "oldest_s": None if oldest_s is None else round(oldest_s, 3),
        "retries": server.retries,
        "next_try_s": round(max(0.0, min(retries.values()) - now), 3) if retries else None,
        "error": server.error,
        "key_wrong": state == "down" and is_of_keys(server.error or ""),
        "clock_off_s": None if server.clock_off_s is None else round(server.clock_off_s, 3),
    }
