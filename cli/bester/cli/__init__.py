"""`bester`: the command line. Exit status 0 done, 1 failed, 2 wrong usage or configuration; errors are one line.

Nothing but the modules here prints. This one needs the standard library alone, and
imports next to nothing: what goes wrong while the others are imported is one line, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bester.broker.streams import secure

INTERRUPTED = 130
"""What a shell shows for a program ended by Ctrl-C."""

PACKAGES = {"zmq": "pyzmq", "argon2": "argon2-cffi"}
"""What pip calls the modules that it calls otherwise."""


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
    """Say which module is not there, and how to install it."""
    module = (error.name or str(error.msg).rpartition("'")[0].rpartition("'")[2]).partition(".")[0]
    return f"{error.msg}; `make clean setup`, or pip install {PACKAGES.get(module, module)}, installs what is missing"
