"""Any number of messages to ZeroMQ messages within the limits: batches that delay no link, and faults that stay alone.

A message that cannot be encoded, or that its receiver would refuse, affects no other message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.codec import LAYOUTS, encode
from bester.broker.wire.codes import WireError
from bester.broker.wire.messages import BATCH_BYTES, MAX_BATCH, MAX_FRAME_BYTES, Message
from bester.broker.wire.notes import describe
from bester.broker.wire.unpacking import (
    LONG_BYTES,
    MAX_ITEMS,
    MAX_WEIGHT,
    TooManyError,
    no_extension,
    unpack_value,
)

LITTLE_BYTES = 64
"""Bodies up to this stay inlined even if frame 0 is too long, as an attachment costs about as much."""

OnUnsendable = Callable[[Message, WireError], Message | None]
"""Callback for a message that cannot be sent, with the reason; returns the message to send in its place, or None."""


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
    message: Any  # instance of a class in LAYOUTS
    for message in messages:
        try:
            _, body, commands, _ = LAYOUTS[type(message)]
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
    _, body, commands, _ = LAYOUTS[type(message)]
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
            msgpack.unpackb(frame, ext_hook=no_extension, timestamp=1, max_array_len=MAX_ITEMS)
        except ValueError:
            pass
        else:
            return  # a false alarm
    raise WireError("frame-too-large", f"an array of {longest} elements; {MAX_ITEMS} are allowed")


def _check_weight(frame: bytes) -> None:
    """Raise WireError if a long frame 0 holds more values than receivers read."""
    try:
        unpack_value(frame, no_extension, MAX_WEIGHT)
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
