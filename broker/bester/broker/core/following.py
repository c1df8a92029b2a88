"""Following a message over servers: each server on its way is asked for its steps, and asks the next. Pure.

A server answers only about messages that the asking server has sent to it, and only where its configuration allows
that (`[servers.NAME] trace`); an operator of this server asks about any. The steps are read from the ring of the trace
when somebody asks, so that following costs nothing before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from bester.broker.core import policy
from bester.broker.core.effects import Effects, Link
from bester.broker.core.settings import Settings
from bester.broker.core.trace import SERVER, Trace
from bester.broker.core.waterfall import spans_of
from bester.broker.wire.codes import CODES
from bester.broker.wire.messages import HOP_LIMIT, MAX_ID, Answer, Ask, Meta, Traced
from bester.broker.wire.messages import Trace as AskSteps

WAIT_S = 5.0
"""Time for the answers of all servers: an operator waits for it."""
RETURN_S = 0.5
"""Time that each server on the way back keeps for itself, so that the one before it still has the answer in time."""
MAX_STEPS = 1_000
"""Steps in one answer; those beyond are left out, the latest first."""
MAX_STEPS_OF_ALL = 4_000
"""Steps of all servers about one message: some megabytes, where somebody writes long names."""
MAX_OPEN = 64
"""Messages that are followed at once: operators ask one at a time."""
MAX_LOOKS = 8
"""Questions of other servers that are answered between two ticks: each looks through the whole ring."""
MAX_SERVERS = 100
"""Servers that are asked about one message, or named in an answer."""
NO_TRACE = "unknown-op"
"""Reason of a server that speaks the native protocol, or an older version of the fabric."""

Told = Callable[[list[dict[str, Any]], dict[str, str]], None]
"""Called with the steps of all servers, and the servers that told nothing, with the reason's code."""


class _Open:
    """A message that is being followed: what was told so far. `waiting` are the servers whose answers are due."""

    __slots__ = ("deadline", "servers", "steps", "told", "waiting")

    def __init__(self, steps: list[dict[str, Any]], deadline: float, told: Told) -> None:
        self.steps = steps
        self.deadline = deadline
        self.told = told
        self.servers: dict[str, str] = {}
        self.waiting: dict[int, str] = {}


