"""Names of the stock protocols: `user` of this server, `user@server` of another one.

A server speaks for its own users alone: the part behind the `@` comes from the broker, which has verified the sender,
never from a message. So a name from another server has no `@`, and neither has a user of this server who takes part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bester.broker.wire.messages import MAX_USER
from bester.handlers import HandlerError, Message

MAX_SERVER = 255
"""Characters of a server's name or HOST:PORT."""


class Address(NamedTuple):
    """A name, and its server; `server` is "" for this one."""

    name: str
    server: str

    def __str__(self) -> str:
        return f"{self.name}@{self.server}" if self.server else self.name


def bare(value: Any, what: str) -> str:
    """Return a name without a server. Raises HandlerError for anything else."""
    if isinstance(value, str) and 0 < len(value) <= MAX_USER and _is_plain(value) and "@" not in value:
        return value
    raise HandlerError(f"{what} is 1 to {MAX_USER} printable characters without @ and without blanks at the ends")


def address(message: Message, value: Any, what: str) -> Address:
    """Return the address in a user's message. Raises HandlerError for anything that is none."""
    name, at, server = value.rpartition("@") if isinstance(value, str) and "@" in value else (value, "", "")
    if at and not (0 < len(server) <= MAX_SERVER and _is_plain(server)):
        raise HandlerError(f"{what}: the server behind the @ has 1 to {MAX_SERVER} printable characters")
    return Address(bare(name, what), "" if server == message.origin else server)


def writer(message: Message, data: dict[str, Any], key: str) -> Address:
    """Return the verified sender: a user of this server, or the one that a server names in `key` as its own."""
    if message.user is not None:
        return Address(bare(message.user, "the name of a user who takes part"), "")
    if message.peer is None:
        raise HandlerError(f"{message.type} takes messages of users and of other servers, not of handlers")
    return Address(bare(data.get(key), f'"{key}"'), message.peer)


def seen_from(peer: str, value: Any) -> Any:
    """Return a name in a message of a server as it is called here: the server's own users with its name behind."""
    return f"{value}@{peer}" if isinstance(value, str) and "@" not in value else value


def text(value: Any, what: str, most: int, least: int = 1) -> str:
    """Return a text of at most `most` characters. Raises HandlerError for anything else."""
    if isinstance(value, str) and least <= len(value) <= most:
        return value
    raise HandlerError(f"{what} is a text of {least} to {most:,} characters")


def table(message: Message, example: str) -> dict[str, Any]:
    """Return a message's data, a JSON object. Raises HandlerError for anything else."""
    if isinstance(message.data, dict):
        return message.data
    raise HandlerError(f"{message.type}: send {example}")


def _is_plain(value: str) -> bool:
    return value.isprintable() and value == value.strip()
