"""Journals of the processes in a chaos run: one file each, one record a line, which outlives a killed process.

A record is with the kernel before anything follows from it; a process that dies leaves whole records, and at most one
torn line at the end. Invariant: no record is buffered, and none changes once written.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Self

import msgspec


class Sent(msgspec.Struct, tag="sent", tag_field="what", frozen=True):
    """A message is about to be submitted. `targets`: the users to receive it, by the recipient's name in the report.

    `ttl_s`: how long the message may wait, where its sender says so. `kills`: the message kills its handlers. `asks`:
    the sender is to learn later outcomes of queued recipients.
    """

    number: int
    type: str
    targets: dict[str, list[str]]
    at_s: float
    ttl_s: float | None = None
    kills: bool = False
    asks: bool = True


class Told(msgspec.Struct, tag="told", tag_field="what", frozen=True):
    """The report on a message came. `recipients` as in the report; `message` is the server's id of the message."""

    number: int
    good: bool
    reason: str | None
    recipients: dict[str, str]
    message: str | None
    at_s: float


class Later(msgspec.Struct, tag="later", tag_field="what", frozen=True):
    """The later outcome of a queued recipient, as the server sent it."""

    message: str
    recipient: str
    outcome: str
    at_s: float


class GivenUp(msgspec.Struct, tag="given-up", tag_field="what", frozen=True):
    """The client library has given up the wait for a report."""

    number: int
    why: str
    at_s: float


Place = tuple[str, str, str, int]
"""A message's place in a lane: the lane's server, type and numbering, and the message's number."""


class Got(msgspec.Struct, tag="got", tag_field="what", frozen=True):
    """A user or a native server received a message. `sound`: the text is the one that was sent. `link`: the connection
    that the message came on. `place`: the place in the lane, of a message to a native server."""

    number: int
    user: str
    id: str | None
    marked: bool
    sound: bool
    link: str
    at_s: float
    place: Place | None = None


class Died(msgspec.Struct, tag="died", tag_field="what", frozen=True):
    """A handler is about to be killed by the message that it handles."""

    number: int
    server: str
    at_s: float


class Closed(msgspec.Struct, tag="closed", tag_field="what", frozen=True):
    """The process ended in good order: each message that it had sent was reported on, or given up."""

    at_s: float


Record = Sent | Told | Later | GivenUp | Got | Died | Closed

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def now_s() -> float:
    """Seconds on the clock that all processes of a machine share."""
    return time.monotonic()


class Journal:
    """The file of one life of one process, to be written."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, record: Record) -> None:
        """Write a record; on return the record is safe from anything but the machine's own end."""
        line = _encode(record) + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("the disk is full: a chaos run cannot go on without its journals")


class Journals:
    """All journals of a run, to be read while they grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}

    def news(self) -> list[tuple[str, Record]]:
        """Return the records that were not returned before, each with the name of its journal."""
        found: list[tuple[str, Record]] = []
        for path in sorted(self._directory.glob("*.journal")):
            start = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read[path] = start + len(whole)
            found += [(path.stem, _decode(line)) for line in whole.splitlines()]
        return found
