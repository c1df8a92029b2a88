"""BFP/1 bytes ⇄ messages: batches and attachments.

`decode` never raises on the wire's account, and a short frame never costs much memory or time: an unreadable message
becomes a `Malformed` in its place, and the rest of the batch is read. `batches` isolates faults on the way out: a
message that cannot be encoded affects no other message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.codes import WireError
from bester.broker.wire.messages import (
    INLINE_BYTES,
    MAX_BATCH,
    MAX_FRAME_BYTES,
    MAX_FRAMES,
    OPERATIONS,
    Command,
    Malformed,
    Message,
    Request,
)
from bester.broker.wire.notes import describe
from bester.broker.wire.readers import READERS, careful, kind_of, refuse_row, unreadable
from bester.broker.wire.records import row_of

msgspec: Any
try:
    import msgspec
except ImportError:  # a handler's machine may have pyzmq and msgpack alone
    msgspec = None

_LAYOUTS: dict[type[Any], tuple[tuple[int], int | None, int | None, int | None]] = {
    row.message: ((row.op,), row.body, row.commands, len(row.fields) - 1 if row.rare else None) for row in OPERATIONS
}
_ROWS = {row.message: fields for row in OPERATIONS if (fields := row_of(row.message)) is not None}
if Request in _ROWS:  # its meta may be a RequestMeta, which msgpack does not know
    _ROWS[Request] = lambda each: (each.token, each.type, each.body, each.user, dict(each.meta))
BATCH_BYTES = 1024 * 1024
"""Size of bodies at which a batch is closed; a batch whose frame 0 exceeds twice as much is halved. So no message
delays a link, and frame 0 stays below the limit of receivers."""
MAX_ITEMS = 2**17
"""Longest array: room for the targets of any reply, and a bound on the memory that a short frame can announce."""
MAX_WEIGHT = 2**21
"""Bound on the values in a message of a frame 0, and in a whole frame 0 above LONG_BYTES, where an array or map counts
ARRAY_WEIGHT more. Room for the largest message of each kind: a CONFIRM may have 131,072 failures, each an array of
three. 64 MiB of empty arrays would take half a minute, and gigabytes. A server reads fewer of most senders
(`policy.most_values`)."""
ARRAY_WEIGHT = 8
"""An array or map takes as much memory as so many short values, and longer than one."""
LIGHT_BYTES = 16 * 1024
"""Longest frame 0 whose values are not counted: it takes a millisecond or two, whatever it holds."""
LONG_BYTES = 2 * BATCH_BYTES
"""Longest frame 0 that is cut into its messages first, each of which is unpacked when its turn comes. To cut one takes
up to some milliseconds for each megabyte; what is longer has a message alone in it, or long bodies."""
LONG_BODY_BYTES = 64 * 1024
"""Longest attached body of a batch of which several messages are read in one step: each body is checked, and a thousand
messages may have the same one."""
BEGINNING_BYTES = 32
"""Of a message: its header, operation and token."""
HARMLESS_BYTES = 512
SUSPECTS = 16
"""Bytes in a frame 0 above HARMLESS_BYTES that could announce a long array; with more of them the frame is walked
through first, as a few kilobytes of nested announcements would cost 100 MB and a tenth of a second."""
PARTS_BYTES = 8 * 1024 * 1024
"""The same where a party on another machine chooses what its message costs: to unpack as many short values as are read
at all takes as long as to cut so many bytes of them. Several messages of more are those of no program that attaches
long bodies."""
SECOND_LOOK_BYTES = 64 * 1024
"""Longest frame 0 whose unreadable values are searched one by one, which is slow, and named. In a longer one they are
only marked, so that their messages cannot be written again."""
LITTLE_BYTES = 64
"""Bodies up to this stay inlined even if frame 0 is too long, as an attachment costs about as much."""

_pack = msgpack.Packer(autoreset=True).pack
_cut = None if msgspec is None else msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_PACKED = None if msgspec is None else msgspec.Raw
_MARK = object()  # in place of a value that BFP does not allow; no Packer takes it

ReadUsual = Callable[[Sequence[bytes]], Sequence[Any] | None]
"""Function that reads a batch of usual messages in one piece; None where the batch holds others."""
OnUnsendable = Callable[[Message, WireError], Message | None]
"""Callback for a message that cannot be sent, with the reason; returns the message to send in its place, or None."""


# --- messages to bytes -----------------------------------------------------------------------------------------


def encode(messages: Sequence[Message], inline_bytes: int = INLINE_BYTES) -> list[bytes]:
    """Encode 1 to 1,024 messages as the frames of one ZeroMQ message.

    Bodies above `inline_bytes` are attached as frames of their own. Raises TypeError, ValueError or OverflowError for a
    message that MessagePack cannot express. For more messages, and for untrusted ones, see `batches`.
    """
    rows: list[Any] = []
    frames: list[bytes] = [b""]
    message: Any  # instance of a class in _LAYOUTS
    for message in messages:
        kind = type(message)
        op, body, commands, rare = _LAYOUTS[kind]
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


def _refuse(message: Message, error: WireError) -> Message | None:
    raise error


def batches(
    messages: Iterable[Message], on_unsendable: OnUnsendable = _refuse, most_bytes: int = MAX_FRAME_BYTES
) -> Iterator[list[bytes]]:
    """Encode any number of messages, in order, as ZeroMQ messages within the limits on a batch.

    `on_unsendable` is called for each message that cannot be encoded, that exceeds a limit, or that has a body above
    `most_bytes`; its result, which must be sound, is encoded in place of the message. All other messages are encoded as
    if alone. Without `on_unsendable` WireError is raised.
    """
    batch: list[Message] = []
    size = 0
    message: Any  # as in `encode`
    for message in messages:
        try:
            _, body, commands, _ = _LAYOUTS[type(message)]
            if body is not None:
                size += len(message[body])
            elif commands is not None:
                for command in message[commands]:
                    size += len(command[2])
        except Exception as error:  # noqa: BLE001 (a message may hold any object)
            substitute = on_unsendable(message, _error_of(error))
            if substitute is None:
                continue
            batch.append(substitute)
        else:
            batch.append(message)
        if len(batch) == MAX_BATCH or size >= BATCH_BYTES:
            split = _checked if size > most_bytes else _halved
            yield from split(batch, on_unsendable, most_bytes)
            batch, size = [], 0
    if batch:
        split = _checked if size > most_bytes else _halved
        yield from split(batch, on_unsendable, most_bytes)


def _halved(batch: list[Message], on_unsendable: OnUnsendable, most_bytes: int) -> Iterator[list[bytes]]:
    """Encode a batch, halved as often as its size needs; halving also isolates a message that cannot be encoded."""
    alone = len(batch) == 1
    try:
        frames = encode(batch)
        if len(frames[0]) > MAX_ITEMS:  # long enough to hold an array that is too long
            _check_arrays(frames[0], alone=alone)
            if alone and len(frames[0]) > LONG_BYTES:
                _check_weight(frames[0])
            if alone and len(frames[0]) > MAX_FRAME_BYTES:
                frames = _with_less_inlined(batch)
    except Exception as error:  # noqa: BLE001 (as in `batches`)
        if alone:
            substitute = on_unsendable(batch[0], _error_of(error))
            if substitute is not None:
                yield encode([substitute])
            return
    else:
        if alone or len(frames[0]) <= 2 * BATCH_BYTES:
            yield frames
            return
    middle = len(batch) // 2
    yield from _halved(batch[:middle], on_unsendable, most_bytes)
    yield from _halved(batch[middle:], on_unsendable, most_bytes)


def _checked(batch: list[Message], on_unsendable: OnUnsendable, most_bytes: int) -> Iterator[list[bytes]]:
    """Encode a batch as `_halved` does, after a check of each body, as one of them may exceed `most_bytes`."""
    sound: list[Message] = []
    for message in batch:
        try:
            _check_bodies(message, most_bytes)
        except WireError as error:
            substitute = on_unsendable(message, error)
            if substitute is not None:
                sound.append(substitute)
        else:
            sound.append(message)
    if sound:
        yield from _halved(sound, on_unsendable, most_bytes)


def _check_bodies(message: Any, most_bytes: int) -> None:
    _, body, commands, _ = _LAYOUTS[type(message)]
    bodies = [message[body]] if body is not None else []
    bodies += [command[2] for command in message[commands]] if commands is not None else []
    largest = max(map(len, bodies), default=0)
    if largest > most_bytes:
        raise WireError("frame-too-large", f"a body of {largest} bytes; {most_bytes} are allowed")


def _check_arrays(frame: bytes, *, alone: bool) -> None:
    """Raise WireError if frame 0 holds an array, at any depth, longer than receivers read: they would refuse the whole
    frame. For several messages (`alone` False), the mere possibility raises."""
    longest = max((int.from_bytes(frame[at : at + 4], "big") for at in _long_arrays(frame)), default=0)
    if longest <= MAX_ITEMS:
        return
    if alone:
        try:
            msgpack.unpackb(frame, ext_hook=_no_extension, timestamp=1, max_array_len=MAX_ITEMS)
        except ValueError:
            pass
        else:
            return  # a false alarm
    raise WireError("frame-too-large", f"an array of {longest} elements; {MAX_ITEMS} are allowed")


def _check_weight(frame: bytes) -> None:
    """Raise WireError if a long frame 0 holds more values than receivers read."""
    try:
        _unpack(frame, _no_extension, MAX_WEIGHT)
    except TooManyError as error:
        raise WireError("frame-too-large", str(error)) from None


def _long_arrays(frame: bytes) -> Iterator[int]:
    """Yield each position where the length of an array of more than 65,535 elements may stand: four bytes behind 0xdd,
    of which the first is nearly zero. UTF-8 text holds no such bytes, so positions are rare."""
    for first in range((len(frame) >> 24) + 1):
        header = b"\xdd%c" % first
        at = frame.find(header)
        while at >= 0:
            yield at + 1
            at = frame.find(header, at + 1)


def _with_less_inlined(batch: list[Message]) -> list[bytes]:
    """Encode a message of very many small bodies, with the bodies attached."""
    frames = encode(batch, LITTLE_BYTES)
    if len(frames[0]) > MAX_FRAME_BYTES:
        most = f"{MAX_FRAME_BYTES} are allowed"
        raise WireError("frame-too-large", f"a message of {len(frames[0])} bytes beside its bodies; {most}")
    return frames


def _error_of(error: Exception) -> WireError:
    if isinstance(error, WireError):
        return error
    if isinstance(error, UnicodeEncodeError):  # the text is not shown, as the text may be a password
        half = ascii(error.object[error.start])
        return WireError("malformed", f"a text has half a surrogate pair in it ({half} at {error.start})")
    if isinstance(error, OverflowError):
        return WireError("malformed", "an integer is beyond 64 bits")
    return WireError("malformed", f"a value cannot be written in MessagePack: {describe(error)}")


def fault(message: Message, most_bytes: int = MAX_FRAME_BYTES) -> WireError | None:
    """Return the reason why a message cannot be sent, or None. `most_bytes` is the limit on a body."""
    try:
        for _ in batches([message], most_bytes=most_bytes):
            pass
    except WireError as error:
        return error
    return None


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
    if size > HARMLESS_BYTES and _suspect(first) and not _complete(first):
        return [Malformed("malformed", _no_messagepack(first))]
    try:
        rows = _unpack(first, _no_extension, most_weight)
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
    unpacker = msgpack.Unpacker(ext_hook=_no_extension)
    unpacker.feed(row[:BEGINNING_BYTES])
    try:
        return [unpacker.unpack() for _ in range(min(unpacker.read_array_header(), 2))]
    except (ValueError, TypeError, msgpack.UnpackException):
        return []


class TooManyError(ValueError):
    """Raised above the bound on values."""

    def __init__(self, most_weight: int) -> None:
        super().__init__(f"more than {most_weight:,} {TOO_MANY}")


TOO_MANY = (
    f"values in a message, or in a frame 0 above {LONG_BYTES >> 20} MiB, "
    f"where an array or a map counts as {ARRAY_WEIGHT} more"
)
"""End of the text about a message above the bound on values."""


def has_too_many(message: Malformed) -> bool:
    """Return whether a message was refused for its number of values."""
    return message.text.endswith(TOO_MANY)


def _unpack(
    frame: bytes,
    ext_hook: Callable[[int, bytes], Any],
    most_weight: int,
    map_of: Callable[[list[tuple[Any, Any]]], Any] = dict,
    **options: Any,
) -> Any:
    """Unpack a frame 0, within the bounds on arrays, maps and values. `map_of` makes a map of its pairs. Raises
    ValueError, TypeError, OverflowError or UnpackException for what is no sound MessagePack, TooManyError above
    `most_weight`."""
    options |= {"ext_hook": ext_hook, "timestamp": 1, "max_array_len": min(len(frame), MAX_ITEMS)}
    options["max_map_len"] = min(len(frame), MAX_ITEMS)
    if len(frame) <= LIGHT_BYTES or len(frame) * (1 + ARRAY_WEIGHT) <= most_weight:  # each value has a byte at least
        return msgpack.unpackb(frame, object_pairs_hook=None if map_of is dict else map_of, **options)
    left = most_weight

    def weigh(values: Any) -> Any:
        """Count the values of an array, or the pairs of a map."""
        nonlocal left
        left -= len(values) + ARRAY_WEIGHT
        if left < 0:
            raise TooManyError(most_weight)
        return values

    return msgpack.unpackb(frame, list_hook=weigh, object_pairs_hook=lambda pairs: map_of(weigh(pairs)), **options)


def _suspect(frame: bytes) -> bool:
    """Return whether many bytes look like headers of long arrays; for few of them `find` is much faster than
    `count`."""
    for header in (b"\xdc", b"\xdd"):
        at = -1
        for _ in range(SUSPECTS):
            at = frame.find(header, at + 1)
            if at < 0:
                break
        else:
            return True
    return False


def _complete(frame: bytes) -> bool:
    """Walk through a frame without building objects, so that arrays announced and never filled cost nothing; return
    whether the frame is one whole value."""
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(frame), 1))
    unpacker.feed(frame)
    try:
        unpacker.skip()
    except (ValueError, msgpack.UnpackException):
        return False
    return bool(unpacker.tell() == len(frame))


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


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
        rows = _unpack(
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
