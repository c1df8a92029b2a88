"""The frames that one connection has still to send, and the bytes that have left the process. Pure.

Bytes are counted from the connection's beginning: frames are pushed, taken by the shell in chunks, and sent once the
socket has taken the whole chunk over. A mark stands behind a frame, and is returned when everything before the mark has
been sent, never earlier.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Mark(NamedTuple, Generic[T]):
    """Mark behind a frame: `end` is the count of bytes that must be sent before, `what` the caller's own value."""

    end: int
    what: T


class OutQueue(Generic[T]):
    """Queue of frames that is emptied in chunks, one at a time."""

    __slots__ = ("_frames", "_marks", "pushed_bytes", "sent_bytes", "taken_bytes")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._marks: list[Mark[T]] = []
        self.pushed_bytes = 0
        self.taken_bytes = 0
        self.sent_bytes = 0

    @property
    def queued_bytes(self) -> int:
        """Number of bytes that are not sent."""
        return self.pushed_bytes - self.sent_bytes

    @property
    def in_flight(self) -> bool:
        """Return whether a chunk was taken that is not sent."""
        return self.taken_bytes != self.sent_bytes

    def push(self, frame: bytes) -> None:
        """Append a frame."""
        self._frames.append(frame)
        self.pushed_bytes += len(frame)

    def mark(self, what: T) -> None:
        """Put a mark behind everything that was pushed so far."""
        self._marks.append(Mark(self.pushed_bytes, what))

    def take(self, chunk_bytes: int) -> bytes:
        """Return the next frames, joined, up to about `chunk_bytes` (one frame at least); empty where there is no
        frame, or the last chunk is not sent."""
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
        """Count the chunk that was taken as sent; return the marks before its end."""
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
        """Forget the frames of a gone connection; return the marks that will never be passed."""
        marks, self._marks = self._marks, []
        self._frames = []
        self.pushed_bytes = self.taken_bytes = self.sent_bytes
        return marks
