"""The walk-through of one server on two hosts: the page's own commands, from the first to the last, as root."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.hosts.stand import missing
from tests.live import BESTER
from tests.postgres_server import binaries

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster"
COPY = "/tmp/walk"
"""Directory of the page's walk; each run has one of its own."""
DEADLINE_S = 240
WHY_NOT = missing()


def commands() -> str:
    """Return all commands of the page."""
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


@pytest.mark.skipif(
    "BESTER_WALK" not in os.environ, reason="runs with BESTER_WALK=1: half a minute, and a quiet machine"
)
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
@pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed (apt-get install postgresql)")
def test_users_notice_a_reconnect_and_nothing_else_where_a_host_is_pulled() -> None:
    copy = f"/tmp/b-{secrets.token_hex(3)}"
    env = {**os.environ, "HOSTS": f"bt{secrets.token_hex(2)}", "PATH": f"{Path(BESTER).parent}:{os.environ['PATH']}"}
    walk = subprocess.Popen(
        ["bash", "-euc", commands().replace(COPY, copy)],
        cwd=EXAMPLE, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        shown, _ = walk.communicate(timeout=DEADLINE_S)
    finally:
        walk.kill()
        subprocess.run([EXAMPLE / "hosts.sh", "down"], env=env, check=True)
        left = Path(copy).exists()
        shutil.rmtree(copy, ignore_errors=True)
    assert walk.returncode == 0 and not left, shown
    assert len(re.findall(r"^good: ", shown, re.MULTILINE)) == 7, shown
    assert re.findall(r"^bad: (\S+) .*carol", shown, re.MULTILINE) == ["storage-unavailable"], shown
    kept = re.search(r"listening at chat.example:2223 as carol\nchat (.*)", shown)
    assert kept is not None and '"eight"' in kept[1], shown
    _, _, noticed = shown.rpartition(
        'bester: listening at chat.example:2223 as bob\nchat {"from":"alice","text":"one"}'
    )
    assert re.findall(r'"text":"(\w+)"', noticed) == ["two", "three", "four", "five", "seven"], shown
    assert noticed.count("is lost: ") == noticed.count("listening") == 2, shown
