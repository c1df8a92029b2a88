"""What a client's core tells its shell: one value for each thing that happened. Pure."""

from __future__ import annotations

from typing import NamedTuple

from bester.client.errors import ClientError
from bester.client.frames import Message, Report


class Reported(NamedTuple):
    """The report on a message."""

    id: str
    report: Report


class Failed(NamedTuple):
    """A message will never be reported on, or a question never answered."""

    id: str
    error: ClientError


class Arrived(NamedTuple):
    """A message was received, for the first time."""

    message: Message


class Ponged(NamedTuple):
    """A ping was answered."""

    id: str


class Answered(NamedTuple):
    """A question about a message was answered: name -> outcome, or None where the server does not say."""

    id: str
    recipients: dict[str, str] | None


class Ready(NamedTuple):
    """Logged in."""


class Lost(NamedTuple):
    """The connection is void: drop it, and dial again at `retry_at`."""

    error: ClientError
    retry_at: float


class Ended(NamedTuple):
    """All is over; drop the connection. `error` is why, None where the application wished it."""

    error: ClientError | None


Event = Reported | Failed | Arrived | Ponged | Answered | Ready | Lost | Ended
