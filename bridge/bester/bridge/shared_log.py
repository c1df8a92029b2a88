"""Frames that many connections get alike, held once for one turn of the loop. Pure.

A user with many connections gets a copy of each delivery on every one of them. The frames of a turn are appended here
once; each connection's queue follows the log from a place of its own, and takes what is new there joined into one run:
before anything of its own is queued, and at the end of the turn.
"""

from __future__ import annotations

from collections.abc import Sequence


class SharedLog:
    """Frames in order, for the connections of a target: its number, and its sessions behind that, as the broker lists
    them."""

    __slots__ = ("_frames", "_run", "_run_from", "size_bytes", "target")

    def __init__(self, target: Sequence[int]) -> None:
        self.target = target
        self.size_bytes = 0
        self._frames: list[bytes] = []
        self._run = b""
        self._run_from = -1

    def __len__(self) -> int:
        return len(self._frames)

    def is_for(self, target: Sequence[int]) -> bool:
        """Return whether these are the sessions of another target as well. A broker in this process names a crowd by
        one object, until a session comes or goes."""
        return self.target is target or self.target[1:] == target[1:]

    def append(self, frame: bytes) -> None:
        """Add a frame for everybody."""
        self._frames.append(frame)
        self.size_bytes += len(frame)
        self._run_from = -1

    def since(self, place: int) -> bytes:
        """Return the frames from a place on, joined; those who ask for one place at one time get one object."""
        if place != self._run_from:
            self._run, self._run_from = b"".join(self._frames[place:]), place
        return self._run
