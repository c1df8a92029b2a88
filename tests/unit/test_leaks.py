"""The check that no test leaves anything behind can fail: an inner run with such tests reports them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import conftest

INNER = """
import asyncio, os, socket, subprocess
import zmq

kept = []

def test_leaves_a_socket():
    kept.append(socket.socket())

def test_leaves_a_pipe():
    os.pipe()

def test_leaves_a_child():
    kept.append(subprocess.Popen(["sleep", "3"]))

async def test_leaves_a_task():
    kept.append(asyncio.create_task(asyncio.sleep(20)))

def test_leaves_a_zmq_socket():
    kept.append(zmq.Context())
    kept.append(kept[-1].socket(zmq.DEALER))

async def test_cleans_up():
    await asyncio.create_task(asyncio.sleep(0))
    await (await asyncio.create_subprocess_exec("true")).wait()

def test_cleans_up_too():
    one, other = socket.socketpair()
    one.close()
    other.close()
    subprocess.run(["true"], check=True)
"""


def test_each_test_that_leaves_something_behind_fails_and_no_other(tmp_path: Path) -> None:
    source = Path(conftest.__file__).read_text().replace("DEADLINE_S = 5.0", "DEADLINE_S = 0.1")
    (tmp_path / "conftest.py").write_text(source)
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:warnings", "-rE", "--tb=line"]
    said = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        | {"PYTHONPATH": str(Path(conftest.__file__).parent.parent)},
    ).stdout  # fmt: skip
    failed = {line.split("::")[1].split()[0] for line in said.splitlines() if line.startswith("ERROR test_inner.py::")}
    leaving = {f"test_leaves_a_{what}" for what in ("socket", "pipe", "child", "task", "zmq_socket")}
    # The module is asked too when its last test has ended, and is found to have left the same things.
    assert failed - {"test_cleans_up_too"} == leaving, said
    assert "Failed: tasks left behind: " in said
