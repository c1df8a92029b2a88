"""JSON text ⇄ Python values, with msgspec where it is installed and the standard library where it is not.

Text that a handler only passes on is never decoded: decoding happens when somebody asks for the value. Nothing
here needs msgspec but payloads typed by annotation, and those say so when they are declared.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from bester.broker.wire.codes import BesterError
from bester.broker.wire.finite import NOT_FINITE, see_finite
from bester.handlers.misfit import sentence_of

msgspec: Any
try:
    import msgspec
except ImportError:  # a handler's machine may hold pyzmq and msgpack alone
    msgspec = None

MSGSPEC_NEEDED = "a payload typed by annotation needs msgspec: pip install msgspec, or take `message` alone"


class HandlerError(BesterError):
    """Raise it in a handler to refuse a message: `text` is told to the sender, in its report, 500 characters at most.

    No traceback is logged. Any other exception is a failure of the handler's: the sender learns that, and no more.
    """

    _told_as = "refused"  # what the sender's report says; a subclass may well have a `reason` of its own

    def __init__(self, text: str) -> None:
        super().__init__(self._told_as, str(text))


class SchemaError(HandlerError):
    """Refuses a message whose data does not fit the type that its handler declared; `text` says where, and what was
    expected there. The sender's report has the reason `schema`."""

    _told_as = "schema"


class QuietError(BesterError):
    """A failure of the handler's, as any exception is, of which the log needs no traceback."""

    def __init__(self, text: str) -> None:
        super().__init__("handler-failed", text)


def _dataclass_fields(value: object) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} is not JSON; send dicts, lists, strings, numbers, booleans, None")


_dump = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=True, default=_dataclass_fields
).encode


def _stdlib_text(value: Any) -> bytes:
    try:
        return _dump(value).encode()
    except ValueError as error:
        raise ValueError(NOT_FINITE if "float" in str(error) else str(error)) from None


def _msgspec_text(value: Any) -> bytes:
    text: bytes = msgspec.json.encode(value)
    see_finite(value, text, msgspec.to_builtins)
    return text


text_of: Callable[[Any], bytes] = _stdlib_text if msgspec is None else _msgspec_text
"""Write a value as compact JSON. Raises TypeError or ValueError where it is not JSON."""


def value_of(text: bytes) -> Any:
    """Read JSON text. What is valid JSON but beyond msgspec's numbers (1e400) is read as the standard library does."""
    if msgspec is not None:
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            pass
    return json.loads(text)


class Typed(NamedTuple):
    """How data of one declared type is read (`decode` raises SchemaError), and its JSON Schema."""

    decode: Callable[[bytes], Any]
    schema: dict[str, Any]


def typed(declared: Any) -> Typed:
    """Prepare to read payloads of a declared type: a msgspec Struct, a dataclass, or anything msgspec can check.

    Raises TypeError where msgspec is missing or the type is not one it can check.
    """
    if msgspec is None:
        raise TypeError(MSGSPEC_NEEDED)
    read = msgspec.json.Decoder(declared).decode
    schema = msgspec.json.schema(declared)

    def decode(text: bytes) -> Any:
        try:
            return read(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SchemaError(sentence_of(error)) from error.__cause__

    return Typed(decode, schema)
