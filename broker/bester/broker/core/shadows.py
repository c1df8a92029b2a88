"""Shadows: handlers that get copies of messages which other handlers have answered. Pure.

The commands of a shadow are compared with those of the handler that answered, and never carried out; its emits are
answered and dropped. A copy is made when the answer is there, so nothing waits for a shadow, and what a shadow cannot
take is dropped and counted.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from bester.broker.core.clock import Clock
from bester.broker.core.differences import Answered, compare
from bester.broker.core.effects import Effects, Link
from bester.broker.core.jobs import Job
from bester.broker.core.observers import Observers, plain, size_of
from bester.broker.core.settings import Limits
from bester.broker.wire.messages import FAILED, Emit, Outcome, Reply, Request
from bester.broker.wire.notes import safe_note

MAX_COMPARED_BYTES = 64 * 1024
"""Bytes of two answers that are compared value by value, which takes a millisecond; longer ones byte by byte."""
MAX_COUNTED = 1_024
"""Names and types of shadows whose counts are kept; those joined longest ago are forgotten first."""


class Copy(NamedTuple):
    """A message for a shadow, with the answer of the handler that it was for. `at` is when that answer came."""

    request: Request
    reply: Reply
    at: float
    size_bytes: int


class Counts:
    """Counts of one shadow and type since the broker's start: `copied` messages were given to the shadow, of which so
    many had the `same` answer or a `different` one, and so many none in time (`late`); `dropped` ones were not given to
    it, as it holds too many, or were lost with its link. `passed_over` are values that look like ids and times."""

    __slots__ = ("copied", "different", "dropped", "late", "passed_over", "same")

    def __init__(self) -> None:
        self.copied = self.same = self.different = self.late = self.dropped = self.passed_over = 0

    def shown(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Shadow:
    """A shadow on a link. `inflight` holds its copies by token, oldest first, each with the time when it was sent;
    None: the copy is late, and only its credit is missing. `waiting` are copies for which there was no credit,
    `size_bytes` the bytes of all copies. `dropped` counts copies dropped for want of room, of which
    `noticed` are in the log."""

    __slots__ = (
        "credit", "dropped", "inflight", "late", "link", "name", "noticed", "size_bytes", "types", "waiting",
    )  # fmt: skip

    def __init__(self, link: Link, name: str) -> None:
        self.link = link
        self.name = name
        self.types: frozenset[str] = frozenset()
        self.credit = 1
        self.inflight: dict[int, tuple[Copy, float] | None] = {}
        self.late = 0
        self.waiting: deque[Copy] = deque()
        self.size_bytes = 0
        self.dropped = self.noticed = 0

    @property
    def copies(self) -> int:
        """Number of copies that the shadow holds, or that wait for it."""
        return len(self.inflight) - self.late + len(self.waiting)


class Shadows:
    """All shadows of a broker; the observer of each type with a shadow is `_observe`."""

    def __init__(self, limits: Limits, out: Effects, observers: Observers, clock: Clock) -> None:
        self._limits = limits
        self._out = out
        self._observers = observers
        self._clock = clock
        self._by_type: dict[str, dict[Shadow, None]] = {}
        self._counts: dict[tuple[str, str], Counts] = {}
        self._token = 0

    # --- joining and leaving ---

    def join(
        self, link: Link, name: str, types: frozenset[str], credit: int, before: Shadow | None, now: float
    ) -> Shadow:
        """Add the shadow that has sent HELLO, or replace the options of the one `before` on the same link."""
        shadow = before or Shadow(link, name)
        self.leave(shadow)
        shadow.name, shadow.types, shadow.credit = name, types, credit
        for type_ in types:
            found = self._by_type.setdefault(type_, {})
            if not found:
                self._observers.add(type_, self._observe)
            found[shadow] = None
            counts = self._counts.pop((name, type_), None) or Counts()
            while len(self._counts) >= MAX_COUNTED:
                del self._counts[next(iter(self._counts))]
            self._counts[(name, type_)] = counts
        self._send(shadow, now)
        return shadow

    def leave(self, shadow: Shadow) -> None:
        """Give a shadow no more copies; those in flight stay with it."""
        for type_ in shadow.types:
            found = self._by_type.get(type_, {})
            if found.pop(shadow, 0) is None and not found:
                del self._by_type[type_]
                self._observers.remove(type_, self._observe)
        self._drop(shadow, list(shadow.waiting))
        shadow.waiting.clear()

    def lose(self, shadow: Shadow) -> None:
        """Remove a shadow whose link is lost; nobody gets its copies."""
        self.leave(shadow)
        self._drop(shadow, [sent[0] for sent in shadow.inflight.values() if sent is not None])
        shadow.inflight.clear()
        shadow.late = 0

    def _drop(self, shadow: Shadow, copies: list[Copy]) -> None:
        for copy in copies:
            shadow.size_bytes -= copy.size_bytes
            self._of(shadow, copy.request.type).dropped += 1

    # --- copies ---

    def _observe(self, job: Job, reply: Reply, now: float) -> None:
        """Copy an answered message to every shadow of its type."""
        limits, size_bytes = self._limits, size_of(job, reply)
        for shadow in self._by_type[job.type]:
            if shadow.copies >= limits.max_copies or shadow.size_bytes + size_bytes > limits.max_copies_bytes:
                shadow.dropped += 1
                self._of(shadow, job.type).dropped += 1
                self._out.reached["max_copies" if shadow.copies >= limits.max_copies else "max_copies_bytes"] += 1
                continue
            request = job.request(0, shadow=True)
            shadow.size_bytes += size_bytes
            shadow.waiting.append(Copy(request, plain(reply), now, size_bytes))
            self._send(shadow, now)

    def _send(self, shadow: Shadow, now: float) -> None:
        """Send copies that wait, up to the shadow's credit."""
        while shadow.waiting and len(shadow.inflight) < shadow.credit:
            copy = shadow.waiting.popleft()
            self._token += 1
            shadow.inflight[self._token] = (copy, now)
            self._of(shadow, copy.request.type).copied += 1
            self._out.send(shadow.link, copy.request._replace(token=self._token))

    def on_reply(self, shadow: Shadow, reply: Reply, now: float) -> tuple[str, str] | None:
        """Compare a shadow's answer. Returns (code, text) where the answer belongs to no copy, else None."""
        if reply.token not in shadow.inflight:
            return "unknown-token", "no request with this token waits on this link"
        sent = shadow.inflight.pop(reply.token)
        if sent is None:
            shadow.late -= 1
        else:
            shadow.size_bytes -= sent[0].size_bytes
            self._compare(shadow, sent[0], plain(reply), now)
        self._send(shadow, now)
        return None

    def on_malformed_reply(self, shadow: Shadow, token: int, now: float) -> None:
        """Count an answer that could not be decoded: of a real handler it would be a bad reply."""
        if token in shadow.inflight:
            self.on_reply(shadow, Reply(token, FAILED, [], None, "bad-reply"), now)

    def _compare(self, shadow: Shadow, copy: Copy, reply: Reply, now: float) -> None:
        request, real = copy.request, copy.reply
        counts = self._of(shadow, request.type)
        texts: list[str] = []
        if sum(len(each.body) for each in (*real.commands, *reply.commands)) > MAX_COMPARED_BYTES:
            texts += ["commands"] if real[1:] != reply[1:] else []
        else:
            before, after = Answered(real, self._clock.wall(copy.at)), Answered(reply, self._clock.wall(now))
            differences, passed_over = compare(before, after, request=request.body)
            counts.passed_over += passed_over
            texts += [each.where for each in differences]
        if not texts:
            counts.same += 1
            return
        counts.different += 1
        # Values are payload, and have no place in a log.
        more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
        id_, where = request.meta["id"], safe_note(f"{texts[0]}{more}")
        self._out.notice("shadow-differs", handler=shadow.name, type=request.type, id=id_, where=where)

    def on_emit(self, shadow: Shadow, emit: Emit) -> None:
        """Answer an emit as if it were carried out for nobody."""
        self._out.send(shadow.link, Outcome(emit.token, 0, {}))

    def _of(self, shadow: Shadow, type_: str) -> Counts:
        """Return the counts of a shadow and a type; of one that serves thousands of types some may be forgotten."""
        return self._counts.get((shadow.name, type_)) or Counts()

    # --- for the router ---

    def tick(self, now: float) -> None:
        """Forget copies that are not answered in time; their credit is missing until they are. Log dropped ones."""
        before = now - self._limits.request_s
        for shadow in {shadow: None for found in self._by_type.values() for shadow in found}:
            for token, sent in shadow.inflight.items():
                if sent is None:
                    continue
                copy, at = sent
                if at > before:
                    break
                shadow.inflight[token] = None
                shadow.late += 1
                shadow.size_bytes -= copy.size_bytes
                self._of(shadow, copy.request.type).late += 1
            if shadow.dropped > shadow.noticed:
                shadow.noticed = shadow.dropped
                self._out.notice("shadow-drops", handler=shadow.name, dropped=shadow.dropped)

    def counts(self, shadow: Shadow, type_: str) -> dict[str, Any]:
        """Return the counts of a shadow and a type by name."""
        return self._of(shadow, type_).shown()
