"""Changes by `bester user` take effect on a running server at once."""

from __future__ import annotations

from pathlib import Path

from tests.live import BESTER, LiveServer, Process, RawClient, head, short_directory

FILE = head()


async def bester(directory: Path, command: str) -> None:
    process = await Process.start("sh", "-c", command.replace("bester", BESTER), cwd=directory)
    await process.process.wait()
    assert await process.end() == 0, process.lines


async def logs_in(server: LiveServer, user: str, password: str) -> RawClient | None:
    client = await RawClient.connect(server)
    client.send(
        {
            "header": {"scope": "client", "authentication": {"username": user, "password": password}},
            "payload": {"data": None, "type": "dummy"},
        }
    )
    if (await client.receive())["header"]["status"] == "good":
        return client
    await client.close()
    return None


async def test_add_change_and_remove_while_the_server_runs() -> None:
    async with short_directory() as directory:
        server = await LiveServer.start(directory, FILE)
        try:
            assert await logs_in(server, "alice", "one") is None  # no accounts: nobody logs in
            await bester(directory, "printf one | bester user add --password-stdin alice")
            first = await logs_in(server, "alice", "one")
            assert first is not None
            await bester(directory, "printf two | bester user passwd --password-stdin alice")
            assert await logs_in(server, "alice", "one") is None
            second = await logs_in(server, "alice", "two")
            assert second is not None
            await bester(directory, "bester user remove alice")
            assert await first.at_end() and await second.at_end()
            assert await logs_in(server, "alice", "two") is None
            await first.close()
            await second.close()
        finally:
            assert await server.stop() == [0]
