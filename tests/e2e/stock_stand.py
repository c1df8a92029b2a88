"""Two real servers that know each other, with one of the stock sub-protocols and three users each."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Any

from bester.broker.accounts import Accounts
from tests.live import LiveServer, RawClient, head, short_directory

USERS = {"s1": ("t", "u", "oven"), "s2": ("g", "h", "fridge")}


def _toml(name: str, peer: str, type_: str, app: str) -> str:
    handlers = f'[handlers.{type_}]\napp = "{app}"\n'
    return (
        head(name)
        + handlers
        + f'[servers.{peer}]\nfabric = "ipc://../{peer}/data/fabric.sock"\naccept_types = ["{type_}"]\n'
    )


class Pair:
    """The servers s1 and s2, with one sub-protocol; each may be killed and started again on its data."""

    def __init__(self, directory: Path, type_: str, code: str) -> None:
        self.directory = directory
        self.code = code
        self.type = type_
        self.servers: dict[str, LiveServer] = {}
        self.seats: list[Seat] = []

    async def start(self, name: str) -> LiveServer:
        """Start a server, anew or again, and wait until it serves the type."""
        directory = self.directory / name
        if not directory.exists():
            directory.mkdir()
            (directory / "mine.py").write_text(self.code)
            with closing(Accounts(directory / "data")) as accounts:
                for user in USERS[name]:
                    accounts.add(user, "secret")
        peer = "s2" if name == "s1" else "s1"
        app = "mine:app" if self.code else f"bester.handlers.stock.{self.type}:app"
        server = self.servers[name] = await LiveServer.start(directory, _toml(name, peer, self.type, app))
        await server.has_type(self.type)
        return server

    async def kill(self, name: str) -> None:
        """Kill a server's process; its handlers end with it."""
        for process in self.servers.pop(name).processes:
            await process.end(signal.SIGKILL)

    async def seat(self, name: str, user: str) -> Seat:
        """Log a user in."""
        seat = Seat(await RawClient.login(self.servers[name], user))
        self.seats.append(seat)
        return seat


@asynccontextmanager
async def pair(type_: str, *names: str, code: str = "") -> AsyncIterator[Pair]:
    """Run these servers of the pair; all of them end at the exit, and all connections. `code`: a module with an `app`
    that takes the place of the stock handler."""
    async with short_directory() as directory:
        servers = Pair(directory, type_, code)
        try:
            for name in names:
                await servers.start(name)
            yield servers
        finally:
            for seat in servers.seats:
                await seat.close()
            for name in list(servers.servers):
                await servers.kill(name)


class Seat:
    """A user's connection, with what has arrived on it and was not asked for yet."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.inbox: list[Any] = []
        self._ids = count(1)

    async def send(self, type_: str, data: Any) -> Any:
        """Send a message and return the payload of its report, with `status` of its header."""
        id_ = str(next(self._ids))
        self.client.submit(type_, data, id_)
        report, before = await self.client.until_report(id_)
        self.inbox.extend(before)
        return report["payload"] | {"status": report["header"]["status"]}

    async def good(self, type_: str, data: Any) -> Any:
        """Send a message whose report must be good; return the payload of the report."""
        report = await self.send(type_, data)
        assert report["status"] == "good", report
        return report

    async def refused(self, type_: str, data: Any) -> str:
        """Send a message that must be refused; return the note."""
        report = await self.send(type_, data)
        assert (report["status"], report["reason"]) == ("bad", "refused"), report
        return str(report["note"])

    async def gets(self, fits: Callable[[Any], Any]) -> Any:
        """Return the data of the next message for which `fits` is true; others stay in the inbox."""
        seen = 0
        while True:
            for frame in self.inbox[seen:]:
                if fits(frame["payload"]["data"]):
                    self.inbox.remove(frame)
                    return frame["payload"]["data"]
            seen = len(self.inbox)
            self.inbox.append(await self.client.receive())

    async def close(self) -> None:
        """Log out."""
        await self.client.close()
