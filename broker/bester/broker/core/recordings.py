"""Recordings: messages of a type with the answers of their handlers, kept until an operator fetches them. Pure.

The operator's program asks again and again; each answer holds all that was recorded since the last one. A recording
ends when the program says so, loses its link, or has not asked for a while.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from bester.broker.core import policy
from bester.broker.core.clock import Clock
from bester.broker.core.effects import Effects, Link
from bester.broker.core.jobs import Job
from bester.broker.core.observers import Observers, size_of
from bester.broker.wire.messages import Command, Reply, Request
from bester.broker.wire.type_names import type_fault

QUESTION = "record"
MAX_RECORDINGS = 8
"""Recordings at once; each may hold MAX_BYTES."""
MAX_ROWS = 10_000
MAX_BYTES = 16 * 1024 * 1024
"""Messages of one recording that are not fetched yet, and the bytes of their bodies: some seconds of a busy type. What
is above either bound is not recorded, but counted."""
ANSWER_BYTES = 8 * 1024 * 1024
"""Bytes of bodies in one answer, which must pass as one message; more are left to the next one."""
FORGET_S = 30.0
"""Time after which a recording ends that nobody has asked for: longer than any pause of a program that records."""


class Recording:
    """Recording of an operator: `rows` that were not fetched yet, their `size_bytes`, and the number `dropped`."""

    __slots__ = ("asked", "count", "dropped", "rows", "size_bytes")

    def __init__(self, now: float) -> None:
        self.asked = now
        self.count = 0
        self.dropped = 0
        self.rows: deque[tuple[float, Request, Reply, int]] = deque()
        self.size_bytes = 0

    def observe(self, job: Job, reply: Reply, now: float) -> None:
        """Record a message and its answer."""
        size_bytes = size_of(job, reply)
        if len(self.rows) >= MAX_ROWS or self.size_bytes + size_bytes > MAX_BYTES:
            self.dropped += 1
            return
        self.count += 1
        self.size_bytes += size_bytes
        self.rows.append((now, job.request(reply.token), reply, size_bytes))


class Recordings:
    """The recordings of one broker, by the operator's link and the type."""

    def __init__(self, out: Effects, observers: Observers, clock: Clock) -> None:
        self._out = out
        self._observers = observers
        self._clock = clock
        self._running: dict[tuple[Link, str], Recording] = {}

    def on_question(self, link: Link, argument: Any, now: float) -> tuple[int, Any]:
        """Return status and value of the answer to a question.

        The argument is a map: `type`, and `end` (true) where the recording ends with this answer. The value is a map of
        `rows`, `more` (rows left for the next answer) and `dropped` (messages without room since the last answer). With
        status 1 the value is the reason of the refusal.
        """
        type_ = argument.get("type") if type(argument) is dict else None
        if type(type_) is not str:
            return 1, 'a recording needs a message type: {"type": "chat"}'
        wrong = type_fault(type_)
        if wrong is not None or not policy.may_keep(type_):
            return 1, wrong or f"messages of type {type_!r} hold secrets, and are never recorded"
        recording = self._running.get((link, type_))
        if recording is None:
            if len(self._running) >= MAX_RECORDINGS:
                return 1, f"{MAX_RECORDINGS} recordings run already; end one of them"
            recording = self._running[(link, type_)] = Recording(now)
            self._observers.add(type_, recording.observe)
            self._out.notice("recording-began", type=type_)
        recording.asked = now
        value = self._fetched(recording)
        if argument.get("end") is True and not value["more"]:
            self._end(link, type_, "ended by its operator")
        return 0, value

    def _fetched(self, recording: Recording) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        size_bytes = 0
        while recording.rows and size_bytes < ANSWER_BYTES:
            at, request, reply, row_bytes = recording.rows.popleft()
            size_bytes += row_bytes
            rows.append(_row(round(self._clock.wall(at) * 1000), request, reply))
        recording.size_bytes -= size_bytes
        dropped, recording.dropped = recording.dropped, 0
        return {"rows": rows, "more": len(recording.rows), "dropped": dropped}

    def on_peer_lost(self, link: Link) -> None:
        """End the recordings of an operator that is gone."""
        for of, type_ in [key for key in self._running if key[0] == link]:
            self._end(of, type_, "its operator is gone")

    def tick(self, now: float) -> None:
        """End the recordings that nobody asks for."""
        for (link, type_), recording in list(self._running.items()):
            if now - recording.asked > FORGET_S:
                self._end(link, type_, f"not asked for within {FORGET_S:g} s")

    def _end(self, link: Link, type_: str, why: str) -> None:
        recording = self._running.pop((link, type_))
        self._observers.remove(type_, recording.observe)
        self._out.notice("recording-ended", type=type_, messages=recording.count, why=why)


def _row(at_ms: int, request: Request, reply: Reply) -> dict[str, Any]:
    """Return a message and its answer as a map of `at_ms`, `request` and `reply`; bodies are JSON texts."""
    return {
        "at_ms": at_ms,
        "request": {
            "type": request.type,
            "user": request.user,
            "body": _text(request.body),
            "meta": dict(request.meta),
        },
        "reply": {
            "status": reply.status,
            "note": reply.note,
            "code": reply.code,
            "commands": [_command(command) for command in reply.commands],
        },
    }


def _command(command: Command) -> dict[str, Any]:
    body = _text(command.body)
    return {"command": command.command, "targets": command.targets, "body": body, "type": command.type}


def _text(body: bytes) -> str:
    """Return a body as text. A handler's may be no UTF-8; such a reply is refused, and nothing in it is carried out."""
    return body.decode("utf-8", "replace")
