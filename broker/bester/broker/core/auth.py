"""Handlers that decide logins: each login is a request of the type `bester.auth` to one of them. Pure.

These requests have passwords, so their way is not that of messages: no trace, no recording, no copy, no dead letter, no
log line with a handler's words, and no second attempt. A login is good for one answer alone, `{"login": true}` as the
reply to the very user; it is refused by `{"login": false}` and by a handler's refusal (status 2). Whatever else becomes
of the request decides nothing, so that a faulty handler neither lets anybody in nor counts as a wrong password.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any, NamedTuple

from bester.broker.core.effects import Effects, Link, LoginDecided, Restart
from bester.broker.core.figures import FOLD_AT, Figures
from bester.broker.core.inspection import Bound
from bester.broker.core.settings import Settings
from bester.broker.wire.messages import DONE, REFUSED, Command, Reply, Request
from bester.broker.wire.type_names import AUTH_TYPE

MAX_ANSWER_BYTES = 1_024
"""Bytes of an answer that is read: `{"login": true}` has 15."""
STUCK_WHY = "all its credit is held by unanswered logins"


class Login(NamedTuple):
    """A login to be decided: `number` is the asker's, `since` when the asker asked. `body` is the request's."""

    number: int
    user: str
    body: bytes
    since: float


class AuthHandler:
    """A handler that decides logins, on a link. `inflight` holds its logins by token, oldest first; None: decided
    without the handler, whose credit is missing until the answer comes. `overdue` counts those. Since `full_since` they
    hold all credit; a `stuck` handler was named as such, until its next answer. A `leaving` one gets no more logins.
    `process` is the number of its process, if known; `lease_s` is how long a handler of logins may be silent.
    """

    __slots__ = (
        "credit",
        "full_since",
        "inflight",
        "lease_s",
        "leaving",
        "link",
        "name",
        "overdue",
        "process",
        "stuck",
    )

    def __init__(self, link: Link) -> None:
        self.link = link
        self.name = ""
        self.credit = 1
        self.process: int | None = None
        self.inflight: dict[int, Login | None] = {}
        self.lease_s = 0.0
        self.overdue = 0
        self.full_since: float | None = None
        self.stuck = False
        self.leaving = False

    @property
    def free(self) -> int:
        """Unused credit; less than 0 where a new HELLO has lowered it."""
        return self.credit - len(self.inflight)


class AuthHandlers:
    """All handlers of a broker that decide logins, and the logins that they decide or that wait for one."""

    def __init__(self, settings: Settings, out: Effects, figures: Figures, epoch: str, now: float) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._out = out
        self._figures = figures
        self._epoch = epoch
        self._handlers: dict[Link, AuthHandler] = {}
        self._waiting: deque[Login] = deque()
        self._token = 0
        self._away_since: float | None = now

    def bounds(self) -> dict[str, Bound]:
        """Return how many logins there are, and how many there may be."""
        return {"auth_logins": Bound(self._count(), self._limits.max_logins)}

    def _count(self) -> int:
        held = sum(len(handler.inflight) - handler.overdue for handler in self._handlers.values())
        return held + len(self._waiting)

    # --- joining and leaving ---

    def join(
        self, link: Link, name: str, credit: int, process: int | None, before: AuthHandler | None, now: float
    ) -> AuthHandler:
        """Add the handler that has sent HELLO, or replace the options of the one `before` on the same link."""
        handler = before or AuthHandler(link)
        handler.name, handler.credit, handler.process = name, credit, process
        self._handlers[link] = handler
        handler.leaving = False
        self._away_since = None
        self._share_out(now)
        return handler

    def leave(self, handler: AuthHandler, now: float) -> None:
        """Give a handler no more logins; those in flight stay its own."""
        handler.leaving = True
        if self._away_since is None and all(each.leaving for each in self._handlers.values()):
            self._away_since = now

    def lose(self, handler: AuthHandler, now: float) -> None:
        """Remove a handler whose link is lost. No other handler is asked about its logins: one of them may have
        killed this one, and a password is given to one handler alone."""
        self.leave(handler, now)
        self._handlers.pop(handler.link, None)
        lost = [login for login in handler.inflight.values() if login is not None]
        handler.inflight.clear()
        handler.overdue = 0
        for login in lost:
            self._undecided(login, handler, "its link was lost before it answered", "handler-lost")

    # --- logins ---

    def ask(self, number: int, user: str, password: str, address: str, now: float) -> None:
        """Have a login decided. Each login asked about ends in one `LoginDecided`."""
        figures = self._figures.of(AUTH_TYPE)
        figures.received += 1
        body = json.dumps({"user": user, "password": password, "address": address})
        login = Login(number, user, body.encode(), now)
        if self._count() >= self._limits.max_logins:
            self._out.reached["max_logins"] += 1
            self._undecided(login, None, "too many logins wait for a decision", "overloaded")
        elif self._away_since is not None and now - self._away_since >= self._limits.handler_wait_s:
            self._undecided(login, None, f"no handler of {AUTH_TYPE} is connected", "no-handler")
        else:
            self._waiting.append(login)
            self._share_out(now)

    def _share_out(self, now: float) -> None:
        """Send waiting logins to the handlers with most free credit."""
        while self._waiting:
            serving = [each for each in self._handlers.values() if not each.leaving and each.free > 0]
            if not serving:
                return
            handler = max(serving, key=lambda each: each.free)
            login = self._waiting.popleft()
            self._token += 1
            handler.inflight[self._token] = login
            id_ = f"{self._settings.name}/login-{self._epoch}/{self._token}"
            left_s = self._limits.login_s - (now - login.since)
            meta: dict[str, Any] = {
                "id": id_, "root": id_, "origin": self._settings.name, "scope": "client", "attempt": 1, "path": [],
                "deadline_ms": max(1, round(left_s * 1000)),
            }  # fmt: skip
            self._out.send(handler.link, Request(self._token, AUTH_TYPE, login.body, login.user, meta))

    def on_reply(self, handler: AuthHandler, reply: Reply, now: float) -> tuple[str, str] | None:
        """Take in a handler's answer. Returns (code, text) where the answer belongs to no login, else None."""
        if reply.token not in handler.inflight:
            return "unknown-token", "no request with this token waits on this link"
        login = handler.inflight.pop(reply.token)
        handler.full_since, handler.stuck = None, False
        if login is None:
            handler.overdue -= 1
        else:
            figures = self._figures.of(AUTH_TYPE)
            figures.took.append(now - login.since)
            if len(figures.took) >= FOLD_AT:
                figures.fold()
            figures.more_results -= 1  # a decision is no result
            good, why = _decision(login.user, reply)
            if good is None:
                self._undecided(login, handler, why, "bad-reply" if reply.status == DONE else "handler-failed")
            else:
                self._out.calls.append(LoginDecided(login.number, good))
        self._share_out(now)
        return None

    def on_malformed_reply(self, handler: AuthHandler, token: int, now: float) -> None:
        """Take in an answer that could not be decoded."""
        if token in handler.inflight:
            self.on_reply(handler, Reply(token, DONE, []), now)

    def _undecided(self, login: Login, handler: AuthHandler | None, why: str, code: str) -> None:
        """End a login without a decision. A handler's own words are not logged, as they may quote the password."""
        self._figures.of(AUTH_TYPE).failed[code] += 1
        named = {} if handler is None else {"handler": handler.name}
        self._out.notice("login-undecided", user=login.user, **named, why=why)
        self._out.calls.append(LoginDecided(login.number, None))

    # --- time ---

    def tick(self, now: float) -> None:
        """End the logins that have taken too long, and have stuck handlers started again."""
        before = now - self._limits.login_s
        while self._waiting and (self._waiting[0].since <= before or self._is_in_vain(self._waiting[0], now)):
            away = self._away_since is not None
            why = f"no handler of {AUTH_TYPE} is connected" if away else "its handlers were busy for too long"
            self._undecided(self._waiting.popleft(), None, why, "no-handler" if away else "overloaded")
        for handler in list(self._handlers.values()):
            for token, login in handler.inflight.items():
                if login is None:
                    continue
                if login.since > before:
                    break
                handler.inflight[token] = None
                handler.overdue += 1
                self._undecided(login, handler, f"it gave no answer in {self._limits.login_s:g} s", "timeout")
            self._look_at(handler, now)

    def _is_in_vain(self, login: Login, now: float) -> bool:
        """Return whether a login has waited long enough for a handler that is away."""
        return self._away_since is not None and now - max(self._away_since, login.since) >= self._limits.handler_wait_s

    def _look_at(self, handler: AuthHandler, now: float) -> None:
        """Have a handler started again whose credit is all held by unanswered logins."""
        if handler.stuck or handler.free > 0 or handler.overdue < len(handler.inflight):
            return
        if handler.full_since is None:
            handler.full_since = now
        elif now - handler.full_since >= self._limits.stuck_s:
            handler.stuck = True
            places = handler.overdue
            self._out.notice("handler-stuck", name=handler.name, types=[AUTH_TYPE], places=places, why=STUCK_WHY)
            self._out.calls.append(Restart(handler.process, handler.name, STUCK_WHY))


def _decision(user: str, reply: Reply) -> tuple[bool | None, str]:
    """Return whether a reply says that a user's login is good, and why not; None for a reply that decides nothing."""
    if reply.status == REFUSED and reply.code is None:
        return False, ""
    if reply.status != DONE:
        return None, "it failed"
    data = _data_for(user, reply.commands)
    login = data.get("login") if type(data) is dict and len(data) == 1 else None
    if type(login) is bool:
        return login, ""
    return None, 'its answer is not one: {"login": true} or {"login": false}, sent to the user alone'


def _data_for(user: str, commands: list[Command]) -> Any:
    """Return the data of a reply whose only command sends them to the user alone, else None."""
    if len(commands) != 1:
        return None
    command = commands[0]
    if command.command != "sendClients" or command.targets != [user] or len(command.body) > MAX_ANSWER_BYTES:
        return None
    try:
        return json.loads(command.body)
    except (ValueError, RecursionError):
        return None
