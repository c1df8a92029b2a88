"""JSON text ⇄ Python values, with msgspec where it is installed and the standard library where it is not.

Text that a handler only passes on is never decoded: decoding happens at the first access. Only payloads typed by
annotation need msgspec, and raise at their declaration without it.
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
except ImportError:  # a handler's machine may have pyzmq and msgpack alone
    msgspec = None

MSGSPEC_NEEDED = "a payload typed by annotation needs msgspec: pip install msgspec, or take `message` alone"


class HandlerError(BesterError):
    """Raised in a handler to refuse a message: `text` is the note in the sender's report, 500 characters at most.

    No traceback is logged. Any other exception is a failure of the handler, and its text stays out of the report.
    """

    _report_reason = "refused"  # reason in the sender's report; a subclass may have a `reason` of its own

    def __init__(self, text: str) -> None:
        super().__init__(self._report_reason, str(text))


class SchemaError(HandlerError):
    """Refusal of a message whose data does not fit the handler's declared type; `text` holds the path and the expected
    type. The sender's report has the reason `schema`."""

    _report_reason = "schema"


class QuietError(BesterError):
    """A failure of the handler that is logged without a traceback."""

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
"""Encode a value as compact JSON. Raises TypeError or ValueError for a value that is not JSON."""


def value_of(text: bytes) -> Any:
    """Decode JSON text. Valid JSON beyond msgspec's numbers (1e400) is decoded by the standard library."""
    if msgspec is not None:
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            pass
    return json.loads(text)


class Typed(NamedTuple):
    """Decoder of one declared type (`decode` raises SchemaError), and its JSON Schema."""

    decode: Callable[[bytes], Any]
    schema: dict[str, Any]


def typed(declared: Any) -> Typed:
    """Return the decoder of a declared type: a msgspec Struct, a dataclass, or any type that msgspec can check.

    Raises TypeError without msgspec, and for a type that msgspec cannot check.
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
