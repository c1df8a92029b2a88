"""The steps of a message as spans of time: a waterfall, over all servers that told their steps. Pure.

A step is a point; a span begins at one and ends at another: the wait for a handler, the work of a handler, which ends
with the first of its results, the way of a result to a user or a server. Clocks of servers differ: the spans of a
server are moved, all by the same time, so that they lie between the send to that server and its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bester.broker.core.trace import CONSUMED, EMITTED, ENTERED, HANDLER, MAX_PARTS, QUEUED, SERVER

Step = Mapping[str, Any]
Span = dict[str, Any]
WAIT, DELIVERY = "wait", "delivery"


def spans_of(steps: Iterable[Step]) -> list[Span]:
    """Return the spans, by their begin, as maps.

    `kind` is `wait`, `handler`, `delivery`, `server`, `queued` or `emitted`; `server`, `where` (a type, a user, a
    server) and `id` say of what. `from_ms` and `to_ms` are on the clock of the first step's server; `to_ms` is None
    where the span has not ended, as far as the steps tell. `outcome` is None where a handler did its work, or where
    nothing is known yet."""
    by_server: dict[str, list[Step]] = {}
    for step in steps:
        by_server.setdefault(step["where"].partition("/")[0], []).append(step)
    spans: list[Span] = []
    for server, its in by_server.items():
        spans += _of_one(server, sorted(its, key=lambda step: step["at_ms"]))
    _align(spans, by_server)
    return sorted(spans, key=lambda span: (span["from_ms"], span["id"].count("."), span["kind"] != WAIT))


def _of_one(server: str, steps: Sequence[Step]) -> list[Span]:
    """Return the spans of one server, whose steps are in order."""
    spans: list[Span] = []
    open_: dict[tuple[str, str], Span] = {}  # by kind and id

    def begin(kind: str, step: Step, from_ms: float, to_ms: float | None, outcome: str | None = None) -> Span:
        """Add a span, and end the work of the handler that the message comes from."""
        where = step["where"].partition("/")[2]
        span = {
            "kind": kind, "server": server, "where": where, "id": step["id"], "from_ms": from_ms, "to_ms": to_ms,
            "outcome": outcome,
        }  # fmt: skip
        spans.append(span)
        parent = _parent(open_, step["id"])
        if parent is not None and parent["to_ms"] is None:
            parent["to_ms"] = max(parent["from_ms"], from_ms)
        return span

    def end(kind: str, step: Step, at_ms: float, outcome: str | None) -> bool:
        """End an open span of the message; False where there is none."""
        span = open_.get((kind, step["id"]))
        if span is None or span["to_ms"] is not None:
            return False
        span["to_ms"], span["outcome"] = at_ms, outcome
        return True

    for step in steps:
        what, at_ms = step["what"], step["at_ms"]
        since_ms = min(at_ms, step.get("since_ms", at_ms))
        if what == HANDLER:
            end(HANDLER, step, since_ms, "handler-lost")  # given once more
            if since_ms < at_ms:
                begin(WAIT, step, since_ms, at_ms)
            open_[HANDLER, step["id"]] = begin(HANDLER, step, at_ms, None)
        elif what in (SERVER, QUEUED):
            if since_ms < at_ms:  # a connection was sent it, and did not take it
                begin(DELIVERY, step, since_ms, at_ms, what)
            open_[what, step["id"]] = begin(what, step, at_ms, None)
        elif what == EMITTED:
            begin(EMITTED, step, at_ms, at_ms)
        elif what == CONSUMED:
            end(HANDLER, step, at_ms, None)
        elif what != ENTERED and not any(end(kind, step, at_ms, what) for kind in (SERVER, QUEUED, HANDLER)):
            begin(DELIVERY, step, since_ms, at_ms, what)
    return spans


def _parent(open_: Mapping[tuple[str, str], Span], id_: str) -> Span | None:
    """Return the work of the handler whose reply this result is in."""
    for _ in range(MAX_PARTS):
        id_ = id_.rpartition(".")[0]
        if (HANDLER, id_) in open_:
            return open_[HANDLER, id_]
    return None


def _align(spans: Iterable[Span], by_server: Mapping[str, Sequence[Step]]) -> None:
    """Move the spans of each server to the clock of the first one."""
    entered = {
        id_: server
        for server, its in by_server.items()
        for step in its
        if step["what"] == ENTERED
        for id_ in _sent_as(step)
    }
    its_spans: dict[str, list[Span]] = {server: [] for server in by_server}
    for span in spans:
        its_spans[span["server"]].append(span)
    todo = list(by_server)[:1]
    moved = set(todo)
    while todo:
        for sent in its_spans[todo.pop()]:
            server = entered.get(sent["id"]) if sent["kind"] == SERVER else None
            if server is not None and server not in moved:
                moved.add(server)
                todo.append(server)
                _move(its_spans[server], sent)


def _sent_as(step: Step) -> tuple[str, ...]:
    """Return the ids under which a message may have been sent: where an id does not begin with the sender's name, the
    receiver marks the id with that name."""
    id_, sender = step["id"], step["where"].partition("/")[2]
    return id_, id_.removesuffix(f"~{sender}"), id_.removeprefix(f"{sender}/")


def _move(spans: Sequence[Span], sent: Span) -> None:
    """Move the spans of a server between the send to it and its answer, where they are not."""
    if not spans:
        return
    by_ms = max(0.0, sent["from_ms"] - min(span["from_ms"] for span in spans))
    if not by_ms and sent["to_ms"] is not None:
        by_ms = min(0.0, sent["to_ms"] - max(span["to_ms"] or span["from_ms"] for span in spans))
    for span in spans:
        span["from_ms"] = round(span["from_ms"] + by_ms, 3)
        span["to_ms"] = None if span["to_ms"] is None else round(span["to_ms"] + by_ms, 3)
