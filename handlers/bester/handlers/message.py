"""The message that a handler receives: data, sender, path, and the replies to it."""

from __future__ import annotations

from typing import Any

from bester.broker.wire.messages import Command
from bester.broker.wire.runs import Received
from bester.handlers.payload import HandlerError, value_of
from bester.handlers.reply import MISSING, body_of, send_clients, send_handler, send_servers

_new = tuple.__new__  # creates a command in half the time of its class


class Message:
    """A message for a handler. `user`, `scope` and `peer` are stamped here; others' `origin` and `path` are claims."""

    __slots__ = ("_data", "_request")

    _data: Any  # unset until the first access

    def __init__(self, request: Received) -> None:
        self._request = request

    def __repr__(self) -> str:
        return f"<Message {self.id} {self.type} user={self.user!r} {len(self.raw)} bytes>"

    @property
    def data(self) -> Any:
        """The payload, decoded at the first access; the same object every time."""
        try:
            return self._data
        except AttributeError:
            self._data = value_of(self._request.body)
            return self._data

    @property
    def raw(self) -> bytes:
        """The payload as received: JSON text, byte for byte."""
        return self._request.body

    @property
    def type(self) -> str:
        """The message type."""
        return self._request.type

    @property
    def user(self) -> str | None:
        """The sender; None for a message of a server, or of a handler's own initiative."""
        return self._request.user

    @property
    def id(self) -> str:
        """The server's id of this message, the same on every attempt."""
        return str(self._request.meta.get("id", ""))

    @property
    def root(self) -> str:
        """The id of the message that this one results from; its own id where it is the first."""
        return str(self._request.meta.get("root", self.id))

    @property
    def origin(self) -> str:
        """The server where the first message entered."""
        return str(self._request.meta.get("origin", ""))

    @property
    def peer(self) -> str | None:
        """The neighbouring server that sent the message; None for a client or a handler."""
        peer = self._request.meta.get("peer")
        return None if peer is None else str(peer)

    @property
    def scope(self) -> str:
        """The sender's kind: `client`, `server` or `handler`."""
        return str(self._request.meta.get("scope", "client"))

    @property
    def attempt(self) -> int:
        """1 at first, more after a worker died with the message."""
        return int(self._request.meta.get("attempt", 1))

    @property
    def shadow(self) -> bool:
        """True for a copy that a shadow gets, whose effects outside of its commands should not happen."""
        return self._request.meta.get("shadow") is True

    @property
    def traceparent(self) -> str | None:
        """The W3C `traceparent` under which the work on this message belongs into a trace; None: it has none."""
        parent = self._request.meta.get("traceparent")
        return None if parent is None else str(parent)

    @property
    def path(self) -> list[str]:
        """The steps so far as `server/type`, the present one not included."""
        return list(self._request.meta.get("path", ()))

    send_clients = staticmethod(send_clients)
    send_servers = staticmethod(send_servers)
    send_handler = staticmethod(send_handler)

    def reply(self, data: Any = MISSING, *, raw: bytes | str | None = None) -> Command:
        """Answer the sender, on every connection of that user. Raises HandlerError where no user sent the message."""
        user = self._request.user
        if user is None:
            raise HandlerError("there is no user to reply to: the message came from a server or a handler")
        body = raw if type(raw) is bytes and data is MISSING else body_of(data, raw)
        return _new(Command, ("sendClients", [user], body, None))
