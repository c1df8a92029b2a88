"""The command line under its old import path; import `bester.cli`."""

from bester.cli import main  # noqa: F401 (for programs that import it from here)
