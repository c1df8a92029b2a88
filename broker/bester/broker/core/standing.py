"""The standing of each configured server, for its operator: reached or not, since when, the last error in words, and
whether its operator holds messages to it back. Pure.

    unknown     not tried yet
    up          the link is open, or the last message was answered
    down        the link is lost, or nobody has answered
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from bester.broker.core.effects import Effects
from bester.broker.core.refused import LOG_AGAIN_S
from bester.broker.core.settings import Route
from bester.broker.store_requests import SaveHeld
from bester.broker.wire.codes import CODES
from bester.broker.wire.messages import Meta
from bester.broker.wire.notes import safe_note
from bester.broker.wire.outcomes import UNREACHABLE
from bester.broker.wire.trouble import CUT_SHORT, is_of_keys

MAX_CLOCK_MS = 10**15
"""Latest time that a server may tell, some 30,000 years from now: dates beyond are no dates."""
State = Literal["unknown", "up", "down"]
MAX_WHY = 500
"""Characters of an error that are kept: another owner's server may have written it."""


class Server:
    """Standing of one server; `since` and `error_at` are in seconds of `now`. `retries` counts the times that messages
    to it were put off, to be sent again. By `clock_off_s` seconds the server's wall clock is ahead of this one's, None
    where the server has told no time."""

    __slots__ = ("clock_off_s", "error", "error_at", "retries", "since", "state")

    def __init__(self, now: float) -> None:
        self.state: State = "unknown"
        self.since = now
        self.error: str | None = None
        self.retries = 0
        self.error_at: float | None = None
        self.clock_off_s: float | None = None


class Standing:
    """The configured servers by name. `held` are those to which messages are held back; the store keeps them."""

    def __init__(self, out: Effects, servers: Iterable[str], held: frozenset[str], now: float) -> None:
        self._out = out
        self._servers = {name: Server(now) for name in servers}
        self._away: dict[str, bool] = {}  # native servers not reached when last tried, and whether the log says so
        self._told_at: dict[str, float] = {}  # when the log last said so
        self.held = set(held)

    def of(self, name: str, now: float) -> Server:
        """Return the standing of a server."""
        return self._servers.setdefault(name, Server(now))

    def on_reached(self, name: str, now: float) -> None:
        """Take in that a server has answered, or its link is open."""
        self._change(name, "up", now)

    def on_lost(self, name: str, why: str, now: float) -> None:
        """Take in that a server cannot be reached. An attempt that is cut short tells less than a wrong key did before,
        and does not hide it."""
        server = self.of(name, now)
        known = server.error if server.state == "down" and CUT_SHORT in why else None
        self._change(name, "down", now)
        self._note(name, known if known is not None and is_of_keys(known) else why, now)

    def on_native_outcome(self, route: Route, outcome: str, meta: Meta, now: float) -> None:
        """Give notice when a native server stops answering, once in LOG_AGAIN_S, and when it answers again after that.
        A native server has no link whose loss would show either. `outcome` is the bridge's."""
        unsent, name = meta.get("unsent") is True, route.name
        if outcome == UNREACHABLE and meta.get("reported") is not True:
            why = f"nobody answers at {route.native}" if unsent else f"no report came from {route.native}"
            self.on_lost(name, why, now)
            if self._away.get(name):
                return
            self._away[name] = now - self._told_at.get(name, -LOG_AGAIN_S) >= LOG_AGAIN_S
            if self._away[name]:
                self._told_at[name] = now
                if isinstance(reason := meta.get("why"), str):
                    why = f"{why}: {safe_note(reason)}"
                self._out.notice("server-lost", server=name, why=why)
        elif not unsent:  # any other unsent message was refused by the bridge itself
            self.on_reached(name, now)
            if self._away.pop(name, False):
                self._out.notice("server-reached", server=name)

    def on_refused(self, name: str, code: str, now: float) -> None:
        """Take in that a server has refused a message for now."""
        self._note(name, f"{code}: {CODES[code].meaning}" if code in CODES else code, now)

    def on_clock(self, name: str, clock_ms: object, wall_s: float, now: float) -> None:
        """Take in the wall clock of a server, in milliseconds since 1970, at `wall_s` of this one's."""
        if type(clock_ms) is int and 0 <= clock_ms <= MAX_CLOCK_MS:
            self.of(name, now).clock_off_s = clock_ms / 1000 - wall_s

    def adopt(self, held: frozenset[str]) -> None:
        """Hold messages back where another broker of this server was told to: some of its messages are here now."""
        for name in sorted(held - self.held):
            self.held.add(name)
            self._out.notice("server-held", server=name)

    def hold(self, name: str, *, held: bool) -> None:
        """Hold messages to a server back, or release them; the messages themselves are the caller's matter."""
        if held != (name in self.held):
            (self.held.add if held else self.held.discard)(name)
            self._out.writes.append(SaveHeld(name, held))
            self._out.notice("server-held" if held else "server-released", server=name)

    def _change(self, name: str, state: State, now: float) -> None:
        server = self.of(name, now)
        if server.state != state:
            server.state, server.since = state, now

    def _note(self, name: str, why: str, now: float) -> None:
        server = self.of(name, now)
        server.error, server.error_at = why[:MAX_WHY], now
