"""Wheel and sdist: built from the tree, installed in an environment of their own, and started there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.live import DEADLINE_S, Process, short_directory

ROOT = Path(__file__).parents[2]
PARTS = ("broker", "bridge", "handlers", "client", "cli", "conformance")
UNREACHABLE = ("No matching distribution", "Connection", "Temporary failure in name resolution", "Retrying")


def run(*argv: str, cwd: Path) -> str:
    """Run a program without what this environment says of Python; return its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, target: Path, kind: str) -> Path:
    """Build a distribution, as `python -m build` has it built; return its path."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target), cwd=source)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist, as somebody has it who builds from a release."""
    directory = tmp_path_factory.mktemp("built")
    sdist = build(ROOT, directory / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory / "source", filter="data")
    (source,) = (directory / "source").iterdir()
    return build(source, directory / "wheel", "wheel")


def test_the_wheel_of_the_sdist_has_every_file_of_the_packages(wheel: Path) -> None:
    packaged = {
        path.relative_to(ROOT / part).as_posix()
        for part in PARTS
        for path in (ROOT / part / "bester").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert packaged - names == set()
    assert not [name for name in names if name.endswith(".pyc") or not name.startswith(("bester/", "bester-"))]
    assert {"bester/cli/examples/c/bester.c", "bester/cli/examples/node/bester.js"} <= names
    assert any(name.startswith("bester/conform/cases/native/") for name in names)


async def test_an_installed_wheel_serves(wheel: Path) -> None:
    async with short_directory() as directory:
        python, bester = directory / "venv/bin/python", directory / "venv/bin/bester"
        run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=directory)
        own = getattr(sys, "_base_executable", sys.executable)  # the environment of the tests has no pip
        pip = [own, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--quiet"]
        done = subprocess.run([*pip, str(wheel)], cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode and any(words in done.stderr for words in UNREACHABLE):
            pytest.skip("no package index can be reached, which has what the wheel depends on")
        assert done.returncode == 0, done.stderr
        assert run(str(bester), "--version", cwd=directory) == f"bester {wheel.name.split('-')[1]}\n"
        (directory / "bester.toml").write_text(
            '[native]\nunix = "s"\n[accounts]\nauth = "open"\n[handlers.echo]\napp = "bester.handlers.stock.echo:app"\n'
        )
        clean = {"PYTHONPATH": "", "BESTER_PASSWORD": "secret"}
        server = await Process.start(str(bester), "up", cwd=directory, env=clean)
        try:
            await server.says(" serves ")
            await server.says("'echo'")
            sent = await Process.start(
                str(bester), "send", "--to", "unix:s", "--user", "alice", "echo", "1", cwd=directory, env=clean
            )
            await sent.says("good")
            assert await asyncio.wait_for(sent.process.wait(), DEADLINE_S) == 0
            await sent.end()
            assert await server.end() == 0
        finally:
            if server.process.returncode is None:
                await server.end()
