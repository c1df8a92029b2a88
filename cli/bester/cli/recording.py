"""Recordings as files: a head, then a message with the answer of its handler a line, as JSON.

A file belongs to its owner alone. A recorder that is killed leaves at most its last line unfinished.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from bester.broker.wire.codes import ConfigError
from bester.broker.wire.messages import Command, Reply, Request

FORMAT = 1
"""Version of the format, under the key `recording` of the head."""
MAX_LINE = 256 * 1024 * 1024
"""Bytes of a line: more than any message and its answer take."""


class Entry(NamedTuple):
    """A message of a recording, and its answer, which was given `at_s` seconds after 1970."""

    at_s: float
    request: Request
    reply: Reply


@contextlib.contextmanager
def created(path: Path, server: str, type_: str, at_ms: int) -> Iterator[IO[str]]:
    """Open a new recording of mode 0600. Raises ConfigError where there is a file of the name."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already, and no recording replaces a file; name another file") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        head = {"recording": FORMAT, "server": server, "type": type_, "at_ms": at_ms}
        add(file, [head])
        yield file


def add(file: IO[str], rows: list[dict[str, Any]]) -> None:
    """Add rows as lines; they are in the file at the return."""
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a recording in order; an unfinished last line is left out. Raises ConfigError."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            try:
                row = json.loads(line)
                if number == 1:
                    _check_head(path, row)
                else:
                    yield _entry(row)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                if number > 1 and not line.endswith(b"\n"):
                    return
                text = f"{path}, line {number}: is no line of a recording; `bester record` makes recordings"
                raise ConfigError(text) from None
        if number == 0:
            raise ConfigError(f"{path}: is empty, and so is no recording; `bester record` makes recordings")


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file that `bester record` has made") from None


def _check_head(path: Path, head: dict[str, Any]) -> None:
    if head["recording"] != FORMAT:
        raise ConfigError(f"{path}: is a recording of format {head['recording']}, and this program reads {FORMAT}")


def _entry(row: dict[str, Any]) -> Entry:
    request, reply = row["request"], row["reply"]
    meta = dict(request["meta"])
    if not isinstance(request["type"], str) or not isinstance(meta["id"], str):
        raise TypeError
    commands = [
        Command(each["command"], list(each["targets"]), each["body"].encode(), each["type"])
        for each in reply["commands"]
    ]
    return Entry(
        row["at_ms"] / 1000,
        Request(0, request["type"], request["body"].encode(), request["user"], meta),
        Reply(0, int(reply["status"]), commands, reply["note"], reply["code"]),
    )
