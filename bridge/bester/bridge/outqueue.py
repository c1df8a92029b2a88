"""The frames that one connection has still to send, and the bytes that have left the process. Pure.

Bytes are counted from the connection's beginning: frames are pushed, taken by the shell in chunks, and sent once the
socket has taken the whole chunk over. A mark stands behind a frame, and is returned when everything before the mark has
been sent, never earlier. A queue may follow a log of frames that it shares with others: what is new there comes first.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from bester.bridge.shared_log import SharedLog

T = TypeVar("T")

JOIN_BYTES = 64 * 1024
"""Pieces above this size are never joined with others: a piece that many queues share is copied by no queue, and a
chunk of it is a view of the piece."""


class Mark(NamedTuple, Generic[T]):
    """Mark behind a frame, or behind a run of a shared log: `end` is the count of bytes that must be sent before.
    Where fewer than `least` have left, nothing of what the mark is for can have arrived. `what` are the caller's own
    values; all queues that take a run have one list of them."""

    least: int
    end: int
    what: list[T]


class OutQueue(Generic[T]):
    """Queue of frames that is emptied in chunks, one at a time. `log` is the shared log that it follows, if any: call
    `catch_up` before anything else is pushed, and before the counts of bytes are read."""

    __slots__ = ("_frames", "_marks", "_place", "log", "pushed_bytes", "sent_bytes", "taken_bytes")

    def __init__(self) -> None:
        self._frames: list[bytes | memoryview] = []
        self._marks: list[Mark[T]] = []
        self.pushed_bytes = 0
        self.taken_bytes = 0
        self.sent_bytes = 0
        self.log: SharedLog[T] | None = None
        self._place = 0

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

    def follow(self, log: SharedLog[T] | None) -> None:
        """Take what is appended to a log from now on; None: follow none any more."""
        self.log = log
        self._place = 0 if log is None else len(log)

    def catch_up(self) -> None:
        """Push what is new in the log."""
        log = self.log
        if log is not None and self._place < len(log):
            run = log.since(self._place)
            self._place = len(log)
            begin = self.pushed_bytes
            self.push(run.frames)
            if run.waiting:
                self._marks.append(Mark(begin + 1, self.pushed_bytes, run.waiting))

    def pass_over(self, log: SharedLog[T]) -> None:
        """Leave out what is new in a log: the frame was pushed already."""
        if self.log is log:
            self._place = len(log)

    def mark(self, what: T) -> None:
        """Put a mark behind everything that was pushed so far, for the last frame of it."""
        self._marks.append(Mark(self.pushed_bytes, self.pushed_bytes, [what]))

    def take(self, chunk_bytes: int) -> bytes | memoryview:
        """Return the next bytes, `chunk_bytes` at most: small pieces joined, or (a part of) a large one; empty where
        there is nothing to send, or the last chunk is not sent."""
        frames = self._frames
        if not frames or self.taken_bytes != self.sent_bytes:
            return b""
        waiting = self.pushed_bytes - self.taken_bytes
        if waiting <= chunk_bytes and waiting <= JOIN_BYTES:
            chunk: bytes | memoryview = b"".join(frames)
            self._frames = []
        else:
            chunk = self._take_part(frames, chunk_bytes)
        self.taken_bytes += len(chunk)
        return chunk

    @staticmethod
    def _take_part(frames: list[bytes | memoryview], chunk_bytes: int) -> bytes | memoryview:
        """Remove the first bytes from pieces that are too large, or too many, for one joined chunk."""
        join_bytes = min(chunk_bytes, JOIN_BYTES)
        first = frames[0]
        if len(first) <= join_bytes:
            count, size = 1, len(first)
            while count < len(frames) and len(frames[count]) <= join_bytes and size + len(frames[count]) <= chunk_bytes:
                size += len(frames[count])
                count += 1
            joined = b"".join(frames[:count])
            del frames[:count]
            return joined
        if len(first) <= chunk_bytes:
            return frames.pop(0)
        view = memoryview(first)
        frames[0] = view[chunk_bytes:]
        return view[:chunk_bytes]

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
        self.log = None
        self.pushed_bytes = self.taken_bytes = self.sent_bytes
        return marks
