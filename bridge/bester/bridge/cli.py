"""The command line at its old place; import `bester.cli`."""

from bester.cli import main  # noqa: F401 (for whoever imports it from here)
