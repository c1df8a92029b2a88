"""MessagePack of strangers within bounds: a short frame announces no long array, and no frame holds too many values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.messages import BATCH_BYTES, Malformed

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
HARMLESS_BYTES = 512
SUSPECTS = 16
"""Bytes in a frame 0 above HARMLESS_BYTES that could announce a long array; with more of them the frame is walked
through first, as a few kilobytes of nested announcements would cost 100 MB and a tenth of a second."""


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


def unpack_value(
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


def is_hollow(frame: bytes) -> bool:
    """Return whether a frame above HARMLESS_BYTES announces more than it holds, or holds more than one value."""
    return _is_suspect(frame) and not _is_whole(frame)


def _is_suspect(frame: bytes) -> bool:
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


def _is_whole(frame: bytes) -> bool:
    """Walk through a frame without building objects, so that arrays announced and never filled cost nothing; return
    whether the frame is one whole value."""
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(frame), 1))
    unpacker.feed(frame)
    try:
        unpacker.skip()
    except (ValueError, msgpack.UnpackException):
        return False
    return bool(unpacker.tell() == len(frame))


def no_extension(code: int, data: bytes) -> Any:
    """Refuse a value of an extension type: BFP has none."""
    raise ValueError(f"extension type {code}")
