"""BFP/1 bytes ⇄ messages: one batch and its attachments.

`decode` never raises on the wire's account, and a short frame never costs much memory or time (`unpacking`): an
unreadable message becomes a `Malformed` in its place, and the rest of the batch is read. `encode` is for messages that
are sound; `batches` is for all others, and for any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.messages import (
    INLINE_BYTES,
    MAX_BATCH,
    MAX_FRAMES,
    OPERATIONS,
    Command,
    Malformed,
    Message,
    Request,
)
from bester.broker.wire.readers import READERS, careful, kind_of, refuse_row, unreadable
from bester.broker.wire.records import row_of
from bester.broker.wire.unpacking import (
    HARMLESS_BYTES,
    LIGHT_BYTES,
    LONG_BYTES,
    MAX_WEIGHT,
    TooManyError,
    has_too_many,
    is_hollow,
    no_extension,
    unpack_value,
)

msgspec: Any
try:
    import msgspec
except ImportError:  # a handler's machine may have pyzmq and msgpack alone
    msgspec = None

LAYOUTS: dict[type[Any], tuple[tuple[int], int | None, int | None, int | None]] = {
    row.message: ((row.op,), row.body, row.commands, len(row.fields) - 1 if row.rare else None) for row in OPERATIONS
}
"""By class of message: its operation, and the indexes of its body, of its commands, and of a last field that is rarely
set."""
_ROWS = {row.message: fields for row in OPERATIONS if (fields := row_of(row.message)) is not None}
if Request in _ROWS:  # its meta may be a RequestMeta, which msgpack does not know
    _ROWS[Request] = lambda each: (each.token, each.type, each.body, each.user, dict(each.meta))
LONG_BODY_BYTES = 64 * 1024
"""Longest attached body of a batch of which several messages are read in one step: each body is checked, and a thousand
messages may have the same one."""
BEGINNING_BYTES = 32
"""First bytes of a packed message, in which its header, operation and token stand."""
PARTS_BYTES = 8 * 1024 * 1024
"""Longest frame 0 that is cut first (as LONG_BYTES is) where a party on another machine chooses what its message costs:
to unpack as many short values as are read at all takes as long as to cut so many bytes of them. Several messages of
more are those of no program that attaches long bodies."""
SECOND_LOOK_BYTES = 64 * 1024
"""Longest frame 0 whose unreadable values are searched one by one, which is slow, and named. In a longer one they are
only marked, so that their messages cannot be written again."""

_pack = msgpack.Packer(autoreset=True).pack
_cut = None if msgspec is None else msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_PACKED = None if msgspec is None else msgspec.Raw
_MARK = object()  # in place of a value that BFP does not allow; no Packer takes it

ReadUsual = Callable[[Sequence[bytes]], Sequence[Any] | None]
"""Function that reads a batch of usual messages in one piece; None where the batch holds others."""


# --- messages to bytes -----------------------------------------------------------------------------------------


def encode(messages: Sequence[Message], inline_bytes: int = INLINE_BYTES) -> list[bytes]:
    """Encode 1 to 1,024 messages as the frames of one ZeroMQ message.

    Bodies above `inline_bytes` are attached as frames of their own. Raises TypeError, ValueError or OverflowError for a
    message that MessagePack cannot express. For more messages, and for untrusted ones, see `batches`.
    """
    rows: list[Any] = []
    frames: list[bytes] = [b""]
    message: Any  # instance of a class in LAYOUTS
    for message in messages:
        kind = type(message)
        op, body, commands, rare = LAYOUTS[kind]
        if kind in _ROWS:
            message = _ROWS[kind](message)  # noqa: PLW2901 (a second name would cost every message a store)
        if body is not None and len(message[body]) > inline_bytes:
            rows.append((*op, *message[:body], len(frames), *message[body + 1 :]))
            frames.append(_attachment(message[body]))
        elif commands is not None:
            rest = (
                message[commands + 1 :] if rare is None or message[rare] is not None else message[commands + 1 : rare]
            )
            rows.append(op + message[:commands] + (_attach(message[commands], frames, inline_bytes),) + rest)
        elif rare is None or message[rare] is not None:
            rows.append(op + message)
        else:
            rows.append(op + message[:rare])
    frames[0] = _pack(rows)
    return frames


def _attach(commands: list[Command], frames: list[bytes], inline_bytes: int) -> list[Any]:
    rows: list[Any] = []
    for command in commands:
        row: tuple[Any, ...] = command[:3] if command[3] is None else command
        if len(command[2]) > inline_bytes:
            row = (*row[:2], len(frames), *row[3:])
            frames.append(_attachment(command[2]))
        rows.append(row)
    return rows


def _attachment(body: Any) -> bytes:
    """Return a body that becomes a frame, after a check of its type, since ZeroMQ would refuse the frame too late."""
    if not isinstance(body, bytes):
        raise TypeError(f"a body is bytes, not {type(body).__name__}")
    return body


# --- bytes to messages -----------------------------------------------------------------------------------------


class UnreadRows:
    """Rows of a batch that become messages part by part: `[:n]` returns the first n messages, `[n:]` the rest, unread.
    Rows of a long batch are MessagePack until then; `usual(frames)` returns the messages of a part of them, None where
    each must be read alone."""

    __slots__ = ("_at", "_frames", "_is_heavy", "_most_weight", "_rows", "_usual")

    def __init__(
        self, rows: Any, frames: Sequence[bytes], most_weight: int, at: int = 0, usual: ReadUsual | None = None,
        *, is_heavy: bool | None = None,
    ) -> None:  # fmt: skip
        """`is_heavy`: whether an attached body is long; None where that is not known yet."""
        self._rows = rows
        self._frames = frames
        self._most_weight = most_weight
        self._at = at
        self._usual = usual
        self._is_heavy = is_heavy

    def __len__(self) -> int:
        return len(self._rows) - self._at

    def within(self, most: int) -> int:
        """Return how many of the next rows to read in one step, at most so many: together LIGHT_BYTES, or one; and one
        where a body may be long."""
        if self._is_heavy is None:
            self._is_heavy = any(len(frame) > LONG_BODY_BYTES for frame in self._frames[1:])
        if self._is_heavy:
            return min(most, 1)
        rows = self._rows[self._at : self._at + most]
        left = LIGHT_BYTES
        for number, row in enumerate(rows):
            if type(row) is not _PACKED:
                break
            left -= len(row)
            if left < 0:
                return max(number, 1)
        return most

    def __getitem__(self, part: slice) -> Any:
        start, stop, _ = part.indices(len(self))
        if part.stop is None and start:
            return UnreadRows(
                self._rows, self._frames, self._most_weight, self._at + start, self._usual, is_heavy=self._is_heavy
            )
        frames = self._frames
        messages: list[Message | Malformed] = []
        rows = self._rows[self._at + start : self._at + stop]
        if self._usual is not None and len(frames) == 1:
            usual = self._usual([b"\xdc" + len(rows).to_bytes(2, "big") + b"".join(map(bytes, rows))])
            if usual is not None:
                return usual
        for row in rows:
            if type(row) is _PACKED:
                messages.append(_read_packed(bytes(row), frames, self._most_weight))
                continue
            try:
                read = READERS[row[0]]
            except (LookupError, TypeError):
                read = careful
            messages.append(read(row, frames))
        return messages


def decode(frames: Sequence[bytes], most_weight: int = MAX_WEIGHT) -> list[Message | Malformed]:
    """Decode the frames of one ZeroMQ message into its messages, in order. `most_weight` is the bound on values."""
    rows: Any = unpack(frames, most_weight)
    messages: list[Message | Malformed] = rows[:]
    return messages


def decode_together(frames: Sequence[bytes], most_weight: int) -> list[Message | Malformed]:
    """Decode as `decode` does, with a bound on the values of all messages together: they are read in one step."""
    if len(frames) < 1 or len(frames) > MAX_FRAMES:
        return decode(frames)
    rows: Any = _unpack_whole(frames, most_weight)
    messages: list[Message | Malformed] = rows[:]
    return messages


def unpack(frames: Sequence[bytes], most_weight: int = MAX_WEIGHT) -> list[Message | Malformed] | UnreadRows:
    """Decode the frames of one ZeroMQ message as far as that is quick: a batch that is sound MessagePack stays
    unread. `most_weight` is the bound on values."""
    if not frames:
        return [Malformed("malformed", "an empty ZeroMQ message; frame 0 is an array of messages")]
    if len(frames) > MAX_FRAMES:
        return [Malformed("malformed", f"a ZeroMQ message of more than {MAX_FRAMES} frames")]
    first = frames[0]
    if _cut is not None and LIGHT_BYTES < len(first) <= LONG_BYTES and 1 <= _array_length(first) <= MAX_BATCH:
        try:
            return UnreadRows(_cut(first), frames, most_weight)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return [Malformed("malformed", _no_messagepack(first))]
    return _unpack_whole(frames, most_weight)


def unpack_in_parts(
    frames: Sequence[bytes], most_weight: int, usual: ReadUsual
) -> list[Message | Malformed] | UnreadRows:
    """Decode as `unpack` does, but cut a frame 0 up to PARTS_BYTES, of which the values of each message are counted.
    `usual` is that of UnreadRows."""
    first = frames[0] if frames and len(frames) <= MAX_FRAMES else b""
    if _cut is None or not LIGHT_BYTES < len(first) <= PARTS_BYTES or not 1 < _array_length(first) <= MAX_BATCH:
        return unpack(frames, most_weight)
    try:
        return UnreadRows(_cut(first), frames, most_weight, usual=usual)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return [Malformed("malformed", _no_messagepack(first))]


def _unpack_whole(
    frames: Sequence[bytes], most_weight: int, *, is_long: bool | None = None
) -> list[Message | Malformed] | UnreadRows:
    """Unpack all of frame 0 at once. `is_long`: whether it is above SECOND_LOOK_BYTES, or from a batch that is."""
    first = frames[0]
    size = len(first)
    if size > HARMLESS_BYTES and is_hollow(first):
        return [Malformed("malformed", _no_messagepack(first))]
    try:
        rows = unpack_value(first, no_extension, most_weight)
    except TooManyError as error:
        return [Malformed("malformed", str(error))]
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return _second_look(frames, most_weight, is_long=size > SECOND_LOOK_BYTES if is_long is None else is_long)
    if type(rows) is not list or not 1 <= len(rows) <= MAX_BATCH:
        kind = f"an array of {len(rows)}" if type(rows) is list else kind_of(rows)
        text = f"frame 0 is {kind} where an array of 1 to {MAX_BATCH} messages is meant: [[op, field, …], …]"
        return [Malformed("malformed", text)]
    return UnreadRows(rows, frames, most_weight)


def _array_length(frame: bytes) -> int:
    """Return how many elements a frame 0 announces; 0 where it is no array."""
    kind = frame[0]
    if kind & 0xF0 == 0x90:
        return kind & 0x0F
    return int.from_bytes(frame[1 : 3 if kind == 0xDC else 5], "big") if kind in (0xDC, 0xDD) else 0


def _read_packed(row: bytes, frames: Sequence[bytes], most_weight: int) -> Message | Malformed:
    """Read one message of a long batch, as if it were alone."""
    is_long = len(frames[0]) > SECOND_LOOK_BYTES
    alone: Any = _unpack_whole([b"\x91" + row, *frames[1:]], most_weight, is_long=is_long)
    message: Message | Malformed = alone[:][0]
    if type(message) is Malformed and message.op is None and has_too_many(message):
        return refuse_row(_beginning(row), message.text)
    return message


def _beginning(row: bytes) -> list[Any]:
    """Return the first fields of a packed message that is too much to unpack: operation and token."""
    unpacker = msgpack.Unpacker(ext_hook=no_extension)
    unpacker.feed(row[:BEGINNING_BYTES])
    try:
        return [unpacker.unpack() for _ in range(min(unpacker.read_array_header(), 2))]
    except (ValueError, TypeError, msgpack.UnpackException):
        return []


def _no_messagepack(frame: bytes) -> str:
    """Return the error for an unreadable frame 0 with its likely cause, for authors of a new handler."""
    if not frame:
        return "frame 0 is empty; connect a DEALER (a REQ socket puts an empty frame before its message)"
    if frame.lstrip()[:1] in (b"{", b"[", b'"'):
        return "frame 0 is not MessagePack but looks like JSON text; pack it as MessagePack: [[op, field, …], …]"
    return "frame 0 is not MessagePack (strings UTF-8, map keys strings, no extensions)"


def _second_look(frames: Sequence[bytes], most_weight: int, *, is_long: bool) -> list[Message | Malformed]:
    """Read a batch that holds values which MessagePack allows and BFP does not, and keep the other messages."""
    refusal = Malformed("malformed", _no_messagepack(frames[0]))
    try:
        rows = unpack_value(
            frames[0],
            _marked if is_long else msgpack.ExtType,
            most_weight,
            _text_keys if is_long else dict,
            unicode_errors="surrogateescape",
            strict_map_key=False,
        )
    except TooManyError as error:
        return [Malformed("malformed", str(error))]
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return [refusal]
    if type(rows) is not list or not 1 <= len(rows) <= MAX_BATCH:
        return [refusal]
    if is_long:
        text = "strings are UTF-8, map keys strings, and there are no extensions"
        return [careful(row, frames) if _is_writable(row) else refuse_row(row, text) for row in rows]
    return [unreadable(row) or careful(row, frames) for row in rows]


def _marked(code: int, data: bytes) -> object:
    """Return the mark of an extension value."""
    return _MARK


def _text_keys(pairs: list[tuple[Any, Any]]) -> Any:
    """Return a map, or a mark where a key is no string."""
    return dict(pairs) if all(type(key) is str for key, _ in pairs) else _MARK


def _is_writable(row: Any) -> bool:
    """Return whether a leniently unpacked row can be packed again: text that is not UTF-8 cannot, nor can a mark."""
    try:
        _pack(row)
    except (ValueError, TypeError, OverflowError):
        return False
    return True
