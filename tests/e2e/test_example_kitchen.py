"""The example in examples/kitchen: two servers, an oven, and a user of the other server who sets the oven."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from bester.broker.accounts import Accounts
from tests.e2e.stock_stand import Seat
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, short_directory

EXAMPLE = Path(__file__).parents[2] / "examples" / "kitchen"
PORTS = {"s1": "2251", "s2": "2252"}
USERS = {"s1": ("t", "oven"), "s2": ("g",)}


async def test_oven_is_watched_and_set_from_the_other_server() -> None:
    async with short_directory() as directory, AsyncExitStack() as stack:
        servers = {}
        for name, port in PORTS.items():
            text = (EXAMPLE / f"{name}.toml").read_text()
            assert text.count(f":{port}") == 1
            (directory / f"{name}.toml").write_text(text.replace(f":{port}", ":0"))
            with closing(Accounts(directory / "bester-data" / name)) as accounts:
                for user in USERS[name]:
                    accounts.add(user, "secret")
            up = await Process.start(BESTER, "up", "-c", f"{name}.toml", cwd=directory)
            stack.push_async_callback(up.end)
            address = (await up.says(f"{name} serves ")).partition(" serves ")[2].split(",")[0].strip()
            servers[name] = LiveServer(directory, [up], address)
            for type_ in ("chat", "mail", "kitchen", "presence"):
                await servers[name].has_type(type_)
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
