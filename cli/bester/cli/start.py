"""Start: the exit status and the error line that are needed before any other module can be imported."""

from __future__ import annotations

INTERRUPTED = 130
"""Exit status of a program ended by Ctrl-C, as shells show it."""

PACKAGES = {"zmq": "pyzmq", "argon2": "argon2-cffi"}
"""Names in pip of modules whose package is called otherwise."""


def missing(error: ModuleNotFoundError) -> str:
    """Return a line that names the missing module and its installation."""
    module = (error.name or str(error.msg).rpartition("'")[0].rpartition("'")[2]).partition(".")[0]
    return f"{error.msg}; `make clean setup`, or pip install {PACKAGES.get(module, module)}, installs the module"


def is_interrupt(error: BaseException) -> bool:
    """Return whether an error is Ctrl-C. Python 3.11 wraps one that comes while an import makes a class."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)
