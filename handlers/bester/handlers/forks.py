"""The end of a copy of the handler's process, which a function has made with `os.fork`.

The copy has the sockets, the loop and the queue of its origin. Once the function is over in the copy, nothing else may
run there: the requests that the origin has queued would be handled twice, and no one would ever end the copy.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

process = os.getpid()
"""Number of this process, without the system call that `os.getpid` makes."""

RETURNED = """\
a copy of this process, made with os.fork, has returned from the function that made the copy, and ends: the result of \
the first process alone counts; let such a copy end with os._exit
"""


def _note_copy() -> None:
    global process  # noqa: PLW0603 (one process has one number)
    process = os.getpid()


os.register_at_fork(after_in_child=_note_copy)


def end_copy(origin: int, error: BaseException | None = None) -> None:
    """End this process where it is not the process `origin`; with an exception as a Python program ends with it."""
    if process == origin:
        return
    status, text = 0, RETURNED
    if error is not None:
        status, text = _ends_with(error)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # of AttributeError: there is no such stream
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))
    os._exit(status)  # a gentler end would wait for threads that the copy does not have


def _ends_with(error: BaseException) -> tuple[int, str]:
    """Return exit status and last words of a program that this exception ends."""
    if issubclass(type(error), SystemExit):
        code = getattr(error, "code", None)
        if code is None or isinstance(code, int):
            return (code or 0) & 0xFF, ""
        return 1, f"{code}\n"
    return 1, "".join(traceback.format_exception(error))
