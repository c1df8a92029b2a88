"""`bester new handler` writes projects whose own tests pass, and docs/handlers.md leads through them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.live import BESTER, Process, short_directory

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "handlers.md"
PATIENCE_S = 120


def new(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `bester new handler` in a directory."""
    command = [BESTER, "new", "handler", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def page(language: str) -> list[str]:
    """Return the commands that the page gives for a language, without comments, in order."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {language}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+#.*", "", line) for line in "".join(blocks).splitlines()]


async def walk(language: str, modules: Path | None = None) -> None:
    """Run the page's commands for a language, as they are printed but for the port and what is installed already.

    `modules` is the directory of npm's packages. The cases of the protocol are a few, except in C.
    """
    async with short_directory() as directory:
        await _walk(language, directory, modules)


async def _walk(language: str, directory: Path, modules: Path | None) -> None:
    environment = {
        "BESTER_PASSWORD": "x",
        "PATH": os.pathsep.join((str(Path(BESTER).parent), os.environ.get("PATH", os.defpath))),
        "PYTEST_ADDOPTS": "-q -p no:cacheprovider",
        "CFLAGS": "-O1 -Werror",
    }
    project, server, address = directory / "greet", None, ""
    commands = page(language)
    try:
        for command in commands:
            if command == "cd greet" or " install " in f"{command} ":
                continue
            if command.startswith("bester up"):
                toml = (project / "bester.toml").read_text()
                (project / "bester.toml").write_text('[native]\ntcp4 = "127.0.0.1:0"\n' + toml)
                server = await Process.start("sh", "-c", f"exec {command}", cwd=project, env=environment)
                address = (await server.says(" serves ")).partition(" serves ")[2]
                continue
            typed = command.replace("bester send", f"bester send --to {address}")
            typed = typed.replace("bester conform handler", "bester conform handler --case 201 --case 411")
            run = await Process.start(
                "sh", "-c", typed, cwd=project if project.exists() else directory, env=environment
            )
            try:
                async with asyncio.timeout(PATIENCE_S):
                    status = await run.process.wait()
            finally:
                await run.end()
            assert status == 0, (command, run.lines)
            if "conform" in command:
                assert run.lines[-1] == "2 passed, 0 failed", run.lines
            if "bester send" in command:
                answer = 'greet "hello"' if language == "C" else 'greet {"text":"Hello, Ada"}'
                assert run.lines[0].startswith(answer) and run.lines[-1].startswith("good"), run.lines
            if modules is not None and "new handler" in command:
                (project / "node_modules").symlink_to(modules)
    finally:
        if server is not None:
            await server.end()
    assert server is not None
    in_readme = (project / "README.md").read_text()
    assert [command for command in commands if command.split()[0] != "bester" and command not in in_readme] == [
        "cd greet"
    ]
    assert all(command in in_readme for command in commands if "conform" in command)


async def test_the_pages_commands_for_python() -> None:
    await walk("Python")


async def test_the_pages_commands_for_node() -> None:
    modules = ROOT / "examples" / "node" / "node_modules"
    if shutil.which("npm") is None or not modules.is_dir():
        pytest.skip("npm, or node's packages, are missing: apt-get install nodejs npm, npm install in examples/node")
    await walk("Node", modules)


async def test_the_pages_commands_for_c() -> None:
    headers = b"#include <zmq.h>\n#include <msgpack.h>\n"
    have = shutil.which("cc") and shutil.which("make")
    if not have or subprocess.run(["cc", "-E", "-"], input=headers, capture_output=True, check=False).returncode:
        pytest.skip("a C compiler or headers are missing: apt-get install gcc make libzmq3-dev libmsgpack-dev")
    await walk("C")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["../up", "Greet", "9lives", "a b", "", "ü", "x" * 65], "cannot name a module"),
        (["class", "test"], "is a word of Python"),
        (["dummy", "builtin"], "is reserved for Bester itself"),
    ],
)
def test_names_that_make_no_module_are_refused(names: list[str], why: str, tmp_path: Path) -> None:
    for name in names:
        run = new(tmp_path, "--", name)
        assert run.returncode == 2 and why in run.stderr, name
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "greet").mkdir()
    run = new(tmp_path, "greet")
    assert run.returncode == 1 and "exists already" in run.stderr
    assert list((tmp_path / "greet").iterdir()) == []


@pytest.mark.parametrize(
    ("language", "name"),
    [
        ("python", "json"),
        ("python", "zmq"),
        ("python", "pytest"),
        ("node", "zeromq"),
        ("c", "clean"),
        ("c", "makefile"),
    ],
)
def test_names_that_hide_a_module_or_a_target_are_refused(language: str, name: str, tmp_path: Path) -> None:
    run = new(tmp_path, "--language", language, name)
    assert run.returncode == 2 and f"'{name}' is the name of" in run.stderr
    assert list(tmp_path.iterdir()) == []
