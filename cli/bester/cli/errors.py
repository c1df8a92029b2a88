"""Errors as one line on standard error and an exit status; never a traceback."""

from __future__ import annotations

import errno
import os

import click

from bester.broker.streams import OutputError, abandon
from bester.broker.wire.codes import BesterError, ConfigError
from bester.cli.start import INTERRUPTED, is_interrupt, missing

FAILED = 1
MISUSED = 2
LINE_CHARACTERS = 2_000
"""Longest error: the middle of a longer one, such as a name of a hundred thousand letters, is left out."""

REMEDIES = {
    errno.EADDRINUSE: "stop the program that listens there, or choose another address in bester.toml",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another in bester.toml",
    errno.EACCES: "use a path or port that is yours; ports below 1024 are root's",
    errno.EPERM: "use a path or port that is yours",
    errno.ENOENT: "see that the path is right",
    errno.ENOSPC: "free some room on the disk",
    errno.EDQUOT: "free some room on the disk",
    errno.EROFS: "choose a place that can be written to",
    errno.EBADF: "give it a file, a pipe or a terminal",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files; end some programs",
    errno.ECONNREFUSED: "see that the server runs and listens there",
    errno.ENETUNREACH: "see that the address is right",
    errno.EHOSTUNREACH: "see that the address is right",
}
"""Remedies by the number of a system error."""
FILE_REMEDIES = {
    errno.EACCES: "use a path that is yours, or run this as the user whose it is",
    errno.EPERM: "use a path that is yours, or run this as the user whose it is",
}
"""Remedies for errors that name a file, and so concern no port."""


def report(error: BaseException) -> int:
    """Log an error as one line and return the exit status. With BESTER_TRACEBACK set, unexpected errors are raised."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return MISUSED
    if isinstance(error, OutputError):
        abandon()
    if isinstance(error, OutputError) and error.errno == errno.EPIPE and not hasattr(error, "__notes__"):
        return FAILED  # the reader has read enough, as `head` does
    if is_interrupt(error) or isinstance(error, click.Abort):
        return INTERRUPTED
    from bester.broker import logs

    text, status = describe(error)
    logs.fail(text)
    return status


def describe(error: BaseException) -> tuple[str, int]:
    """Return an error as one line with its remedy, and the exit status."""
    status = MISUSED if isinstance(error, (ConfigError, click.UsageError)) else FAILED
    if isinstance(error, click.ClickException):
        text = _usage(error)
    elif isinstance(error, BesterError):
        text = error.text
    elif isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return describe(error.exceptions[0])
    elif isinstance(error, ModuleNotFoundError):
        text = missing(error)
    elif isinstance(error, OutputError):
        remedies = [REMEDIES[error.errno]] if error.errno in REMEDIES else []
        text = "; ".join([str(error), *remedies, *getattr(error, "__notes__", ())])
    elif isinstance(error, UnicodeError):
        text = f"{_piece(error)} is not UTF-8; write it so"
    elif isinstance(getattr(error, "errno", None), int):  # OSError, and ZeroMQ's errors
        text = _system(error)
    elif os.environ.get("BESTER_TRACEBACK"):
        raise error
    else:
        text = f"internal error, {type(error).__name__}: {error}; BESTER_TRACEBACK=1 shows where"
    from bester.broker.streams import plain

    text = plain(" ".join(text.split()))
    half = LINE_CHARACTERS // 2
    return (text if len(text) <= LINE_CHARACTERS else f"{text[:half]} … {text[-half:]}"), status


def _usage(error: click.ClickException) -> str:
    """Return click's sentence with a remedy in place of its full stop; our own sentences hold a remedy already."""
    text = error.format_message()
    where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
    # Some of click's sentences have no full stop, and a question at the end is a remedy.
    bare = where and (text.endswith(".") or not ("; " in text or text.endswith("?")))
    return f"{text.removesuffix('.')}; see `{where} --help`" if bare else text


def _piece(error: UnicodeError) -> str:
    """Return the piece of a text, or of input, that cannot be decoded or encoded."""
    if not isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
        return str(error)
    return ascii(error.object[error.start : error.end])


def _is_nowhere() -> bool:
    """Return whether the working directory has been removed."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _system(error: BaseException) -> str:
    number: int = getattr(error, "errno", 0)
    name = getattr(error, "filename", None)
    if number == errno.ENOENT and not name and _is_nowhere():
        return "the directory this was started in is not there any more; cd to one that is"
    text = getattr(error, "strerror", None) or str(error)
    remedy = (FILE_REMEDIES if name else {}).get(number) or REMEDIES.get(number)
    return f"{f'{os.fsdecode(name)}: ' if name else ''}{text}{f'; {remedy}' if remedy else ''}"
