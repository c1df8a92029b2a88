"""Native framing: `[4 bytes: length, unsigned, little endian][body]`, any split of the stream. Pure.

The splitter never looks into a body, copies a byte at most a constant number of times, and holds at most a read and one
unfinished frame within the limit.
"""

from __future__ import annotations

from struct import Struct
from typing import Literal

HEADER_BYTES = 4
_HEADER = Struct("<I")
_unpack = _HEADER.unpack_from
SHORT_BYTES = 1024
HEADERS = tuple(map(_HEADER.pack, range(SHORT_BYTES)))
"""Headers of frames of less than SHORT_BYTES, by length: to look one up takes a quarter of the time."""

Change = Literal["begun", "grown", "ended"]
"""Change of the unfinished frame: another one has begun, the same one has grown, or there is none now."""


def frame(body: bytes) -> bytes:
    """Return one frame holding `body`."""
    return _HEADER.pack(len(body)) + body


class Splitter:
    """Cutter of a byte stream into frame bodies.

    `limit_bytes` bounds a body; `first_limit_bytes`, where given, the stream's first one. When a frame announces more
    than that, or nothing at all (unless `empty`), `refused` holds its length, and nothing after its header is read: the
    frame boundary is lost. `change` tells how the unfinished frame has changed since the reader of it set None; a read
    of whole frames leaves it alone.
    """

    __slots__ = ("_least", "_limit", "_need", "_rest", "change", "limit_bytes", "refused")

    def __init__(self, limit_bytes: int, first_limit_bytes: int | None = None, *, empty: bool = False) -> None:
        self.limit_bytes = limit_bytes
        self._least = 0 if empty else 1
        self.refused: int | None = None
        self.change: Change | None = None
        self._limit = limit_bytes if first_limit_bytes is None else first_limit_bytes  # bound of the current frame
        self._rest: bytes | bytearray = b""  # the beginning of the current frame, its header included
        self._need = HEADER_BYTES  # the length `_rest` must reach before there is anything to do

    @property
    def waiting_bytes(self) -> int:
        """Number of bytes of an unfinished frame that are held, its header included."""
        return len(self._rest)

    @property
    def needed_bytes(self) -> int:
        """Number of bytes of the unfinished frame as far as it is known, its header included."""
        return self._need

    def drop(self) -> None:
        """Drop the unfinished frame: nothing more is read of the stream."""
        if self._rest:
            self._rest, self._need = b"", HEADER_BYTES
            self.change = "ended"

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; return the bodies that they complete, in order.

        Bodies before a refused header are returned as well. Once `refused` is set, all bytes are ignored.
        """
        if self.refused is not None:
            return []
        if self._rest:
            return self._finish(data)
        end = len(data)
        if end > HEADER_BYTES:
            (length,) = _unpack(data)
            if length == end - HEADER_BYTES and length <= self._limit:  # most often: one whole frame
                self._limit = self.limit_bytes
                return [data[HEADER_BYTES:]]
        return self._cut(data, 0)

    def _finish(self, data: bytes) -> list[bytes]:
        """Complete the current frame. Only the missing bytes are joined to the frame: a large frame is not copied at
        each read."""
        rest = self._rest
        if type(rest) is not bytearray:
            rest = self._rest = bytearray(rest)
        start = 0
        while True:
            lacking = self._need - len(rest)
            rest += data[start : start + lacking]
            start += lacking
            if len(rest) < self._need:
                if self.change is None:
                    self.change = "grown"
                return []
            if self._need > HEADER_BYTES:
                break
            (length,) = _HEADER.unpack(rest)
            if not self._least <= length <= self._limit:
                self._refuse(length)
                return []
            self._need += length
            if not length:
                break
        self._rest, self._need, self._limit = b"", HEADER_BYTES, self.limit_bytes
        self.change = "ended"
        bodies = [bytes(memoryview(rest)[HEADER_BYTES:])]
        return bodies if start == len(data) else bodies + self._cut(data, start)

    def _cut(self, data: bytes, start: int) -> list[bytes]:
        """Cut `data` from `start`, which is a frame boundary; hold the remaining bytes."""
        bodies: list[bytes] = []
        end, least, limit = len(data), self._least, self._limit
        need = HEADER_BYTES
        body = start + HEADER_BYTES
        while body <= end:
            (length,) = _unpack(data, start)
            if not least <= length <= limit:
                self._refuse(length)
                return bodies
            stop = body + length
            if stop > end:
                need += length
                break
            bodies.append(data[body:stop])
            start, body, limit = stop, stop + HEADER_BYTES, self.limit_bytes
        self._limit = limit
        if start != end:
            self._need, self._rest = need, data[start:]
            self.change = "begun"
        return bodies

    def _refuse(self, length: int) -> None:
        self.refused = length
        self.drop()
