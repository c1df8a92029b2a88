"""Standard input, output and error of a program, whatever the world has made of them.

A program may be started without them, with a disk behind them that is full, with a reader that has gone, or in an
encoding that lacks most letters. `secure` is called before anything else opens a file or a socket: a descriptor below 3
that is free would go to one of those, and what is printed would be written into it.

Afterwards a failed write to standard output raises OutputError; one to standard error is dropped, since there is no
place left to report it. Characters that the encoding lacks are written as JSON escapes.

Needs the standard library alone, and does nothing when it is imported.
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
"""The error handler that writes what an encoding lacks as JSON escapes: a line of JSON stays JSON in any encoding."""


class OutputError(Exception):
    """Standard output cannot be written to; `errno` and `strerror` as of an OSError.

    It is none, so that nobody takes it for a fault of the file or the connection at hand.
    """

    def __init__(self, number: int | None, text: str) -> None:
        super().__init__(f"standard output: {text}")
        self.errno = number
        self.strerror = text


_missing: set[int] = set()
_outputs: list[Output] = []


def secure() -> None:
    """Open /dev/null where standard input, output or error is missing, and make writing to them safe.

    Calling it again does nothing. Streams that somebody has put in place of the interpreter's own are left alone.
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
    """Drop what cannot be written to standard output, too: nobody waits for what a program prints that serves."""
    for output in _outputs:
        output.forgiving = True


def abandon() -> None:
    """Drop what is still buffered for standard output, and what comes: its failure was reported. The interpreter would
    fail to write it once more, at its end."""
    for output in _outputs:
        output.abandoned = output.fileno() == 1


class Output(io.FileIO):
    """One descriptor that is written to. A failure raises OutputError, or, with `forgiving`, drops what was written.
    Ctrl-C in the middle of a write ends standard output there."""

    def __init__(self, number: int, *, forgiving: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.forgiving = forgiving
        self.abandoned = False
        _outputs.append(self)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what there is room for, and wait where a descriptor that does not block has none; return how much."""
        size = memoryview(data).nbytes
        if self.abandoned:
            return size
        try:
            if self.fileno() in _missing:
                raise OSError(errno.EBADF, "it is closed")
            # None: there is no room in a descriptor that somebody else has set to O_NONBLOCK.
            while (written := super().write(data)) is None:
                wait_for_room(self.fileno())
        except OSError as error:
            if self.forgiving:
                return size
            raise OutputError(error.errno, error.strerror or str(error)) from None
        except KeyboardInterrupt:
            # The buffer takes it for unwritten, and would write it a second time at the end.
            self.abandoned = self.fileno() == 1
            raise
        return written


def wait_for_room(descriptor: int) -> None:
    """Wait until a descriptor that does not block takes more."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def has_room(descriptor: int, timeout_s: float) -> bool:
    """Say whether a descriptor takes more, after waiting for that as long as `timeout_s`; one that has failed does."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))


def _fill(number: int) -> None:
    try:
        found = os.open(os.devnull, os.O_RDWR)
    except OSError:  # there is no /dev; a directory keeps the number from others as well
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
    if getattr(old, "write_through", False):  # PYTHONUNBUFFERED, or python -u: there is no buffer between the two
        return io.TextIOWrapper(output, encoding, errors, write_through=True)
    at_once = output.isatty() or output.fileno() == 2
    return io.TextIOWrapper(io.BufferedWriter(output), encoding, errors, line_buffering=at_once)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(json.dumps(char)[1:-1] for char in error.object[error.start : error.end]), error.end
