"""Renewal of certificates, keys and tokens: whether their files have changed, and when the log reminds that one ends.

Programs that renew certificates tell the server nothing, so the files are looked at now and then.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bester.broker.tls_files import Validity, day

LOOK_S = 60.0
"""Time between two looks at the files."""
SOON_S = 14 * 24 * 3600.0
"""Time before the end of a certificate from which the log warns: programs that renew do so a month before."""
REMIND_S = 24 * 3600.0
"""Time between two warnings."""

Signature = tuple[tuple[int, int, int, int] | None, ...]


def signature(files: Iterable[Path]) -> Signature:
    """Return the parts of the files' state that differ after a change; None for a file that is not there."""
    return tuple(map(_stamp, files))


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


class Reminder:
    """Tells when to warn that a certificate ends: for the first time SOON_S before, then every REMIND_S."""

    def __init__(self) -> None:
        self._reminded: float | None = None

    def begin_anew(self) -> None:
        """Forget the last warning: another certificate is in use."""
        self._reminded = None

    def due(self, validity: Validity | None, now: float) -> tuple[str, str] | None:
        """Return `expires` or `has expired` and the day, where a warning is due, and count it as given; `now` is in
        seconds since 1970. None where no warning is due, or there is no certificate."""
        if validity is None or validity.end - now > SOON_S:
            return None
        if self._reminded is not None and now - self._reminded < REMIND_S:
            return None
        self._reminded = now
        return "has expired" if now > validity.end else "expires", day(validity.end)
