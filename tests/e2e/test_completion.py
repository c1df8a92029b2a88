"""`bester --install-completion`, tried with the Tab key in the shells themselves."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.live import BESTER

DEADLINE_S = 60.0
INTERACTIVE = {"bash": ["bash", "-i"], "zsh": ["zsh", "-i"], "fish": ["fish", "-i"]}


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a new user."""
    path = f"{Path(BESTER).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"HOME": str(home), "PATH": path, "TERM": "dumb", "PS1": "> ", "LANG": "C.UTF-8"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose path needs quotes."""
    home = tmp_path / "it's a home"
    home.mkdir()
    return home


def bester(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BESTER, *arguments], env=environment(home) | more, capture_output=True, text=True, check=False
    )


def typed(argv: list[str], home: Path, keys: str, line: str) -> None:
    """Start a shell on a terminal and type keys; wait until the terminal shows the line that they become."""
    terminal, end = pty.openpty()
    shell = subprocess.Popen(
        ["setsid", "--ctty", *argv], cwd=home, env=environment(home), stdin=end, stdout=end, stderr=end
    )
    os.close(end)
    try:
        latest, shown = time.monotonic() + DEADLINE_S, b""
        for step, words in (("echo r''eady\r", "ready\r\n"), (keys, line)):
            os.write(terminal, step.encode())
            while words.encode() not in shown:
                assert time.monotonic() < latest, shown
                if select.select([terminal], [], [], 1.0)[0]:
                    shown += os.read(terminal, 4096)
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_completes_commands_and_options(home: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is missing: apt-get install {shell}")
    for _ in range(2):
        done = bester(home, "--install-completion", SHELL=f"/bin/{shell}")
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"{shell} completes bester")
    start_file = (home / f".{shell}rc").read_text()
    assert start_file.count("\n") == 1, "a second call adds nothing"
    typed(INTERACTIVE[shell], home, "bester brid\t", "bester bridge ")
    typed(INTERACTIVE[shell], home, "bester up --log-l\t", "bester up --log-level ")


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is missing: apt-get install fish")
def test_fish_completes_commands_and_options(home: Path) -> None:
    assert bester(home, "--install-completion", "fish").returncode == 0
    asked = 'complete -C "bester conf"; complete -C "bester up --log-l"; complete -C "bester up --log-level w"'
    done = subprocess.run(["fish", "-c", asked], env=environment(home), capture_output=True, text=True, check=False)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["conform", "--log-level", "warning"]


def test_what_is_in_the_start_file_stays(home: Path) -> None:
    (home / ".bashrc").write_bytes(b"export NAME=\xff  # no line feed")
    assert bester(home, "--install-completion", "bash").returncode == 0
    first, second, rest = (home / ".bashrc").read_bytes().split(b"\n")
    assert first == b"export NAME=\xff  # no line feed" and second.startswith(b"[ ! -r ") and rest == b""


@pytest.mark.parametrize(
    ("variables", "arguments", "error"),
    [
        ({"SHELL": "/bin/tcsh"}, [], "SHELL is 'tcsh', which bester cannot complete for; name one of them: bash, zsh"),
        ({}, [], "name one of them: bash, zsh, fish"),
        ({"HOME": ""}, ["bash"], "HOME names no directory; --show-completion prints the script instead"),
        ({"HOME": "/proc"}, ["fish"], "/proc/.config: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(home: Path, variables: dict[str, str], arguments: list[str], error: str) -> None:
    done = bester(home, "--install-completion", *arguments, **variables)
    assert done.returncode in (1, 2) and done.stderr.startswith(f"bester: {error}") and done.stderr.count("\n") == 1
    assert list(home.iterdir()) == []


def test_script_can_be_printed_alone(home: Path) -> None:
    done = bester(home, "--show-completion", "zsh")
    assert done.returncode == 0 and done.stdout.startswith("#compdef bester\n")
    assert list(home.iterdir()) == []