class Following:
    """The messages that are being followed. `links` are the open links to servers of the fabric."""

    def __init__(self, settings: Settings, trace: Trace, links: Container[Link], out: Effects) -> None:
        self._settings = settings
        self._trace = trace
        self._links = links
        self._out = out
        self._open: dict[int, _Open] = {}  # by each token that is waited for
        self._token = 0
        self._looks = 0

    # --- questions ---

    def on_question(self, link: Link, ask: Ask, now: float) -> Answer | None:
        """Follow a message for an operator: by its id or that of a result, or the latest one. Returns None where the
        answer is sent later.

        The answer's value has `root`, `steps` of all servers, their `spans` (see `spans_of`), and `servers`, a map of
        the servers that have told nothing to the reason's code.
        """
        argument = ask.argument
        if argument is not None and type(argument) is not str:
            return Answer(ask.token, 1, None)
        root = self._trace.latest() if argument is None else self._trace.root_of(argument)
        if root is None:
            return Answer(ask.token, 0, {"root": None, "steps": [], "spans": [], "servers": {}})

        def told(steps: list[dict[str, Any]], servers: dict[str, str]) -> None:
            """Answer the operator."""
            value = {"root": root, "steps": steps, "spans": spans_of(steps), "servers": servers}
            self._out.send(link, Answer(ask.token, 0, value))

        self._begin(root, self._trace.of(root), HOP_LIMIT, now + WAIT_S, told, now)
        return None

    def on_asked(self, link: Link, server: str | None, message: AskSteps, now: float) -> None:
        """Tell a server the steps of the messages that it has sent here; `server` is its name, None where nobody
        vouches for it."""
        token, root = message.token, message.root
        self._looks += 1
        if server is None or not policy.may_trace(self._settings, server):
            self._out.send(link, Traced(token, [], {"why": "not-allowed"}))
            return
        if self._looks > MAX_LOOKS:
            self._out.send(link, Traced(token, [], {"why": "overloaded"}))
            return
        ids = self._trace.entered_from(root, server)
        steps = self._trace.of(root, ids) if ids else []
        wait_s = min(_number(message.meta.get("wait_ms")) / 1000, WAIT_S) - RETURN_S
        hops = int(min(_number(message.meta.get("hops")), HOP_LIMIT))

        def told(steps: list[dict[str, Any]], servers: dict[str, str]) -> None:
            """Answer the server."""
            meta: Meta = {"servers": servers} if servers else {}
            self._out.send(link, Traced(token, steps[:MAX_STEPS], meta))

        self._begin(root, steps, hops, now + max(0.0, wait_s), told, now)

    def _begin(
        self, root: str, steps: list[dict[str, Any]], hops: int, deadline: float, told: Told, now: float
    ) -> None:  # fmt: skip
        """Ask the servers to which any of these steps of this server went, and tell at once where there are none."""
        followed = _Open(steps, deadline, told)
        targets = dict.fromkeys(_where(step) for step in steps if step["what"] == SERVER)
        for name in list(targets)[:MAX_SERVERS]:
            link, route = Link("server", name.encode()), self._settings.routes.get(name)
            why = (
                NO_TRACE if route is None or route.fabric is None
                else "unreachable" if link not in self._links
                else "too-many-hops" if hops <= 0
                else "overloaded" if len(self._open) >= MAX_OPEN
                else None
            )  # fmt: skip
            if why is not None:
                followed.servers[name] = why
                continue
            self._token += 1
            followed.waiting[self._token] = name
            self._open[self._token] = followed
            wait_ms = round(max(0.0, deadline - now) * 1000)
            self._out.send(link, AskSteps(self._token, root, {"wait_ms": wait_ms, "hops": hops - 1}))
        self._tell(followed)

    # --- answers ---

    def on_traced(self, link: Link, message: Traced) -> None:
        """Take in what a server has told. What it says about itself is taken over, as far as it can be read."""
        followed = self._end(link, message.token)
        if followed is None:
            return
        if (why := message.meta.get("why")) is not None:
            followed.servers[link.key.decode()] = why if _is_code(why) else "bad-reply"
        room = MAX_STEPS_OF_ALL - len(followed.steps)
        found = (_sound(step) for step in message.steps[: min(MAX_STEPS, max(0, room))])
        followed.steps += [step for step in found if step is not None]
        followed.servers |= _reasons(message.meta.get("servers"))
        self._tell(followed)

    def on_refused(self, link: Link, token: int | None, code: str) -> None:
        """Take in that a server has refused to answer: an older one does not know the operation, and names no token."""
        for each in [token] if token is not None else self._asked(link):
            followed = self._end(link, each)
            if followed is not None:
                followed.servers[link.key.decode()] = code if code in CODES else NO_TRACE
                self._tell(followed)

    def on_link_lost(self, link: Link) -> None:
        """Go on without the answers of a server whose link is lost."""
        for token in self._asked(link):
            self.on_refused(link, token, "unreachable")

    def tick(self, now: float) -> None:
        """Go on without the answers that are late."""
        self._looks = 0
        for followed in {id(each): each for each in self._open.values() if now >= each.deadline}.values():
            for token, name in followed.waiting.items():
                followed.servers[name] = "timeout"
                del self._open[token]
            followed.waiting.clear()
            self._tell(followed)

    def _asked(self, link: Link) -> list[int]:
        name = link.key.decode()
        return [token for token, followed in self._open.items() if followed.waiting[token] == name]

    def _end(self, link: Link, token: int) -> _Open | None:
        """Count one answer of the server at a link; None: it was not asked, or is late."""
        followed = self._open.get(token)
        if followed is None or followed.waiting[token] != link.key.decode():
            return None
        del self._open[token], followed.waiting[token]
        return followed

    def _tell(self, followed: _Open) -> None:
        if not followed.waiting:
            followed.told(followed.steps, followed.servers)


def _where(step: Mapping[str, Any]) -> str:
    """Return the place of a step of this server, without the server's name."""
    where: str = step["where"]
    return where.partition("/")[2]


def _number(value: Any) -> float:
    return value if type(value) in (int, float) and 0 <= value < math.inf else 0.0


def _is_text(value: object) -> bool:
    return type(value) is str and len(value) <= 2 * MAX_ID


def _sound(step: Any) -> dict[str, Any] | None:
    """Return a step that another server has told, without what no step has; None where it is no step."""
    if type(step) is not dict:
        return None
    at_ms, since_ms = step.get("at_ms"), step.get("since_ms")
    if not all(_is_text(step.get(key)) for key in ("id", "what", "where")) or not _is_time(at_ms):
        return None
    sound = {"at_ms": at_ms} | {key: step[key] for key in ("id", "what", "where")}
    return sound | ({"since_ms": since_ms} if _is_time(since_ms) else {})


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _reasons(value: object) -> dict[str, str]:
    if type(value) is not dict:
        return {}
    named: Sequence[tuple[Any, Any]] = list(value.items())[:MAX_SERVERS]
    return {name: why for name, why in named if _is_text(name) and _is_code(why)}


def _is_code(value: object) -> bool:
    return type(value) is str and value in CODES
