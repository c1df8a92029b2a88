"""Errors of a client: one small tree, each error one line for people."""

# ruff: noqa: N818 - the names state the event, as a sentence would: "connection lost"

from __future__ import annotations

from bester.broker.wire.codes import BesterError


class ClientError(BesterError):
    """Root of a client's errors; `code` is a reason as in reports, `str()` is one line for people."""

    def __str__(self) -> str:
        return self.text


class ConnectFailed(ClientError):
    """The first connection could not be made, or was not answered."""


class AuthenticationFailed(ClientError):
    """The server does not accept this user with this password; a retry would not help."""


class ServerRefused(ClientError):
    """The server refuses this client, for another reason than its password, or without giving one.

    `retry_s`: seconds after which the server may accept; None where the server names no time.
    """

    retry_s: float | None = None


class ConnectionLost(ClientError):
    """The connection was lost before the report: the message may have been delivered, or not."""


class ClientClosed(ClientError):
    """The client has ended; the message or question was never sent."""


class WindowFull(ClientError):
    """The window is full of unreported messages: `await client.room()` first."""


class MessageTooLarge(ClientError):
    """The message makes a longer frame than the server accepts. Only this message fails: the connection goes on.

    `submit` and `send` raise this error before sending. A future fails with it where the server after a reconnect
    accepts less than the one before, and where a server that names no limit refused the frame; the text then says
    whether the message had been sent before.
    """
