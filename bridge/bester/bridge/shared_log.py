"""Frames that many connections get alike, held once for one turn of the loop. Pure.

A user with many connections gets a copy of each delivery on every one of them. The frames of a turn are appended here
once; each connection's queue follows the log from a place of its own, and takes what is new there joined into one run:
before anything of its own is queued, and at the end of the turn. What waits for these frames to leave stands behind the
run as one mark, which all connections with that run share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Run(NamedTuple, Generic[T]):
    """Frames joined, and what waits for them: one list for all who take this run, empty where nothing does."""

    frames: bytes
    waiting: list[T]


class SharedLog(Generic[T]):
    """Frames in order, for the connections of a target: its number, and its sessions behind that, as the broker lists
    them."""

    __slots__ = ("_frames", "_run", "_run_from", "_waiting", "size_bytes", "target")

    def __init__(self, target: Sequence[int]) -> None:
        self.target = target
        self.size_bytes = 0
        self._frames: list[bytes] = []
        self._waiting: list[tuple[int, T]] = []  # with the place of its frame
        self._run: Run[T] = Run(b"", [])
        self._run_from = -1

    def __len__(self) -> int:
        return len(self._frames)

    def is_for(self, target: Sequence[int]) -> bool:
        """Return whether these are the sessions of another target as well. A broker in this process names them by
        one object, until a session comes or goes."""
        return self.target is target or self.target[1:] == target[1:]

    def append(self, frame: bytes, waiting: T | None = None) -> None:
        """Add a frame for everybody, and what waits for it to leave."""
        if waiting is not None:
            self._waiting.append((len(self._frames), waiting))
        self._frames.append(frame)
        self.size_bytes += len(frame)
        self._run_from = -1

    def since(self, place: int) -> Run[T]:
        """Return the frames from a place on; those who ask for one place at one time get one object."""
        if place != self._run_from:
            waiting = [what for at, what in self._waiting if at >= place] if self._waiting else []
            self._run, self._run_from = Run(b"".join(self._frames[place:]), waiting), place
        return self._run
