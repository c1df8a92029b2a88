"""The client library with a real server: over the death of a bridge, over its own, and what it is told later."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bester.bridge.client import Client, Outcome, Report
from tests.live import BESTER, LiveServer, Process, short_directory

DEADLINE_S = 40.0
"""For what must happen; a server starts several times in a test, on a machine that others use too."""
FILE = """
[server]
name = "s1"
data_dir = "data"
[native]
tcp4 = "127.0.0.1:0"
unix = "n.sock"
"""
CHAT = ("bester.handlers.stock.chat:app",)


async def within(awaitable: Any) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await awaitable


@asynccontextmanager
async def serving(layout: str) -> AsyncIterator[LiveServer]:
    """A server that knows alice and bob; whoever is still there in the end must end well."""
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(FILE)
        for user in ("alice", "bob"):
            await shell(directory, f"printf secret | {BESTER} user add --password-stdin {user}")
        server = await LiveServer.start(directory, FILE, layout, CHAT)
        try:
            yield server
        finally:
            statuses = await server.stop()
        assert statuses == [0] * len(statuses), [process.lines for process in server.processes]


async def shell(directory: Path, command: str) -> list[str]:
    process = await Process.start("sh", "-c", command, cwd=directory, env={"BESTER_PASSWORD": "secret"})
    await within(process.process.wait())
    assert await process.end() == 0, process.lines
    return process.lines


def client_of(server: LiveServer, user: str, **options: Any) -> Client:
    """By the Unix socket: its address survives the bridge."""
    return Client(f"unix:{server.directory}/n.sock", user=user, password="secret", random=lambda: 0.0, **options)


async def all_until(client: Client, last: str) -> list[str]:
    """Receive until this text has come, and return those before it as they came."""
    came: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while (text := (await client.receive()).data["text"]) != last:
            came.append(text)
    return came


async def test_a_bridge_killed_amid_many_messages_loses_none_and_doubles_none() -> None:
    """The broker sleeps while the bridge that has given it messages dies: when it wakes up it finds them, then again
    from another bridge."""
    texts = [str(number) for number in range(400)]
    async with (
        serving("apart") as server,
        client_of(server, "alice") as alice,
        client_of(server, "bob", ack=True) as bob,
    ):
        receiving = asyncio.create_task(all_until(bob, "the last"))
        submitted = [alice.submit("chat", {"to": "bob", "text": text}) for text in texts[:200]]
        await within(asyncio.gather(*submitted))
        server.processes[1].send_signal(signal.SIGSTOP)
        try:
            submitted += [alice.submit("chat", {"to": "bob", "text": text}) for text in texts[200:]]
            await within(alice.ping())  # what was sent before it has come to the bridge
            assert alice.unreported == 200
            assert await server.processes[0].end(signal.SIGKILL) == -signal.SIGKILL
            server.processes[0] = await Process.start(BESTER, "bridge", cwd=server.directory)
        finally:
            server.processes[1].send_signal(signal.SIGCONT)
        reports: list[Report] = await within(asyncio.gather(*submitted))
        assert [report for report in reports if not report.good] == []
        assert (await within(alice.send("chat", {"to": "bob", "text": "the last"}))).good
        assert sorted(await within(receiving), key=int) == texts


async def test_what_the_receiver_died_over_comes_again_and_says_so() -> None:
    async with serving("up") as server, client_of(server, "alice") as alice:
        bob = client_of(server, "bob", ack=True)
        await bob.start()
        sending = asyncio.create_task(alice.send("chat", {"to": "bob", "text": "important"}, outcome=True))
        first = await within(bob.receive())
        assert not first.redelivered
        await bob.close(0)
        report: Report = await within(sending)
        assert (report.good, report.recipients) == (True, {"bob": "queued"})
        async with client_of(server, "bob", ack=True) as bob:
            again = await within(bob.receive())
            assert (again.data, again.id, again.redelivered) == (first.data, first.id, True)
            await bob.ack(again)
            told = await within(alice.receive())
        assert told.outcome == Outcome(report.message or "", "bob", "delivered")
        async with client_of(server, "bob") as bob:
            assert (await within(alice.send("chat", {"to": "bob", "text": "the next"}))).good
            assert (await within(bob.receive())).data["text"] == "the next"


async def test_what_becomes_of_what_is_queued_is_told_and_asked() -> None:
    told: asyncio.Queue[Outcome] = asyncio.Queue()
    async with serving("up") as server, client_of(server, "alice", on_outcome=told.put_nowait) as alice:
        kept = await within(alice.send("chat", {"to": "bob", "text": "kept"}, outcome=True))
        brief = await within(alice.send("chat", {"to": "bob", "text": "brief"}, ttl_s=0.2, outcome=True))
        assert kept.recipients == brief.recipients == {"bob": "queued"}
        assert await within(told.get()) == Outcome(brief.message, "bob", "failed:expired")
        assert await within(alice.outcome(kept.message)) == {"bob": "queued"}
        assert await within(alice.outcome("s1/nobody/1")) is None
        async with client_of(server, "bob") as bob:
            assert (await within(bob.receive())).data["text"] == "kept"
            assert await within(bob.outcome(kept.message)) is None, "only the sender is told"
        assert await within(told.get()) == Outcome(kept.message, "bob", "delivered")
        assert await within(alice.outcome(kept.message)) == {"bob": "delivered"}
        to = f"--to unix:{server.directory}/n.sock --user alice"
        assert await shell(server.directory, f"{BESTER} outcome {to} {kept.message}") == ["bob delivered"]


async def test_one_key_is_one_message() -> None:
    async with serving("up") as server, client_of(server, "alice") as alice, client_of(server, "bob") as bob:
        first, second = [
            await within(alice.send("chat", {"to": "bob", "text": "once"}, dedup="mine")) for _ in range(2)
        ]
        assert first.message == second.message
        assert second.good
        assert (await within(alice.send("chat", {"to": "bob", "text": "another"}))).good
        assert [(await within(bob.receive())).data["text"] for _ in range(2)] == ["once", "another"]
