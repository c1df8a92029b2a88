"""`bester new handler` writes projects whose own tests pass."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import BESTER, Process

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120


def new(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `bester new handler` in a directory."""
    command = [BESTER, "new", "handler", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


async def passes(*argv: str, cwd: Path) -> None:
    """Run a program and see that it ends with 0."""
    path = os.pathsep.join((str(Path(BESTER).parent), os.environ.get("PATH", os.defpath)))
    run = await Process.start(*argv, cwd=cwd, env={"PYTEST_ADDOPTS": "", "PATH": path})
    async with asyncio.timeout(PATIENCE_S):
        status = await run.process.wait()
    await run.end()
    assert status == 0, run.lines


async def test_the_python_project_passes_its_own_tests(tmp_path: Path) -> None:
    assert new(tmp_path, "greet").returncode == 0
    await passes(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path / "greet")


async def test_the_node_project_passes_its_own_tests(tmp_path: Path) -> None:
    modules = ROOT / "examples" / "node" / "node_modules"
    if shutil.which("node") is None or not modules.is_dir():
        pytest.skip("node, or its packages, are missing: apt-get install nodejs npm, npm install in examples/node")
    assert new(tmp_path, "greet", "--language", "node").returncode == 0
    (tmp_path / "greet" / "node_modules").symlink_to(modules)
    await passes("node", "--test", cwd=tmp_path / "greet")


async def test_the_c_project_builds(tmp_path: Path) -> None:
    headers = "#include <zmq.h>\n#include <msgpack.h>\n"
    have = shutil.which("cc") and shutil.which("make")
    if not have or subprocess.run(["cc", "-E", "-"], input=headers, text=True, capture_output=True).returncode:  # noqa: PLW1510
        pytest.skip("a C compiler or headers are missing: apt-get install gcc make libzmq3-dev libmsgpack-dev")
    assert new(tmp_path, "greet", "--language", "c").returncode == 0
    await passes("make", "CFLAGS=-O1 -Werror", "test", cwd=tmp_path / "greet")


@pytest.mark.parametrize("name", ["../up", "Greet", "class", "test", "9lives", "a b", "", "ü", "x" * 65])
def test_names_that_make_no_module_are_refused(name: str, tmp_path: Path) -> None:
    run = new(tmp_path, "--", name)
    assert run.returncode == 2 and "cannot name a module" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "greet").mkdir()
    run = new(tmp_path, "greet")
    assert run.returncode == 1 and "exists already" in run.stderr
    assert list((tmp_path / "greet").iterdir()) == []
