"""The status of a broker as one value: who is connected, what waits, what fails and why, how full each bound is. Pure.

`bester status`, the metrics, the API and the page show this value alone, so that they agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import nlargest, nsmallest
from types import MappingProxyType
from typing import Any, NamedTuple

from bester.broker.core.auth import AuthHandler
from bester.broker.core.directory import Directory
from bester.broker.core.effects import Link
from bester.broker.core.figures import BUCKETS_S, MAX_TYPES, OTHERS, Figures, TypeFigures
from bester.broker.core.inspection import Bound
from bester.broker.core.peer import Peer
from bester.broker.core.pools import Worker
from bester.broker.core.queue_table import Queue
from bester.broker.core.queues import Queues
from bester.broker.core.relays import Relays
from bester.broker.core.settings import COUNTED, Settings
from bester.broker.core.standing import Standing
from bester.broker.core.symptoms import SHOWN
from bester.broker.store_requests import Bounds, owner_of
from bester.broker.wire.trouble import is_of_keys

MAX_HANDLERS = 1_000
"""Handlers in one status; those beyond are counted."""
MAX_TYPES_OF_ONE = 100
"""Types of one handler in a status; those beyond are counted."""
MAX_SESSIONS = 1_000
"""Users in one list of sessions; those beyond are counted."""
MAX_FIGURES = 128
"""Figures that a bridge may send of itself."""
MAX_NAME = 64
"""Characters of the name of such a figure."""
_NOBODY = MappingProxyType({"workers": 0, "stuck": 0, "waiting": 0, "inflight": 0})
"""Further figures of a type that nobody serves, and of which nothing waits."""


class Counts(NamedTuple):
    """Counts of a broker that a status shows: each at hand, so that a look takes no longer the more there is to count.
    See Inspection; `waiting` and `inflight` are messages by type."""

    peers: Mapping[str, int]
    users: int
    sessions: int
    cases: int
    deliveries: int
    waiting: Mapping[str, int]
    inflight: Mapping[str, int]
    bounds: Mapping[str, Bound]
    reached: Counter[str]


def status_of(
    settings: Settings, seen: Counts, figures: Figures, peers: Iterable[Peer], queues: Queues, relays: Relays,
    standing: Standing, oldest_s: Mapping[str, float], now: float, *, up_s: float, draining: bool,
    symptoms: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return the status as maps of plain values. Times are in seconds, sizes in bytes.

    `types` has for each type its figures (see TypeFigures), with `waiting`, `inflight`, `workers` and those of them
    that are `stuck`; types beyond MAX_TYPES have one row together, OTHERS. `buckets_s` are the ends of the histograms'
    buckets. `servers` are the configured ones, `oldest_s` the ages of their oldest queued messages; `bounds` are pairs
    of used and most. `reached` counts how often something was refused, dropped or forgotten at a bound. `broker` is
    this broker's name where the store may be shared. `declared` are the types of declared handlers. `symptoms` are
    further facts for the doctor, such as the other `brokers` of the server.
    """
    peers = list(peers)
    handlers = [peer for peer in peers if peer.worker is not None or peer.auth is not None]
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
        "types": _types(settings.declared_types, seen, figures, handlers),
        "buckets_s": list(BUCKETS_S),
        "handlers": [_handler(peer, now) for peer in handlers[:MAX_HANDLERS]],
        "more_handlers": max(0, len(handlers) - MAX_HANDLERS),
        "bridges": [_bridge(peer) for peer in peers if peer.role == "bridge"],
        "servers": [
            _server(name, settings, queues, relays, standing, oldest_s.get(name), now) for name in settings.routes
        ],
        "queued": {
            "messages": queues.messages, "bytes": queues.size_bytes, "inflight": queues.inflight,
            "mailboxes": queues.mailboxes, "mailbox_messages": queues.mailbox_messages,
        },
        "store": figures.store.as_map(),
        "bounds": {name: [bound.used, bound.most] for name, bound in seen.bounds.items()},
        "reached": {name: seen.reached[name] for name in COUNTED},
        "declared": sorted(settings.declared_types),
        "full_mailboxes": _full_mailboxes(queues.nearly_full.values(), settings.bounds),
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


def _types(
    declared: Iterable[str], seen: Counts, figures: Figures, handlers: Sequence[Peer]
) -> dict[str, dict[str, Any]]:
    """Return the figures by type, with what waits, what is in flight, and who serves the type."""
    blank = TypeFigures().as_map
    rows = {type_: row | _NOBODY for type_, row in ({each: blank() for each in declared} | figures.as_map()).items()}

    def row_of(type_: str) -> dict[str, Any]:
        """Return the row of a type, which may be that of all others."""
        key = type_ if type_ in rows or len(rows) < MAX_TYPES else OTHERS
        row = rows.get(key)
        if row is None:
            row = rows[key] = blank() | _NOBODY
        return row

    for key, counts in (("waiting", seen.waiting), ("inflight", seen.inflight)):
        for type_, count in counts.items():
            row_of(type_)[key] += count
    serving: dict[frozenset[str], list[Peer]] = {}  # many handlers serve the same types
    for peer in handlers:
        serving.setdefault(peer.types, []).append(peer)
    for types, workers in serving.items():
        stuck = sum(_holder(peer).stuck for peer in workers)
        for row in {id(row): row for row in map(row_of, types)}.values():  # all others are one
            row["workers"] += len(workers)
            row["stuck"] += stuck
    return rows


def _full_mailboxes(full: Collection[Queue], bounds: Bounds) -> dict[str, Any]:
    """Return the `count` of mailboxes that are nearly full, and the `fullest` of them, each with the `part` of the
    bound that it uses."""
    parts = (
        (max(queue.messages / bounds.user_messages, queue.size_bytes / bounds.user_bytes), queue.key, queue)
        for queue in full
    )
    rows = [
        {"user": owner_of(key), "messages": queue.messages, "bytes": queue.size_bytes, "part": round(part, 3)}
        for part, key, queue in nlargest(SHOWN, parts)
    ]
    return {"count": len(full), "fullest": rows}


def _holder(peer: Peer) -> Worker | AuthHandler:
    holder = peer.worker or peer.auth
    assert holder is not None
    return holder


def _handler(peer: Peer, now: float) -> dict[str, Any]:
    worker = _holder(peer)
    return {
        "name": peer.name, "types": nsmallest(MAX_TYPES_OF_ONE, peer.types),
        "more_types": max(0, len(peer.types) - MAX_TYPES_OF_ONE),
        "credit": worker.credit, "inflight": len(worker.inflight), "stuck": worker.stuck,
        "leaving": peer.leaving, "silent_s": round(now - peer.last_heard, 3),
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
    is_held = name in standing.held
    retries = [queue.retry_at for queue in lanes if queue.ready and not is_held]
    return {
        "name": name,
        "state": state,
        "held": is_held,
        "since_s": round(now - server.since, 3),
        "queued": sum(queue.messages for queue in lanes),
        "bytes": sum(queue.size_bytes for queue in lanes),
        "oldest_s": None if oldest_s is None else round(oldest_s, 3),
        "retries": server.retries,
        "next_try_s": round(max(0.0, min(retries) - now), 3) if retries else None,
        "error": server.error,
        "key_wrong": state == "down" and is_of_keys(server.error or ""),
        "clock_off_s": None if server.clock_off_s is None else round(server.clock_off_s, 3),
    }
