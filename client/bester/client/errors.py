"""What can go wrong for a client: one small tree, each error one line for people."""

# ruff: noqa: N818 - the names say what happened, as a sentence would: "connection lost"

from __future__ import annotations

from bester.broker.wire.codes import BesterError


class ClientError(BesterError):
    """The root of what a client raises; `code` is a reason as in reports, `str()` is one line for people."""

    def __str__(self) -> str:
        return self.text


class ConnectFailed(ClientError):
    """The first connection could not be made, or nobody answered on it."""


class AuthenticationFailed(ClientError):
    """The server does not accept this user with this password. Trying again would not help."""


class ServerRefused(ClientError):
    """The server would not have this client, for another reason than its password, or without giving one.

    `retry_s`: it may after so many seconds; None where the server did not say.
    """

    retry_s: float | None = None


class ConnectionLost(ClientError):
    """The connection went before the report came: the message may have been delivered, or not."""


class ClientClosed(ClientError):
    """The client has ended; what this is raised for was never sent."""


class WindowFull(ClientError):
    """Too much is unreported already: `await client.room()` first."""


class MessageTooLarge(ClientError):
    """The message makes a longer frame than the server takes. It ends alone: the connection and other messages go on.

    Raised by `submit` and `send` it was not sent. A future fails with it where the server that the client came back to
    takes less than the one before, and where a server refused the frame without having said how much it takes; the text
    says whether the message had been sent before.
    """
