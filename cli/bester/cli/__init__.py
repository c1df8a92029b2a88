"""`bester`: the command line. Exit status 0 done, 1 failed, 2 wrong usage or configuration; errors are one line.

Only the modules of this package print. This module needs the standard library alone and imports next to nothing: an
error during the import of the others is one line, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bester.broker.streams import secure
from bester.cli.start import INTERRUPTED, is_interrupt, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    secure()  # before anything opens a file or a socket
    try:
        from bester.cli.commands import run
    except ModuleNotFoundError as error:
        sys.stderr.write(f"bester: {missing(error)}\n")
        return 1
    except (RuntimeError, KeyboardInterrupt) as error:
        if not is_interrupt(error):
            raise
        return INTERRUPTED
    return run(arguments)
