"""Why it does not work, put into words: the errors of one client, each one line for people. Pure.

It remembers what the server complained of last, for a connection that is lost right after. It must never hold a
password.
"""

from __future__ import annotations

from bester.broker.wire.codes import CODES
from bester.client.errors import AuthenticationFailed, ClientError, ConnectFailed, ConnectionLost, ServerRefused
from bester.client.states import State


def known(reason: str, text: str) -> tuple[str, str]:
    """Return a code that errors can have, and the text with the reason: servers may give reasons unheard of."""
    if reason in CODES:
        return reason, f"{text}: {reason} ({CODES[reason].meaning})"
    return "not-allowed", f"{text}: {reason!r} (no more is known)"


class Reasons:
    """The errors of one client, `user` of `server`."""

    def __init__(self, server: str, user: str) -> None:
        self._server = server
        self._user = user
        self.complaint: str | None = None
        """What the server could not take, where it does not say of which message."""

    def refusal(self, reason: str, retry_s: float | None) -> ClientError:
        """The server does not accept the login; it may after `retry_s`, where it said so."""
        if reason == "authentication-failed":
            text = f"{self._server} does not accept user {self._user!r} with this password: check both"
            return AuthenticationFailed(reason, text)
        if reason == "unreachable":
            why = "the part of it that knows the accounts is away, perhaps being restarted; try again in a moment"
            return ServerRefused(reason, f"{self._server} cannot log anybody in now: {why}")
        later = "" if retry_s is None else f" of {self._user!r} for another {retry_s:g} s"
        refused = ServerRefused(*known(reason, f"{self._server} refuses the login{later}"))
        refused.retry_s = retry_s
        return refused

    def loss(self, state: State, why: str) -> ClientError:
        """The connection could not be made, or is gone; `why` in a few words."""
        if state is State.DIALLING:
            return ConnectFailed("unreachable", f"cannot connect to {self._server}: {why}; is it running there?")
        if state is State.GREETING:
            hint = "some servers do so where user or password is wrong"
            return ServerRefused("unreachable", f"no login at {self._server}: {why} ({hint})")
        return self.lost(why)

    def lost(self, why: str) -> ConnectionLost:
        """A connection that worked is gone."""
        complaint = f", after the server complained: {self.complaint}" if self.complaint else ""
        return ConnectionLost("unreachable", f"the connection to {self._server} is lost: {why}{complaint}")

    def doubt(self) -> ConnectionLost:
        """Nobody knows what became of a message."""
        return self.lost("the message was sent but not reported on, and may have been delivered or not")

    def no_connection(self) -> ConnectionLost:
        """What needs a connection has none."""
        return ConnectionLost("unreachable", f"there is no connection to {self._server} now")
