"""Runs: messages of one kind that stand together in a batch, read and written in one piece where their shape is usual.

A batch of requests or deliveries alone, and one of what handlers and bridges send most, is read by msgspec, in C, into
values with the fields of the messages; a batch of requests, deliveries or replies alone, and one of submits and
confirmations, is packed as rows. The functions return None for any other batch, and for every batch that holds a fault:
`codec` decodes and `batches` encodes those, and both say what is wrong. For the rest the result equals theirs, value
for value and byte for byte. Without msgspec, which a server always has, only replies are handled here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Annotated, Any, Literal, Protocol, Union

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.codec import decode, unpack_in_parts
from bester.broker.wire.messages import (
    BATCH_BYTES,
    INLINE_BYTES,
    MAX_BATCH,
    MAX_FRAME_BYTES,
    MAX_TOKEN,
    OP_OF,
    Command,
    Confirm,
    Deliver,
    Malformed,
    Message,
    Meta,
    Reply,
    Request,
    Submit,
)
from bester.broker.wire.unpacking import MAX_ITEMS, MAX_WEIGHT

msgspec: Any
try:
    import msgspec
except ImportError:  # a handler's machine may have pyzmq and msgpack alone
    msgspec = None

_REPLY = OP_OF[Reply]
_DELIVER = OP_OF[Deliver]
_REPLIES = {Reply}
_WITH_BODY = frozenset({Request, Submit, Deliver})
_OF_BRIDGE = frozenset({Submit, Confirm})
FEW = 64
"""Sessions of one user in a DELIVER of a run, and targets of a command: nearly all have fewer. What is read in one
piece holds few values for its length, whoever has sent it: a batch of empty commands would take 200 ms."""
FEW_COMMANDS = 4
FEW_KEYS = 16
"""Keys of a meta, and texts of each."""
SHORT_BYTES = 16 * 1024
"""Longest ZeroMQ message that is read at once: in a longer one there may be milliseconds of empty commands."""
FEW_NUMBERS = 512
"""Serials in a CONFIRM, beside those that it ends by their order."""


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


def _batch_decoder(shapes: dict[type[Any], type[Any]]) -> Callable[[bytes], list[Any]]:
    """Return a decoder of a batch of messages of these shapes. Every array is bounded before room is made for it."""
    either: Any = Union[tuple(shapes.values())]  # noqa: UP007 (of classes that are made at import)
    batch = Annotated[list[either], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    decode_batch: Callable[[bytes], list[Any]] = msgspec.msgpack.Decoder(batch).decode
    return decode_batch


def _shapes() -> tuple[dict[type[Any], type[Any]], dict[type[Any], type[Any]], Any]:
    """Return the classes by which a handler and a server read messages of the usual shape, by the messages' classes,
    and the type of the row by which a bridge reads a delivery."""
    if msgspec is None:
        return {}, {}, None
    integer = Annotated[int, msgspec.Meta(ge=-MAX_TOKEN, le=MAX_TOKEN)]
    text = str | None
    texts = Annotated[list[str], msgspec.Meta(max_length=FEW_KEYS)]
    names = Annotated[list[str], msgspec.Meta(max_length=FEW)]
    # Values of other kinds than these (bin, nested maps) are rare in a meta, and extension types are refused: msgspec
    # would read some of them as times.
    meta = Annotated[dict[str, str | int | float | bool | texts | None], msgspec.Meta(max_length=FEW_KEYS)]

    def shape(message: type[Any], fields: list[tuple[Any, ...]]) -> type[Any]:
        made: type[Any] = msgspec.defstruct(
            f"Read{message.__name__}", fields, array_like=True, tag=OP_OF.get(message), tag_field="op",
            forbid_unknown_fields=True, frozen=True, gc=False,
        )  # fmt: skip
        return made

    command = msgspec.defstruct(
        "ReadCommand",
        [("command", str), ("targets", names), ("body", bytes), ("type", text, None)],
        array_like=True, forbid_unknown_fields=True, frozen=True, gc=False,
    )  # fmt: skip
    commands = Annotated[list[command], msgspec.Meta(max_length=FEW_COMMANDS)]  # type: ignore[valid-type]  # made above
    integers = Annotated[list[int], msgspec.Meta(max_length=FEW_NUMBERS)]
    failures = Annotated[list[tuple[int, int, str]], msgspec.Meta(max_length=0)]  # a run without any
    request = [("token", integer), ("type", str), ("body", bytes), ("user", text), ("meta", meta)]
    reply = [
        ("token", integer),
        ("status", integer),
        ("commands", commands),
        ("note", text, None),
        ("code", text, None),
    ]
    submit: list[tuple[Any, ...]] = [
        ("token", integer),
        ("session", integer | None),
        ("type", str),
        ("body", bytes),
        ("meta", meta, {}),
    ]
    confirm: list[tuple[Any, ...]] = [
        ("upto", integer),
        ("done", integers, []),
        ("failed", failures, []),
        ("reports", integer, 0),
    ]
    of_server = {Reply: shape(Reply, reply), Submit: shape(Submit, submit), Confirm: shape(Confirm, confirm)}
    target = Annotated[list[int], msgspec.Meta(min_length=2, max_length=MAX_ITEMS)]
    targets = Annotated[list[target], msgspec.Meta(max_length=MAX_ITEMS)]
    deliver = GenericAlias(tuple, (Literal[_DELIVER], integer, str, str, bytes, targets, integer | None, meta))
    return {Request: shape(Request, request)}, of_server, deliver


_OF_HANDLER, READ_AS, _DELIVER_ROW = _shapes()
"""READ_AS: the classes of the values that stand for messages which a server has read as runs, by the messages' own."""
MESSAGE_OF = {shape: message for message, shape in READ_AS.items()}
"""The classes of the messages, by those of the values that stand for them."""
_decode_requests = None if msgspec is None else _batch_decoder(_OF_HANDLER)
_decode_usual = None if msgspec is None else _batch_decoder(READ_AS)
_decode_deliveries = None if msgspec is None else _batch_decoder({Deliver: _DELIVER_ROW})
_pack: Callable[[Any], bytes] = (
    msgpack.Packer(autoreset=True).pack if msgspec is None else msgspec.msgpack.Encoder().encode
)


