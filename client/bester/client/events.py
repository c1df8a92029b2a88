"""Values that a client's core returns to its shell, one for each event. Pure."""

from __future__ import annotations

from typing import NamedTuple

from bester.client.errors import ClientError
from bester.client.frames import Message, Report


class Reported(NamedTuple):
    """The report on a message."""

    id: str
    report: Report


class Failed(NamedTuple):
    """A message that will never be reported on, or a question that will never be answered."""

    id: str
    error: ClientError


class Arrived(NamedTuple):
    """A message received for the first time."""

    message: Message


class Ponged(NamedTuple):
    """The answer to a ping."""

    id: str


class Answered(NamedTuple):
    """The answer to a question about a message: name -> outcome, or None where the server does not know."""

    id: str
    recipients: dict[str, str] | None


class Ready(NamedTuple):
    """The login was accepted."""


class Lost(NamedTuple):
    """The connection is void: the shell drops it, and dials again at `retry_at`."""

    error: ClientError
    retry_at: float


class Ended(NamedTuple):
    """The end of the client; the shell drops the connection. `error`: the cause, None where the application closed."""

    error: ClientError | None


Event = Reported | Failed | Arrived | Ponged | Answered | Ready | Lost | Ended
