"""Decode what a handler has sent, strictly, and encode what a broker sends. Pure.

Written from docs/fabric-protocol.md with msgpack alone, so that Bester's own codec does not judge itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types

from bester.conform.match import packed, shown
from bester.conform.result import Unseen

OPS = {
    "HELLO": 1, "WELCOME": 2, "HEARTBEAT": 3, "GOODBYE": 4, "ERROR": 5, "REQUEST": 10, "REPLY": 11, "EMIT": 12,
    "OUTCOME": 13, "ASK": 14, "ANSWER": 15,
}  # fmt: skip
NAMES = {op: name for name, op in OPS.items()}
MOST_MESSAGES = 1024
MOST_INTEGER = 2**53 - 1
INLINE_BYTES = 16 * 1024
MAX_BODY = 16 * 1024 * 1024
"""Longest body in bytes, as the scripted broker's WELCOME announces."""


def _integer(value: Any) -> bool:
    return type(value) is int


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _nil_or(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _array(value: Any) -> bool:
    return isinstance(value, list)


def _map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


_Check = Callable[[Any], bool]
# Fields of a handler's messages: the least number, and a check for each.
FIELDS: dict[str, tuple[int, tuple[tuple[str, _Check], ...]]] = {
    "HELLO": (3, (("version", _integer), ("role", _text), ("name", _text), ("options", _nil_or(_map)))),
    "HEARTBEAT": (0, ()),
    "GOODBYE": (0, (("reason", _nil_or(_text)),)),
    "ERROR": (2, (("code", _text), ("text", _text), ("op", _nil_or(_integer)), ("token", _nil_or(_integer)))),
    "REPLY": (3, (("token", _integer), ("status", _integer), ("commands", _array), ("note", _nil_or(_text)),
                  ("code", _nil_or(_text)))),
    "EMIT": (3, (("token", _integer), ("type", _text), ("commands", _array), ("meta", _nil_or(_map)))),
    "ASK": (2, (("token", _integer), ("question", _text))),
}  # fmt: skip


class Heard(NamedTuple):
    """A message of a handler: name, fields, the link by which the message came, and the attachments beside it."""

    name: str
    fields: list[Any]
    link: bytes
    attached: list[bytes]


def read(link: bytes, frames: Sequence[bytes]) -> list[Heard]:
    """Return the messages of one ZeroMQ message. Raises Unseen where the frames break the page's format."""
    try:
        batch = msgpack.unpackb(frames[0], raw=False, strict_map_key=False)
    except Exception as error:  # noqa: BLE001 (msgpack raises a dozen kinds)
        raise Unseen(f"frame 0 is no MessagePack: {type(error).__name__} {error}: {frames[0][:40].hex()}") from None
    if not isinstance(batch, list) or not 1 <= len(batch) <= MOST_MESSAGES:
        raise Unseen(f"frame 0 is no array of 1 to {MOST_MESSAGES} messages: {shown(batch)}")
    return [_read_one(link, message, list(frames[1:])) for message in batch]


def _read_one(link: bytes, message: Any, attached: list[bytes]) -> Heard:
    if not isinstance(message, list) or not message or type(message[0]) is not int:
        raise Unseen(f"a message is no array that begins with an op: {shown(message)}")
    name = NAMES.get(message[0], "")
    if name not in FIELDS:
        raise Unseen(f"a handler does not say op {message[0]}: {shown(message)}")
    fields = message[1:]
    least, checks = FIELDS[name]
    if len(fields) < least:
        raise Unseen(f"{name} has {len(fields)} fields, it needs {least}: {shown(message)}")
    for (label, check), value in zip(checks, fields, strict=False):
        if not check(value):
            raise Unseen(f"{name}: {label} is {shown(value)}{packed(value)}")
    _check_integers(name, fields)
    return Heard(name, fields, link, attached)


def _check_integers(name: str, value: Any) -> None:
    if type(value) is int and abs(value) > MOST_INTEGER:
        raise Unseen(f"{name} holds the integer {value}, beyond 2^53 - 1")
    if isinstance(value, msgpack.ExtType):
        raise Unseen(f"{name} holds an extension type: {shown(value)}")
    if isinstance(value, list):
        for each in value:
            _check_integers(name, each)
    elif isinstance(value, dict):
        for each in value.values():
            _check_integers(name, each)


def body_of(body: Any, attached: Sequence[bytes]) -> Any:
    """Return the JSON value of a body. Raises Unseen where there is none."""
    if type(body) is int:
        if not 1 <= body <= len(attached):
            raise Unseen(f"a body is attachment {body}, and {len(attached)} are attached")
        body = attached[body - 1]
    if not isinstance(body, bytes | str):
        raise Unseen(f"a body is {shown(body)}, neither bytes nor the number of an attachment")
    try:
        return json.loads(body if isinstance(body, str) else body.decode())
    except ValueError as error:
        raise Unseen(f"a body is no JSON in UTF-8 ({error}): {shown(body)}") from None


def pack(messages: Sequence[Any]) -> bytes:
    """Return frame 0 of a ZeroMQ message."""
    packed: bytes = msgpack.packb(list(messages), use_bin_type=True)
    return packed


def pack_widely(messages: Sequence[Any]) -> bytes:
    """Return frame 0 with every header and integer of the messages themselves in its longest form."""
    whole = b"\xdd" + struct.pack(">I", len(messages))
    for each in messages:
        whole += b"\xdd" + struct.pack(">I", len(each))
        for field in each:
            wide = b"\xd3" + struct.pack(">q", field) if type(field) is int else msgpack.packb(field)
            if isinstance(field, bytes):
                wide = b"\xc6" + struct.pack(">I", len(field)) + field
            elif isinstance(field, str):
                wide = b"\xdb" + struct.pack(">I", len(field.encode())) + field.encode()
            whole += wide
    return whole


def value(written: Any, names: dict[str, Any]) -> Any:
    """Return the value to send for a value that a case file writes in JSON.

    `"$name"` is a variable, `{"bin": "text"}` and `{"hex": "00ff"}` are bytes, `{"fill": ["A", 1000]}` repeats a text.
    """
    if isinstance(written, list):
        return [value(each, names) for each in written]
    if isinstance(written, dict):
        if set(written) == {"bin"}:
            return str(value(written["bin"], names)).encode()
        if set(written) == {"hex"}:
            return bytes.fromhex(written["hex"])
        if set(written) == {"fill"}:
            return written["fill"][0] * written["fill"][1]
        return {key: value(each, names) for key, each in written.items()}
    if isinstance(written, str) and written.startswith("$") and written[1:] in names:
        return names[written[1:]]
    return written


def message(written: Any, names: dict[str, Any]) -> Any:
    """Return a message whose op is written by name or as its number; a value that is no array is returned unchanged."""
    if not isinstance(written, list) or not written:
        return written
    op = OPS.get(written[0], written[0]) if isinstance(written[0], str) else written[0]
    rest: list[Any] = value(written[1:], names)
    return [op, *rest]
