"""The example in examples/kitchen: two servers, an oven, and a user of the other server who sets the oven."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack

import pytest

from tests.e2e.example_kitchen import EXAMPLE, kitchen_servers
from tests.e2e.stock_stand import Seat
from tests.live import DEADLINE_S, Process, RawClient, short_directory


async def test_oven_is_watched_and_set_from_the_other_server() -> None:
    types = ("chat", "mail", "kitchen", "presence")
    async with (
        short_directory() as directory, kitchen_servers(directory, types) as servers, AsyncExitStack() as stack
    ):  # fmt: skip
        environment = {"BESTER_PASSWORD": "secret", "OVEN_TICK_S": "0.05"}
        argv = (sys.executable, str(EXAMPLE / "oven.py"), servers["s1"].address, "oven", "t", "g@s2")
        oven = await Process.start(*argv, cwd=directory, env=environment)
        stack.push_async_callback(oven.process.wait)
        stack.callback(oven.process.kill)
        await oven.says("'celsius': 20")
        g = Seat(await RawClient.login(servers["s2"], "g"))
        stack.push_async_callback(g.close)
        await g.good("kitchen", {"subscribe": "oven@s1"})
        assert (await g.gets(lambda data: "device" in data))["state"] == {"on": False, "target": 180, "celsius": 20}
        await g.good("kitchen", {"set": "oven@s1", "state": {"on": True, "target": 60}})
        await g.gets(lambda data: data["state"] == {"on": True, "target": 60, "celsius": 60})
        await oven.says("g@s2 sets {'on': True, 'target': 60}")


@pytest.mark.parametrize(
    ("address", "why"),
    [("127.0.0.1:1", "cannot connect to 127.0.0.1:1: connection refused"), ("s1", "'s1' is not HOST:PORT")],
)
def test_oven_without_its_server_says_so_in_one_line(address: str, why: str) -> None:
    argv = [sys.executable, str(EXAMPLE / "oven.py"), address, "oven"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith(f"oven: {why}")
