"""What a handler answers: commands, each saying where data goes. Pure; nothing is sent here.

A command is complete when it is made: its body is JSON text by then, so that what cannot be written fails inside
the handler, at the line that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import FAILED, REFUSED, Command
from bester.broker.wire.notes import class_name, describe, safe_note
from bester.handlers.payload import HandlerError, QuietError, SchemaError, text_of

MISSING: Any = object()
"""No data was given; None is data."""


class ReplyError(BesterError):
    """What a handler returned is no reply."""

    def __init__(self, text: str) -> None:
        super().__init__("bad-reply", text)


class Verdict(NamedTuple):
    """How a message ends that was not handled: the status, note and code of its REPLY. `told`: the log needs no
    traceback, for the note says all."""

    status: int
    note: str | None
    code: str | None
    told: bool


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
    if type(raw) is bytes:
        return raw
    if isinstance(raw, str):
        return raw.encode()
    if isinstance(raw, bytes | bytearray | memoryview):
        return bytes(raw)
    raise TypeError(f"raw is JSON text, as bytes or a string, not a {type(raw).__name__}")


def commands_of(result: Any) -> list[Command]:
    """Read what a handler returned: a command, a list of them, or None. Raises ReplyError for anything else."""
    if type(result) is Command:
        return [result]
    if result is None:
        return []
    kind = type(result)
    if (kind is list or kind is tuple) and all(type(item) is Command for item in result):
        return list(result)
    raise ReplyError(
        f"the handler returned a {class_name(result)}; return message.send_…(…), message.reply(…), "
        "a list of these, or None"
    )


def verdict_on(error: BaseException) -> Verdict:
    """Say how a message ends over whose handling this was raised; whatever it is, this does not fail.

    The class is asked, never the exception: `isinstance` looks up `__class__`, which may raise.
    """
    kind = type(error)
    if issubclass(kind, HandlerError):
        return Verdict(REFUSED, _text_of(error), "schema" if issubclass(kind, SchemaError) else None, told=True)
    if issubclass(kind, ReplyError):
        return Verdict(FAILED, _text_of(error), "bad-reply", told=True)
    if issubclass(kind, QuietError):
        return Verdict(FAILED, _text_of(error), None, told=True)
    return Verdict(FAILED, describe(error), None, told=False)


def _text_of(error: Any) -> str | None:
    try:
        text = error.text
    except BaseException:  # noqa: BLE001 (a subclass did not call ours, or has its own idea of `text`)
        return None
    return safe_note(text) if issubclass(type(text), str) else None
