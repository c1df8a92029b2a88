"""The two servers of the example `kitchen`, started from its own configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

from bester.broker.accounts import Accounts
from tests.keyed import free_port
from tests.live import BESTER, LiveServer, Process

EXAMPLE = Path(__file__).parents[2] / "examples" / "kitchen"
PORTS = {"s1": "2251", "s2": "2252"}
USERS = {"s1": ("t", "oven"), "s2": ("g",)}


@asynccontextmanager
async def kitchen_servers(directory: Path, types: Sequence[str]) -> AsyncIterator[dict[str, LiveServer]]:
    """Run both servers by name, on free ports, with the accounts of the example (password: secret), until the context
    ends. They serve `types` by then."""
    servers = {}
    async with AsyncExitStack() as stack:
        for name, port in PORTS.items():
            text = (EXAMPLE / f"{name}.toml").read_text()
            assert text.count(f":{port}") == 1
            (directory / f"{name}.toml").write_text(text.replace(f":{port}", f":{free_port()}"))
            with closing(Accounts(directory / "bester-data" / name)) as accounts:
                for user in USERS[name]:
                    accounts.add(user, "secret")
            up = await Process.start(BESTER, "up", "-c", f"{name}.toml", cwd=directory)
            stack.push_async_callback(up.end)
            address = (await up.says(f"{name} serves ")).partition(" serves ")[2].split(",")[0].strip()
            servers[name] = LiveServer(directory, [up], address)
            for type_ in types:
                await servers[name].has_type(type_)
        yield servers
