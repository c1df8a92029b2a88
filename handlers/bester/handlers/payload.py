"""JSON text ⇄ Python values, with msgspec where it is installed and the standard library where it is not.

Text that a handler only passes on is never decoded: decoding happens at the first access. Only payloads typed by
annotation need msgspec, and raise at their declaration without it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from bester.broker.wire.arguments import HALF
from bester.broker.wire.codes import BesterError
from bester.broker.wire.finite import NOT_FINITE, see_finite
from bester.handlers.misfit import place_of, sentence_of, sentence_of_pydantic

msgspec: Any
try:
    import msgspec
except ImportError:  # a handler's machine may have pyzmq and msgpack alone
    msgspec = None

_read = None if msgspec is None else msgspec.json.Decoder(float_hook=float).decode  # its own: 15 µs for each of 1e300
HALF_TEXT = f"a text of the data {HALF}"
LONG_BYTES = 16 * 1024
"""Texts from this length on may hold so many values that the garbage collector runs many times."""
_raised: list[int] = []  # the number of objects with which the garbage collector begins, while it is a higher one
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


def _plain_fields(value: object) -> Any:
    if (model := _pydantic_model(type(value))) is not None:
        return model.model_dump(value, mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} is not JSON; send dicts, lists, strings, numbers, booleans, None")


_dump = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=True, default=_plain_fields
).encode


def _stdlib_text(value: Any) -> bytes:
    try:
        return _dump(value).encode()
    except UnicodeEncodeError:
        raise ValueError(HALF_TEXT) from None
    except ValueError as error:
        raise ValueError(NOT_FINITE if "float" in str(error) else str(error)) from None


def _msgspec_text(value: Any) -> bytes:
    try:
        text: bytes = msgspec.json.encode(value, enc_hook=_plain_fields)
    except UnicodeEncodeError:
        raise ValueError(HALF_TEXT) from None
    see_finite(value, text, _builtins)
    return text


def _builtins(value: Any, **options: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=_plain_fields, **options)


text_of: Callable[[Any], bytes] = _stdlib_text if msgspec is None else _msgspec_text
"""Encode a value as compact JSON. Raises TypeError or ValueError for a value that is not JSON."""


def value_of(text: bytes) -> Any:
    """Decode JSON text, beyond msgspec's numbers by the standard library: 1e400, and an integer of more digits than
    Python reads, are infinite.

    A long text is decoded without the garbage collector, which would look at the values again and again as they become
    more: two hundred thousand lists took three times as long.
    """
    if len(text) < LONG_BYTES or not gc.isenabled():
        return _value_of(text)
    gc.disable()
    try:
        return _value_of(text)
    finally:
        _overlook_new()
        gc.enable()


def _overlook_new() -> None:
    """Let the garbage collector wait for as many more objects as there are new ones, until the loop's next turn: most
    handlers have ended by then, and their values are gone. Looking once at two hundred thousand lists takes longer than
    writing them. A value of JSON has no cycles, which alone need a collector. In a thread without a loop nothing is
    changed."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    usual, *older = gc.get_threshold()
    if usual and not _raised:
        raised = usual + gc.get_count()[0]
        _raised.append(raised)
        gc.set_threshold(raised, *older)
        loop.call_soon(_look_again, usual, raised)


def _look_again(usual: int, raised: int) -> None:
    """Have the garbage collector begin with as many objects as before."""
    _raised.clear()
    before, *older = gc.get_threshold()
    if before == raised:  # nobody else has changed the number
        gc.set_threshold(usual, *older)


def _value_of(text: bytes) -> Any:
    if _read is not None:
        try:
            return _read(text)
        except msgspec.DecodeError:
            pass
    return json.loads(text, parse_int=_integer)


def _integer(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


class Typed(NamedTuple):
    """Decoder of one declared type (`decode` raises SchemaError), and its JSON Schema."""

    decode: Callable[[bytes], Any]
    schema: dict[str, Any]


def _pydantic_model(declared: Any) -> Any:
    """Return the class where it is a model of pydantic; pydantic is never imported here."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(declared, type) or not issubclass(declared, pydantic.BaseModel):
        return None
    return declared


def _typed_by_pydantic(model: Any) -> Typed:
    import pydantic

    def decode(text: bytes) -> Any:
        """Return the payload as a value of the declared type. Raises SchemaError."""
        try:
            return model.model_validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, HandlerError):  # a validator's own refusal
                raise cause from None
            raise SchemaError(sentence_of_pydantic(first["type"], place_of(first["loc"]))) from None

    return Typed(decode, model.model_json_schema())


def typed(declared: Any) -> Typed:
    """Return the decoder of a declared type: a msgspec Struct, a dataclass, a pydantic model, or any type that msgspec
    can check.

    Raises TypeError without msgspec (but for a pydantic model), and for a type that msgspec cannot check.
    """
    if (model := _pydantic_model(declared)) is not None:
        return _typed_by_pydantic(model)
    if msgspec is None:
        raise TypeError(MSGSPEC_NEEDED)
    read = msgspec.json.Decoder(declared).decode
    schema = msgspec.json.schema(declared)

    def decode(text: bytes) -> Any:
        """Return the payload as a value of the declared type. Raises SchemaError."""
        try:
            return read(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SchemaError(sentence_of(error)) from error.__cause__

    return Typed(decode, schema)
