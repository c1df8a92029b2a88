"""Commands of a handler's reply, each with its targets and body. Pure; nothing is sent here.

A command is complete when it is made: its body is JSON text already, so that a value that is not JSON fails inside the
handler, at the faulty line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from bester.broker.wire.arguments import check_text
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import FAILED, REFUSED, Command
from bester.broker.wire.notes import class_name, describe, safe_note
from bester.handlers.payload import HandlerError, QuietError, SchemaError, text_of

MISSING: Any = object()
"""Marks absent data; None is data."""


class ReplyError(BesterError):
    """A handler returned a value that is no reply."""

    def __init__(self, text: str) -> None:
        super().__init__("bad-reply", text)


class Verdict(NamedTuple):
    """Status, note and code of the REPLY to a message that failed. `is_expected`: the note says all, and no traceback
    is logged."""

    status: int
    note: str | None
    code: str | None
    is_expected: bool


def send_clients(users: Iterable[str], data: Any = MISSING, *, raw: bytes | str | None = None) -> Command:
    """Deliver `data` (or `raw`, JSON text that is passed on unchanged) to users of this server."""
    return Command("sendClients", _targets(users), body_of(data, raw))


def send_servers(
    servers: Iterable[str], data: Any = MISSING, *, as_type: str | None = None, raw: bytes | str | None = None
) -> Command:
    """Deliver to servers, by name or `host:port`, as type `as_type`, or as the type being answered."""
    if as_type is not None and type(as_type) is not str:
        raise TypeError(f"as_type is a message type, a string, not a {type(as_type).__name__}")
    return Command("sendServers", _targets(servers), body_of(data, raw), as_type)


def send_handler(type_: str, data: Any = MISSING, *, raw: bytes | str | None = None) -> Command:
    """Pass `data` to the handler of another type on this server; the report still goes to the first sender."""
    if type(type_) is not str:
        raise TypeError(f"send_handler() takes one type, a string, not a {type(type_).__name__}")
    return Command("sendHandler", [type_], body_of(data, raw))


def _targets(targets: Iterable[str]) -> list[str]:
    if type(targets) is str:
        return [targets]
    try:
        found = [targets] if isinstance(targets, str) else list(targets)  # a name of an enum is no list of letters
    except TypeError:
        raise TypeError(f"targets are strings, one or several, not a {type(targets).__name__}") from None
    for target in found:
        if type(target) is not str:
            raise TypeError(f"targets are strings, not {type(target).__name__}")
    return found


def body_of(data: Any, raw: bytes | str | None) -> bytes:
    """Return the JSON text of `data`, or `raw` unchanged. Raises TypeError or ValueError where neither is JSON."""
    if raw is None:
        if data is MISSING:
            raise TypeError("no data: give data, or JSON text as raw=…")
        return text_of(data)
    if data is not MISSING:
        raise TypeError("give data or raw, not both")
    if type(raw) is bytes:
        return raw
    if isinstance(raw, str):
        check_text("raw", raw)
        return raw.encode()
    if isinstance(raw, bytes | bytearray | memoryview):
        return bytes(raw)
    raise TypeError(f"raw is JSON text, as bytes or a string, not a {type(raw).__name__}")


def commands_of(result: Any) -> list[Command]:
    """Return a handler's result as commands: one, a list of them, or none. Raises ReplyError for anything else."""
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
    """Return the verdict on a message whose handler raised `error`; never raises.

    The type is asked, not the exception: `isinstance` looks up `__class__`, which may raise.
    """
    kind = type(error)
    if issubclass(kind, HandlerError):
        return Verdict(REFUSED, _text_of(error), "schema" if issubclass(kind, SchemaError) else None, is_expected=True)
    if issubclass(kind, ReplyError):
        return Verdict(FAILED, _text_of(error), "bad-reply", is_expected=True)
    if issubclass(kind, QuietError):
        return Verdict(FAILED, _text_of(error), None, is_expected=True)
    return Verdict(FAILED, describe(error), None, is_expected=False)


def _text_of(error: Any) -> str | None:
    try:
        text = error.text
    except BaseException:  # noqa: BLE001 (a subclass may skip our __init__, or define `text` otherwise)
        return None
    return safe_note(text) if issubclass(type(text), str) else None
