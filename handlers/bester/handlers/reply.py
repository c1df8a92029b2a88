"""What a handler answers: commands, each saying where data goes. Pure; nothing is sent here.

A command is complete when it is made: its body is JSON text by then, so that what cannot be written fails inside
the handler, at the line that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bester.broker.wire.messages import Command
from bester.handlers.payload import HandlerError, text_of

MISSING: Any = object()
"""No data was given; None is data."""
NOTE_CHARACTERS = 500
"""Longer notes are cut: they are for an operator's eye."""


def send_clients(users: Iterable[str], data: Any = MISSING, *, raw: bytes | str | None = None) -> Command:
    """Deliver `data` (or `raw`, JSON text that is passed on untouched) to users of this server."""
    return Command("sendClients", _targets(users), body_of(data, raw))


def send_servers(
    servers: Iterable[str], data: Any = MISSING, *, as_type: str | None = None, raw: bytes | str | None = None
) -> Command:
    """Deliver to servers, by name or `host:port`; they get it as `as_type`, or as the type being answered."""
    return Command("sendServers", _targets(servers), body_of(data, raw), as_type)


def send_handler(type_: str, data: Any = MISSING, *, raw: bytes | str | None = None) -> Command:
    """Hand `data` to the handler of another type on this server; the sender stays who is reported to."""
    if type(type_) is not str:
        raise TypeError(f"send_handler() takes one type, a string, not a {type(type_).__name__}")
    return Command("sendHandler", [type_], body_of(data, raw))


def _targets(targets: Iterable[str]) -> list[str]:
    if type(targets) is str:  # one name is meant, not its letters
        return [targets]
    found = list(targets)
    for target in found:
        if type(target) is not str:
            raise TypeError(f"targets are strings, not {type(target).__name__}")
    return found


def body_of(data: Any, raw: bytes | str | None) -> bytes:
    """Return the JSON text of `data`, or `raw` as it is. Raises TypeError or ValueError where that is not possible."""
    if raw is None:
        if data is MISSING:
            raise TypeError("what is to be sent? give data, or JSON text as raw=…")
        return text_of(data)
    if data is not MISSING:
        raise TypeError("give data or raw, not both")
    return raw if type(raw) is bytes else raw.encode() if isinstance(raw, str) else bytes(raw)


def commands_of(result: Any) -> list[Command]:
    """Read what a handler returned: a command, a list of them, or None. Raises HandlerError for anything else."""
    if type(result) is Command:
        return [result]
    if result is None:
        return []
    if type(result) in (list, tuple) and all(type(item) is Command for item in result):
        return list(result)
    raise HandlerError(
        f"the handler returned a {type(result).__name__}; return message.send_…(…), message.reply(…), "
        "a list of these, or None"
    )


def note_of(error: BaseException) -> str:
    """Say in one line why a handler failed."""
    if isinstance(error, HandlerError):
        note = error.text
    else:
        note = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return note if len(note) <= NOTE_CHARACTERS else note[: NOTE_CHARACTERS - 1] + "…"
