"""Steps: what a session asks for after an event. Frames are written first, then messages go to the broker, and notices
to the bridge. Types alone, and what makes them.
"""

from __future__ import annotations

from typing import NamedTuple

from bester.bridge.window import Question
from bester.broker.wire.messages import Close, Login, Report, Submit

UNIX_HOST = "unix"
"""Host of a peer on a Unix socket."""


class Acknowledged(NamedTuple):
    """Acknowledgement by the client: it has received the frames with these ids."""

    ids: list[str]


class NewPassword(NamedTuple):
    """Wish of a client for another password, counted as a question. The passwords are never shown."""

    question: Question
    old: str
    new: str
    address: str

    @property
    def token(self) -> int:
        """Return the token under which the answer comes."""
        return self.question.token


class Doubted(NamedTuple):
    """Notice of a first frame too large for a stranger, from a host that may be a listed server."""

    host: str


class SpokeTls(NamedTuple):
    """Notice of a handshake of TLS at a listener of plain text."""


class Step(NamedTuple):
    """Result of an event: frames to write, in order, and then messages for the broker, in order."""

    write: list[bytes]
    send: list[Login | Submit | Close | Acknowledged | Question | NewPassword | Doubted | SpokeTls]


def nothing() -> Step:
    """Return a step that asks for nothing yet; a session adds to it."""
    return Step([], [])


def guesser(host: str) -> str:
    """Return the address to which a wrong password is ascribed; empty for all peers on Unix sockets, which share one:
    the wrong passwords of one must not delay the others."""
    return "" if host == UNIX_HOST else host


def refusal(token: int, reason: str) -> Report:
    """Return the bridge's own report on a message that the broker does not get."""
    return Report(token, 1, reason, None, {})
