"""Runs: what a handler receives or sends in one batch, read and written in one piece where its shape is the usual one.

A batch of requests alone is read by msgspec into values with the fields of a Request, and a batch of replies alone is
packed as rows. Both functions return None for any other batch, and for every batch that holds a fault: `codec` decodes
and encodes those, and says what is wrong. For the rest the result equals that of `codec`, value for value and byte for
byte. Without msgspec only replies are handled here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.codec import BATCH_BYTES, MAX_ITEMS
from bester.broker.wire.messages import (
    INLINE_BYTES,
    MAX_BATCH,
    MAX_TOKEN,
    OP_OF,
    Command,
    Message,
    Meta,
    Reply,
    Request,
)

msgspec: Any
try:
    import msgspec
except ImportError:  # a handler's machine may have pyzmq and msgpack alone
    msgspec = None

_REQUEST, _REPLY = OP_OF[Request], OP_OF[Reply]
_REPLIES = {Reply}


class Received(Protocol):
    """A request as a handler's process holds it: a Request, or a value with its fields."""

    @property
    def token(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def user(self) -> str | None: ...
    @property
    def meta(self) -> Meta: ...


def _requests_decoder() -> Callable[[bytes], Sequence[Received]] | None:
    if msgspec is None:
        return None
    # Values of other kinds than these (bin, nested maps) are rare in a meta, and extension types are refused: msgspec
    # would read some of them as times.
    texts = Annotated[list[str], msgspec.Meta(max_length=MAX_ITEMS)]
    fields = [
        ("token", Annotated[int, msgspec.Meta(ge=-MAX_TOKEN, le=MAX_TOKEN)]),
        ("type", str),
        ("body", bytes),
        ("user", str | None),
        ("meta", dict[str, str | int | float | bool | texts | None]),
    ]
    row = msgspec.defstruct(
        "ReadRequest",
        fields,
        array_like=True,
        tag=_REQUEST,
        tag_field="op",
        forbid_unknown_fields=True,
        frozen=True,
        gc=False,
    )
    batch = Annotated[list[row], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]  # type: ignore[valid-type]  # made above
    decode: Callable[[bytes], Sequence[Received]] = msgspec.msgpack.Decoder(batch).decode
    return decode


_decode = _requests_decoder()
_pack: Callable[[Any], bytes] = (
    msgpack.Packer(autoreset=True).pack if msgspec is None else msgspec.msgpack.Encoder().encode
)


def read_requests(frames: Sequence[bytes]) -> Sequence[Received] | None:
    """Return the requests of a ZeroMQ message; None where `codec.decode` must read the message."""
    if _decode is None or len(frames) != 1:
        return None
    try:
        return _decode(frames[0])
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return None


def write_replies(messages: Sequence[Message], most_bytes: int) -> list[bytes] | None:
    """Return the ZeroMQ message of good replies with one command each; None where `codec.batches` must encode them.

    `most_bytes` is the limit on a body. The kinds of all values are checked, since msgspec packs more of them than
    msgpack does (a UUID as text).
    """
    if len(messages) > MAX_BATCH or set(map(type, messages)) != _REPLIES:
        return None
    rows: list[Any] = []
    add = rows.append
    size = 0
    reply: Any  # a Reply, whose fields the program may have filled with anything
    for reply in messages:
        token, status, commands, note, code = reply
        if status != 0 or note is not None or code is not None or type(commands) is not list or len(commands) != 1:
            return None
        command = commands[0]
        if type(command) is not Command:
            return None
        name, targets, body, type_ = command
        if type_ is not None or type(name) is not str or type(targets) is not list or type(body) is not bytes:
            return None
        if len(targets) > MAX_ITEMS:
            return None
        for target in targets:
            if type(target) is not str:
                return None
        length = len(body)
        if length > INLINE_BYTES:
            return None
        size += length
        add((_REPLY, token, 0, ((name, targets, body),), None))
    if size > most_bytes or size >= BATCH_BYTES:
        return None
    try:
        frame = _pack(rows)
    except (ValueError, TypeError, OverflowError):
        return None
    return [frame] if len(frame) <= 2 * BATCH_BYTES else None
