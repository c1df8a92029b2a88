"""Errors of one client, put into words: each one line for people. Pure.

The last complaint of the server is kept, for a connection that is lost right after. No text ever holds a password.
"""

from __future__ import annotations

from bester.broker.wire.codes import CODES
from bester.client.errors import AuthenticationFailed, ClientError, ConnectFailed, ConnectionLost, ServerRefused
from bester.client.states import State


def known(reason: str, text: str) -> tuple[str, str]:
    """Return a code that errors can have, and the text with the reason: servers may give unknown reasons."""
    if reason in CODES:
        return reason, f"{text}: {reason} ({CODES[reason].meaning})"
    return "not-allowed", f"{text}: {reason!r} (an unknown reason)"


class Reasons:
    """Errors of one client, `user` of `server`."""

    def __init__(self, server: str, user: str) -> None:
        self._server = server
        self._user = user
        self.complaint: str | None = None
        """Code of the server's last report that names no message."""

    def refusal(self, reason: str, retry_s: float | None) -> ClientError:
        """Return the error of a refused login; a retry may be accepted after `retry_s`."""
        if reason == "authentication-failed":
            text = f"{self._server} does not accept user {self._user!r} with this password: check both"
            return AuthenticationFailed(reason, text)
        if reason == "unreachable":
            why = "what checks passwords there is out of reach, perhaps during a restart; try again in a moment"
            return ServerRefused(reason, f"{self._server} cannot log anybody in now: {why}")
        later = "" if retry_s is None else f" of {self._user!r} for another {retry_s:g} s"
        if reason == "tls-required":
            why = f"speaks TLS there: write tls://{self._server}"
            return ServerRefused(reason, f"{self._server} {why}")
        refused = ServerRefused(*known(reason, f"{self._server} refuses the login{later}"))
        refused.retry_s = retry_s
        return refused

    def loss(self, state: State, why: str, is_there: bool = False) -> ClientError:
        """Return the error of a connection that failed or broke in `state`; `why` in a few words. `is_there`: the
        server answered, and the failure has no other reason."""
        if is_there and state in (State.DIALLING, State.GREETING):
            return ConnectFailed("unreachable", f"cannot connect to {self._server}: {why}")
        if state is State.DIALLING:
            return ConnectFailed("unreachable", f"cannot connect to {self._server}: {why}; is it running there?")
        if state is State.GREETING:
            hint = "some servers do so where user or password is wrong"
            return ServerRefused("unreachable", f"no login at {self._server}: {why} ({hint})")
        return self.broken(why)

    def broken(self, why: str) -> ConnectionLost:
        """Return the error of a working connection that broke."""
        complaint = f", after the server complained: {self.complaint}" if self.complaint else ""
        return ConnectionLost("unreachable", f"the connection to {self._server} is lost: {why}{complaint}")

    def doubt(self) -> ConnectionLost:
        """Return the error of a message that may have been delivered, or not."""
        return self.broken("the message was sent but not reported on, and may have been delivered or not")

    def no_connection(self) -> ConnectionLost:
        """Return the error of a call that needs a connection while there is none."""
        return ConnectionLost("unreachable", f"there is no connection to {self._server} now")