def read_requests(frames: Sequence[bytes]) -> Sequence[Received] | None:
    """Return the requests of a ZeroMQ message; None where `codec.decode` must read the message."""
    if _decode_requests is None or len(frames) != 1:
        return None
    try:
        return _decode_requests(frames[0])
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return None


def read_deliveries(frames: Sequence[bytes]) -> Sequence[Deliver] | None:
    """Return the deliveries of a ZeroMQ message; None where `codec.decode` must read the message."""
    if _decode_deliveries is None or len(frames) != 1:
        return None
    try:
        return [Deliver(*row[1:]) for row in _decode_deliveries(frames[0])]
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return None


def read(frames: Sequence[bytes], most_values: int = MAX_WEIGHT) -> Sequence[Message | Malformed]:
    """Return the messages of a ZeroMQ message that came to a server, in order: those of `read_usual`, else those of
    `codec.decode`."""
    usual = read_usual(frames)
    return decode(frames, most_values) if usual is None else usual


def read_in_parts(frames: Sequence[bytes], most_values: int) -> Sequence[Any]:
    """Return the messages of a ZeroMQ message that came to a server as those of `read` are, to be taken part by part:
    a short one is read at once, and of any other the parts that are taken."""
    usual = read_usual(frames) if sum(map(len, frames)) <= SHORT_BYTES else None
    rows: Any = unpack_in_parts(frames, most_values, read_usual) if usual is None else usual
    return rows  # type: ignore[no-any-return]  # UnreadRows has what is used of a sequence


def read_usual(frames: Sequence[bytes]) -> Sequence[Any] | None:
    """Return the messages of a ZeroMQ message that came to a server, in order, as values of the classes in READ_AS;
    None where `codec` must read the message."""
    if _decode_usual is None or len(frames) != 1:
        return None
    try:
        return _decode_usual(frames[0])
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return None


def write_run(messages: Sequence[Message], most_bytes: int = MAX_FRAME_BYTES) -> list[bytes] | None:
    """Return the ZeroMQ message of a server's own requests, submits or deliveries, of one kind, or of confirmations,
    alone or among submits; None where `batches` must encode them. `most_bytes` is the limit on a body."""
    if msgspec is None or not 0 < len(messages) <= MAX_BATCH:
        return None
    run: Any = messages
    with_body = run
    kind: type[Any] = type(run[0])
    if kind is not Confirm and kind not in _WITH_BODY:
        return None
    if kind is Confirm or (len(run) > 1 and list(map(type, run)).count(kind) < len(run)):
        if kind not in _OF_BRIDGE:
            return None
        confirms = [message for message in run if type(message) is Confirm]
        kind, with_body = Submit, [message for message in run if type(message) is Submit]
        if len(confirms) + len(with_body) < len(run) or not all(map(_is_usual, confirms)):
            return None
    if len(with_body) == 1:
        longest = total = len(with_body[0].body)
    else:
        sizes = [len(message.body) for message in with_body]
        longest, total = max(sizes, default=0), sum(sizes)
    if longest > INLINE_BYTES or longest > most_bytes or total >= BATCH_BYTES or not _is_short(kind, with_body):
        return None
    try:
        frame = _pack(run)
    except (ValueError, TypeError, OverflowError):
        return None
    return [frame] if len(frame) <= 2 * BATCH_BYTES else None


def _is_usual(confirm: Confirm) -> bool:
    """Return whether a confirmation has no failure, and few serials."""
    return not confirm.failed and len(confirm.done) <= FEW_NUMBERS


def _is_short(kind: type[Any], run: Sequence[Any]) -> bool:
    """Return whether no message of a run has an array that might be too long for its receiver. The paths of requests
    are bounded."""
    if kind is Deliver:
        return all(len(message.targets) == 1 and len(message.targets[0]) <= FEW for message in run)
    return kind is Request or not any(message.meta for message in run)


def write_replies(messages: Sequence[Message], most_bytes: int) -> list[bytes] | None:
    """Return the ZeroMQ message of good replies with one command each; None where `batches` must encode them.

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
        if type(command) is not Command or type(token) is not int:
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
