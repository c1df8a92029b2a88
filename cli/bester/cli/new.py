"""`bester new handler`: writes a small handler project with its test and a README.

The templates stand in `templates/`, a directory a language; NAME in them is the handler's name. The libraries of other
languages are those of the examples.
"""

from __future__ import annotations

import keyword
import re
import shutil
import sys
from pathlib import Path

import click

from bester.cli.output import done

HERE = Path(__file__).parent
LIBRARIES = {"python": (), "node": ("node/bester.js",), "c": ("c/bester.c", "c/bester.h")}
"""Files of the examples that a project of each language gets."""
TAKEN = {
    "python": sys.stdlib_module_names | {"bester", "conftest", "pytest"},
    "node": {"bester", "node_modules", "zeromq"},
    "c": {"bester", "clean", "makefile"},
}
"""Names of other modules, files and targets of a project; "test" is taken in each language."""


@click.group()
def new() -> None:
    """Write a small project to begin with."""


@new.command()
@click.option("--language", type=click.Choice(list(LIBRARIES)), default="python", show_default=True)
@click.argument("name", metavar="NAME")
def handler(language: str, name: str) -> None:
    """Write the project of a handler of the message type NAME into the new directory NAME."""
    from importlib.metadata import packages_distributions

    from bester.broker.wire.codes import BesterError
    from bester.broker.wire.type_names import is_reserved

    if is_reserved(name):
        raise click.UsageError(f"{name!r} is reserved for Bester itself; choose another type")
    if keyword.iskeyword(name) or name == "test":
        raise click.UsageError(f"{name!r} is a word of Python or of its test tools; choose another")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        text = f"{name!r} cannot name a module and a program; use up to 64 small letters, digits and _, a letter first"
        raise click.UsageError(text)
    if name in TAKEN[language] or (language == "python" and name in packages_distributions()):
        what = "an installed Python module" if language == "python" else "a file or target of the project"
        raise click.UsageError(
            f"{name!r} is the name of {what}, which a handler of this name would hide; choose another"
        )
    target = Path(name)
    try:
        target.mkdir()
    except FileExistsError:
        raise BesterError("not-allowed", f"{target} exists already; choose another name, or move it away") from None
    try:
        _fill(target, name, language)
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None:  # a write that failed does not name its file
            error.filename = str(target)
        raise
    done(f"{target}: a handler of {name!r}; {target / 'README.md'} says how to test and run it")


def _fill(target: Path, name: str, language: str) -> None:
    """Write the files of a project."""
    for template in sorted((HERE / "templates" / language).iterdir()):
        text = template.read_text(encoding="utf-8").replace("NAME", name).replace("TYPE", name)
        (target / template.name.replace("NAME", name).removesuffix(".txt")).write_text(text, encoding="utf-8")
    for library in LIBRARIES[language]:
        source = _examples() / library
        (target / source.name).write_bytes(source.read_bytes())


def _examples() -> Path:
    """Return the directory of the examples: in the package, or in the source tree."""
    packaged = HERE / "examples"
    return packaged if packaged.is_dir() else HERE.parents[2] / "examples"
