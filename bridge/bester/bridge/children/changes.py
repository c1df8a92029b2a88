"""Changes that may bring a child back: in its files, or among the installed modules."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

MAX_FILES = 1000
"""Files of one directory that are looked at; a folder of more modules is not a handler's."""

Seen = frozenset[tuple[str, int, int]]
"""Names of files, the times of their last change (ns), and their sizes."""


def seen(argv: Sequence[str], directory: Path) -> Seen:
    """Return the state of everything that a child is made of: the files that its command names, the Python modules in
    its working directory and beside its own module, and the directories of installed modules."""
    found: dict[str, os.stat_result] = {}
    for word in argv:
        _add(found, directory / word)
        module, colon, _ = word.partition(":")
        if colon and module:
            _add_modules(found, directory.joinpath(*module.split(".")[:-1]))
            _add_modules(found, directory.joinpath(*module.split(".")))
    _add_modules(found, directory)
    for place in sys.path:
        if place and Path(place) != directory:
            _add(found, Path(place))
    return frozenset((name, stat.st_mtime_ns, stat.st_size) for name, stat in found.items())


def _add(found: dict[str, os.stat_result], path: Path) -> None:
    try:
        found[str(path)] = path.stat()
    except (OSError, ValueError):  # a word of the command that is no file's name
        pass


def _add_modules(found: dict[str, os.stat_result], directory: Path) -> None:
    for number, path in enumerate(_modules(directory)):
        if number >= MAX_FILES:
            return
        _add(found, path)


def _modules(directory: Path) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            yield from (Path(entry.path) for entry in entries if entry.name.endswith(".py"))
    except (OSError, ValueError):
        return
