"""Native framing: `[4 bytes: length, unsigned, little endian][body]`, any split of the stream. Pure.

The splitter never looks into a body, copies a byte at most a constant number of times, and holds at most a read and one
unfinished frame within the limit.
"""

from __future__ import annotations

from struct import Struct

HEADER_BYTES = 4
_HEADER = Struct("<I")


def frame(body: bytes) -> bytes:
    """Return one frame holding `body`."""
    return _HEADER.pack(len(body)) + body


class Splitter:
    """Cutter of a byte stream into frame bodies.

    `limit_bytes` bounds a body; `first_limit_bytes`, where given, the stream's first one. When a frame announces more
    than that, or nothing at all (unless `empty`), `refused` holds its length, and nothing after its header is read: the
    frame boundary is lost.
    """

    __slots__ = ("_least", "_limit", "_need", "_rest", "limit_bytes", "refused")

    def __init__(self, limit_bytes: int, first_limit_bytes: int | None = None, *, empty: bool = False) -> None:
        self.limit_bytes = limit_bytes
        self._least = 0 if empty else 1
        self.refused: int | None = None
        self._limit = limit_bytes if first_limit_bytes is None else first_limit_bytes  # bound of the current frame
        self._rest: bytes | bytearray = b""  # the beginning of the current frame, its header included
        self._need = HEADER_BYTES  # the length `_rest` must reach before there is anything to do

    @property
    def waiting_bytes(self) -> int:
        """Number of bytes of an unfinished frame that are held, its header included."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; return the bodies that they complete, in order.

        Bodies before a refused header are returned as well. Once `refused` is set, all bytes are ignored.
        """
        if self.refused is not None:
            return []
        if not self._rest:
            return self._cut(data, 0)
        return self._finish(data)

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
        bodies = [bytes(memoryview(rest)[HEADER_BYTES:])]
        return bodies if start == len(data) else bodies + self._cut(data, start)

    def _cut(self, data: bytes, start: int) -> list[bytes]:
        """Cut `data` from `start`, which is a frame boundary; hold the remaining bytes."""
        bodies: list[bytes] = []
        end, least, limit = len(data), self._least, self._limit
        need = HEADER_BYTES
        unpack = _HEADER.unpack_from
        while end - start >= HEADER_BYTES:
            (length,) = unpack(data, start)
            if not least <= length <= limit:
                self._refuse(length)
                return bodies
            body = start + HEADER_BYTES
            if body + length > end:
                need += length
                break
            start = body + length
            bodies.append(data[body:start])
            limit = self.limit_bytes
        self._need, self._limit = need, limit
        self._rest = data[start:]
        return bodies

    def _refuse(self, length: int) -> None:
        self.refused = length
        self._rest = b""
