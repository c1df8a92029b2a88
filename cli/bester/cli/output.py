"""Output of the commands: results on standard output, remarks on standard error."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bester.broker.streams import OutputError, plain


def out(line: str) -> None:
    """Print a line, which is written at the return. Raises OutputError."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def done(line: str) -> None:
    """Print a line about a completed change; an OutputError then carries the line as a note."""
    line = plain(line)
    try:
        out(line)
    except OutputError as error:
        error.add_note(line)
        raise


def err(line: str) -> None:
    """Print a line on standard error; a failure there cannot be reported."""
    sys.stderr.write(f"{plain(line)}\n")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a blocked write: an event loop that waits for the write would not see the signal."""
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield  # a program started to ignore Ctrl-C keeps ignoring it
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def reader_watched() -> Iterator[None]:
    """Cancel the running task and raise OutputError as soon as the reader of standard output, a pipe, is gone.

    Otherwise the loss would be noticed at the next line, which may take days to come.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    gone = False

    def on_readable() -> None:
        nonlocal gone
        loop.remove_reader(1)
        gone = _has_no_reader(1)  # a pipe that is also open for reading becomes readable now and then
        if gone:
            task.cancel()

    watched = _is_pipe(1)
    if watched:
        loop.add_reader(1, on_readable)
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise OutputError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
    finally:
        if watched:
            loop.remove_reader(1)


def _is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
