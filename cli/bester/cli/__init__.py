"""`bester`: the command line. Exit status 0 done, 1 failed, 2 wrong usage or configuration; errors are one line.

Only the modules of this package print. This module needs the standard library alone and imports next to nothing: an
error during the import of the others is one line, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bester.broker.streams import secure

INTERRUPTED = 130
"""Exit status of a program ended by Ctrl-C, as shells show it."""

PACKAGES = {"zmq": "pyzmq", "argon2": "argon2-cffi"}
"""Names in pip of modules whose package is called otherwise."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    secure()  # before anything opens a file or a socket
    try:
        from bester.cli.commands import run
    except ModuleNotFoundError as error:
        sys.stderr.write(f"bester: {missing(error)}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return run(arguments)


def missing(error: ModuleNotFoundError) -> str:
    """Return a line that names the missing module and its installation."""
    module = (error.name or str(error.msg).rpartition("'")[0].rpartition("'")[2]).partition(".")[0]
    return f"{error.msg}; `make clean setup`, or pip install {PACKAGES.get(module, module)}, installs the module"
