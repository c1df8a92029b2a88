"""`bester --install-completion`: the Tab key completes commands, options and files, in bash, zsh and fish.

The scripts are click's; they ask `bester` itself, so that an update of Bester needs no new script.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
from click.shell_completion import get_completion_class

from bester.cli.output import done, out

F = TypeVar("F", bound=Callable[..., Any])

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_BESTER_COMPLETE"
"""Variable by which a script asks, as click names it."""


class Place(NamedTuple):
    """Place of a shell's script, and the line of the shell's own start file that loads it, if it needs one."""

    script: Path
    start_file: Path | None = None
    line: str = ""


def place_of(shell: str, environment: Mapping[str, str]) -> Place:
    """Return the place of a shell's script for the user of an environment. Raises UsageError where there is no home."""
    home = environment.get("HOME", "")
    if not home.startswith("/"):
        raise click.UsageError("HOME names no directory; --show-completion prints the script instead")
    data = _directory(environment, "XDG_DATA_HOME", f"{home}/.local/share")
    if shell == "fish":  # loaded by fish itself
        return Place(_directory(environment, "XDG_CONFIG_HOME", f"{home}/.config") / "fish/completions/bester.fish")
    if shell == "zsh":
        script = data / "zsh/site-functions/_bester"
        line = f"fpath=({_quoted(script.parent)} $fpath); autoload -Uz compinit && compinit"
        return Place(script, Path(environment.get("ZDOTDIR") or home) / ".zshrc", line)
    script = data / "bash-completion/completions/bester"
    return Place(script, Path(home) / ".bashrc", f"[ ! -r {_quoted(script)} ] || . {_quoted(script)}")


def _directory(environment: Mapping[str, str], name: str, default: str) -> Path:
    """Return a directory of the XDG rules, by which a relative value does not count."""
    value = environment.get(name, "")
    return Path(value if value.startswith("/") else default)


def _quoted(path: Path) -> str:
    """Return a path as one word of a shell, whatever characters it has."""
    return "'" + str(path).replace("'", "'\\''") + "'"


def script_of(shell: str, program: click.Command) -> str:
    """Return the script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(program, {}, "bester", VARIABLE).source()


def shell_of(value: str, environment: Mapping[str, str]) -> str:
    """Return the shell that an option names, `auto` for the user's own. Raises UsageError for any other."""
    shell = Path(environment.get("SHELL", "")).name if value == "auto" else value
    if shell in SHELLS:
        return shell
    known = f"name one of them: {', '.join(SHELLS)}"
    raise click.UsageError(f"SHELL is {shell!r}, which bester cannot complete for; {known}" if shell else known)


def install(context: click.Context, _: click.Parameter, value: str | None) -> None:
    """Write the script, and the line that loads it unless it is there already; print what was written."""
    if value is None or context.resilient_parsing:
        return
    shell = shell_of(value, os.environ)
    place = place_of(shell, os.environ)
    script = script_of(shell, context.command)
    place.script.parent.mkdir(parents=True, exist_ok=True)
    place.script.write_text(script, encoding="utf-8")
    written = [str(place.script)]
    if place.start_file is not None and _append(place.start_file, place.line):
        written.append(f"a line in {place.start_file}")
    done(f"{shell} completes bester in new shells; written: {', '.join(written)}")
    context.exit()


def _append(file: Path, line: str) -> bool:
    """Append a line to a file that does not have it; return whether it was appended."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        text = b""
    wanted = os.fsencode(line)
    if wanted in text.split(b"\n"):
        return False
    with file.open("ab") as target:  # a single write: a full disk leaves no half of a line before the rest
        target.write((b"" if not text or text.endswith(b"\n") else b"\n") + wanted + b"\n")
    return True


def show(context: click.Context, _: click.Parameter, value: str | None) -> None:
    """Print the script."""
    if value is None or context.resilient_parsing:
        return
    out(script_of(shell_of(value, os.environ), context.command))
    context.exit()


def _option(
    flag: str, callback: Callable[[click.Context, click.Parameter, str | None], None], text: str
) -> Callable[[F], F]:
    """Return an option with the name of a shell, or without one for the shell in use."""
    return click.option(
        flag,
        type=click.Choice(["auto", *SHELLS]),
        is_flag=False,
        flag_value="auto",
        expose_value=False,
        is_eager=True,
        callback=callback,
        help=text,
    )


install_option = _option(
    "--install-completion", install, "Make the Tab key complete in this shell, or in the one named."
)
show_option = _option("--show-completion", show, "Print the script for that.")
