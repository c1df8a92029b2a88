"""What one connection has still to be sent, and which of it has left the process. Pure.

Bytes are counted from the connection's beginning: `pushed` frames are `taken` by the shell in chunks, and have `left`
once the socket has taken the whole chunk over. A mark stands behind a frame whose leaving somebody waits for; it is
handed back when everything before it has left, never earlier.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Mark(NamedTuple, Generic[T]):
    """`end` is the count of bytes that must have left; `what` belongs to whoever waits."""

    end: int
    what: T


class OutQueue(Generic[T]):
    """A queue of frames that is emptied in chunks, one at a time."""

    __slots__ = ("_frames", "_marks", "pushed_bytes", "sent_bytes", "taken_bytes")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._marks: list[Mark[T]] = []
        self.pushed_bytes = 0
        self.taken_bytes = 0
        self.sent_bytes = 0

    @property
    def queued_bytes(self) -> int:
        """Bytes that have not left."""
        return self.pushed_bytes - self.sent_bytes

    @property
    def in_flight(self) -> bool:
        """Whether a chunk was taken that has not left."""
        return self.taken_bytes != self.sent_bytes

    def push(self, frame: bytes) -> None:
        """Append a frame."""
        self._frames.append(frame)
        self.pushed_bytes += len(frame)

    def mark(self, what: T) -> None:
        """Ask for `what` back when all that was pushed so far has left."""
        self._marks.append(Mark(self.pushed_bytes, what))

    def take(self, chunk_bytes: int) -> bytes:
        """Return the next frames, joined, up to about `chunk_bytes` (one frame at least); empty where there is nothing
        or the last chunk has not left."""
        frames = self._frames
        if not frames or self.taken_bytes != self.sent_bytes:
            return b""
        waiting = self.pushed_bytes - self.taken_bytes
        if len(frames) == 1 or waiting <= chunk_bytes:
            chunk = b"".join(frames)
            self._frames = []
        else:
            count = size = 0
            while size + len(frames[count]) <= chunk_bytes or not count:
                size += len(frames[count])
                count += 1
            chunk = b"".join(frames[:count])
            del frames[:count]
        self.taken_bytes += len(chunk)
        return chunk

    def on_sent(self) -> list[Mark[T]]:
        """The chunk that was taken has left; return the marks it passed."""
        self.sent_bytes = self.taken_bytes
        marks = self._marks
        if not marks:
            return []
        if marks[-1].end <= self.sent_bytes:
            self._marks = []
            return marks
        count = 0
        while marks[count].end <= self.sent_bytes:
            count += 1
        passed = marks[:count]
        del marks[:count]
        return passed

    def drop(self) -> list[Mark[T]]:
        """The connection is gone: forget what waits; return the marks that will never be passed."""
        marks, self._marks = self._marks, []
        self._frames = []
        self.pushed_bytes = self.taken_bytes = self.sent_bytes
        return marks
