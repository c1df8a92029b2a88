"""Standard input, output and error of a program, made safe in every state that a program may find them in.

A program may start without them, on a full disk, with a reader that has gone, or in an encoding that lacks most
letters. `secure` is called before any file or socket is opened: a free descriptor below 3 would be given to that file,
and printed text would be written into it.

Afterwards a failed write to standard output raises OutputError; a failed write to standard error is dropped, as no
place is left to report it. Characters that the encoding lacks are written as JSON escapes.

This module needs the standard library alone, and importing it has no effect.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ESCAPED = "bester.escaped"
"""Error handler that writes JSON escapes for characters that the encoding lacks: a line of JSON stays JSON."""


class OutputError(Exception):
    """Failure of a write to standard output; `errno` and `strerror` are those of an OSError.

    This class is no OSError, so that no caller takes it for a fault of a file or connection.
    """

    def __init__(self, number: int | None, text: str) -> None:
        super().__init__(f"standard output: {text}")
        self.errno = number
        self.strerror = text


_missing: set[int] = set()
_outputs: list[Output] = []


def secure() -> None:
    """Open /dev/null for missing standard streams, and make writing to them safe.

    A repeated call does nothing. Streams that replace the interpreter's own stay unchanged.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _fill(number)
    codecs.register_error(ESCAPED, _escaped)
    if sys.stdin is None and sys.__stdin__ is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(Output(1, forgiving=False), sys.stdout, ESCAPED)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(Output(2, forgiving=True), sys.stderr, "backslashreplace")


def is_missing(number: int) -> bool:
    """Return whether the program was started without this descriptor (0 to 2)."""
    return number in _missing


def forgive() -> None:
    """Drop failed writes to standard output from now on: no user waits for the output of a serving program."""
    for output in _outputs:
        output.forgiving = True


def abandon() -> None:
    """Drop the buffered and all later output of standard output, whose failure was reported; the interpreter would fail
    to write the buffer once more at its end."""
    for output in _outputs:
        output.abandoned = output.fileno() == 1


class Output(io.FileIO):
    """Writer to one descriptor. A failed write raises OutputError, or is dropped if `forgiving`.

    Ctrl-C within a write to standard output ends its output there.
    """

    def __init__(self, number: int, *, forgiving: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.forgiving = forgiving
        self.abandoned = False
        _outputs.append(self)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write as much as the descriptor takes, after waiting for room if necessary; return the number of bytes."""
        size = memoryview(data).nbytes
        if self.abandoned:
            return size
        try:
            if self.fileno() in _missing:
                raise OSError(errno.EBADF, "it is closed")
            # None: another process has set the descriptor to O_NONBLOCK, and it has no room.
            while (written := super().write(data)) is None:
                wait_for_room(self.fileno())
        except OSError as error:
            if self.forgiving:
                return size
            raise OutputError(error.errno, error.strerror or str(error)) from None
        except KeyboardInterrupt:
            # The buffer counts the data as unwritten, and would write them again at the end.
            self.abandoned = self.fileno() == 1
            raise
        return written


def wait_for_room(descriptor: int) -> None:
    """Wait until a non-blocking descriptor has room."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def has_room(descriptor: int, timeout_s: float) -> bool:
    """Return whether a descriptor takes more, after at most `timeout_s` seconds; a failed descriptor does."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))


def _fill(number: int) -> None:
    try:
        found = os.open(os.devnull, os.O_RDWR)
    except OSError:  # without /dev, a directory occupies the descriptor as well
        found = os.open("/", os.O_RDONLY)
    if found != number:
        os.dup2(found, number)
        os.close(found)
    os.set_inheritable(number, True)
    _missing.add(number)


def _text(output: Output, old: TextIO | None, errors: str) -> TextIO:
    encoding = getattr(old, "encoding", None) or "utf-8"
    if old is not None:
        old.flush()
    if getattr(old, "write_through", False):  # PYTHONUNBUFFERED or python -u: no buffer in between
        return io.TextIOWrapper(output, encoding, errors, write_through=True)
    at_once = output.isatty() or output.fileno() == 2
    return io.TextIOWrapper(io.BufferedWriter(output), encoding, errors, line_buffering=at_once)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(json.dumps(char)[1:-1] for char in error.object[error.start : error.end]), error.end


def plain(text: str, kept: str = "") -> str:
    """Return a text with control and invisible characters spelled out as JSON does, but for those of `kept`: text of
    strangers, and names of files, must not move a terminal's cursor, nor hide anything."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else json.dumps(char)[1:-1] for char in text)
