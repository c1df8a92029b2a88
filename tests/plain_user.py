"""A user with plain file permissions, also where the tests run as root, whom no file mode stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def plain_user(*theirs: Path) -> Iterator[None]:
    """Be a plain user for a while, who owns these files and directories. Modules used meanwhile must be imported
    before."""
    if os.geteuid() != 0:
        yield
        return
    for path in theirs:
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
