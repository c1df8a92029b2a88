"""BFP/1 bytes ⇄ messages: batches and attachments.

`decode` never raises on the wire's account, and never lets a few bytes cost
much memory or time: what cannot be read becomes a `Malformed` in its place, and
the rest of the batch is read all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.messages import (
    INLINE_BYTES,
    MAX_BATCH,
    OPERATIONS,
    Command,
    Malformed,
    Message,
)
from bester.broker.wire.readers import READERS, careful, kind_of, unreadable

_PLACES: dict[type[Any], tuple[tuple[int], int | None, int | None]] = {
    row.message: ((row.op,), row.body, row.commands) for row in OPERATIONS
}
BATCH_BYTES = 1024 * 1024
"""A batch is closed when its bodies have grown to about this, and halved when frame 0 exceeds twice as much, so that
one message never holds up a link and frame 0 stays below what receivers accept."""
MAX_ITEMS = 2**17
"""No array is longer: room for the targets of any reply, and a bound on what a short frame can announce."""
HARMLESS_BYTES = 512
SUSPECTS = 16
"""A frame 0 longer than HARMLESS_BYTES, with more than so many bytes that could announce a long array, is walked
through first: a few kilobytes of announcements, nested, would otherwise cost 100 MB and a tenth of a second."""
SECOND_LOOK_BYTES = 64 * 1024
"""A frame 0 that holds something unreadable is taken apart, message by message, up to this size: that is slow work."""

_pack = msgpack.Packer(autoreset=True).pack
_unpack = msgpack.unpackb


# --- messages to bytes -----------------------------------------------------------------------------------------


def encode(messages: Sequence[Message]) -> list[bytes]:
    """Encode 1 to 1,024 messages as the frames of one ZeroMQ message.

    Bodies above INLINE_BYTES are attached as frames of their own. For more messages see `batches`.
    """
    rows: list[Any] = []
    frames: list[bytes] = [b""]
    message: Any  # of a class that _PLACES knows the layout of
    for message in messages:
        op, body, commands = _PLACES[type(message)]
        if body is not None and len(message[body]) > INLINE_BYTES:
            rows.append((*op, *message[:body], len(frames), *message[body + 1 :]))
            frames.append(message[body])
        elif commands is not None:
            rows.append(op + message[:commands] + (_attach(message[commands], frames),) + message[commands + 1 :])
        else:
            rows.append(op + message)
    frames[0] = _pack(rows)
    return frames


def _attach(commands: list[Command], frames: list[bytes]) -> list[Any]:
    rows: list[Any] = []
    for command in commands:
        row: tuple[Any, ...] = command[:3] if command[3] is None else command
        if len(command[2]) > INLINE_BYTES:
            row = (*row[:2], len(frames), *row[3:])
            frames.append(command[2])
        rows.append(row)
    return rows


def batches(messages: Iterable[Message]) -> Iterator[list[bytes]]:
    """Encode any number of messages, in order, as ZeroMQ messages within the limits on a batch."""
    batch: list[Message] = []
    size = 0
    message: Any  # as in `encode`
    for message in messages:
        batch.append(message)
        _, body, commands = _PLACES[type(message)]
        if body is not None:
            size += len(message[body])
        elif commands is not None:
            for command in message[commands]:
                size += len(command[2])
        if len(batch) == MAX_BATCH or size >= BATCH_BYTES:
            yield from _halved(batch)
            batch, size = [], 0
    if batch:
        yield from _halved(batch)


def _halved(batch: list[Message]) -> Iterator[list[bytes]]:
    frames = encode(batch)
    if len(frames[0]) <= 2 * BATCH_BYTES or len(batch) == 1:
        yield frames
    else:
        middle = len(batch) // 2
        yield from _halved(batch[:middle])
        yield from _halved(batch[middle:])


# --- bytes to messages -----------------------------------------------------------------------------------------


def decode(frames: Sequence[bytes]) -> list[Message | Malformed]:
    """Decode the frames of one ZeroMQ message into its messages, in order."""
    if not frames:
        return [Malformed("malformed", "an empty ZeroMQ message; frame 0 is an array of messages")]
    first = frames[0]
    size = len(first)
    if size > HARMLESS_BYTES and _suspect(first) and not _complete(first):
        return [Malformed("malformed", _no_messagepack(first))]
    try:
        rows = _unpack(first, ext_hook=_no_extension, timestamp=1, max_array_len=min(size, MAX_ITEMS))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return _second_look(frames)
    if type(rows) is not list or not 1 <= len(rows) <= MAX_BATCH:
        what = f"an array of {len(rows)}" if type(rows) is list else kind_of(rows)
        text = f"frame 0 is {what} where an array of 1 to {MAX_BATCH} messages is meant: [[op, field, …], …]"
        return [Malformed("malformed", text)]
    messages: list[Message | Malformed] = []
    for row in rows:
        try:
            read = READERS[row[0]]
        except (LookupError, TypeError):
            read = careful
        messages.append(read(row, frames))
    return messages


def _suspect(frame: bytes) -> bool:
    """Say whether many bytes look like headers of long arrays; where there are few, `find` beats `count` by far."""
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
    """Walk through without building anything: arrays announced and never filled cost nothing this way."""
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
    """Say what a frame seems to be that cannot be read: who sees this has just begun to write a handler."""
    if not frame:
        return "frame 0 is empty; connect a DEALER (a REQ socket puts an empty frame before its message)"
    if frame.lstrip()[:1] in (b"{", b"[", b'"'):
        return "frame 0 is not MessagePack but looks like JSON text; pack it as MessagePack: [[op, field, …], …]"
    return "frame 0 is not MessagePack (strings UTF-8, map keys strings, no extensions)"


def _second_look(frames: Sequence[bytes]) -> list[Message | Malformed]:
    """Read a batch with something in it that MessagePack allows and BFP does not: the other messages are good."""
    refusal = Malformed("malformed", _no_messagepack(frames[0]))
    if len(frames[0]) > SECOND_LOOK_BYTES:
        return [refusal]
    try:
        rows = _unpack(
            frames[0],
            unicode_errors="surrogateescape",
            strict_map_key=False,
            timestamp=1,
            max_array_len=min(len(frames[0]), MAX_ITEMS),
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return [refusal]
    if type(rows) is not list or not 1 <= len(rows) <= MAX_BATCH:
        return [refusal]
    return [unreadable(row) or careful(row, frames) for row in rows]
