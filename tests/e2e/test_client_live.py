"""The client library with a real server: a killed bridge, a killed client, later outcomes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bester.client import Client, Outcome, Report
from tests.live import BESTER, LiveServer, Process, head, short_directory
from tests.stores import accounts_of

pytestmark = pytest.mark.stores

COUNT = 1000
"""Pending messages: far more than are in flight on one connection."""
DEADLINE_S = 40.0
"""Deadline of events that must happen; a server starts several times in a test, on a loaded machine."""
FILE = head(native='unix = "n.sock"\n')
CHAT = ("bester.handlers.stock.chat:app",)


async def within(awaitable: Any) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await awaitable


@asynccontextmanager
async def serving(layout: str) -> AsyncIterator[LiveServer]:
    """Run a server that knows alice and bob; every process left at the end must exit cleanly."""
    async with short_directory() as directory:
        with closing(accounts_of(directory)) as accounts:
            for user in ("alice", "bob"):
                accounts.add(user, "secret")
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
    """Return a client on the Unix socket, whose address survives the bridge."""
    return Client(f"unix:{server.directory}/n.sock", user=user, password="secret", random=lambda: 0.0, **options)


async def all_until(client: Client, last: str) -> list[str]:
    """Receive and acknowledge until `last`; return the texts before it in order."""
    came: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while (message := await client.receive()).data["text"] != last:
            came.append(message.data["text"])
        await client.ack(message)  # the report waits for the ack
    return came


async def test_killed_bridge_loses_and_duplicates_nothing() -> None:
    """A stopped broker reads the same messages twice: from the killed bridge, then from the next one."""
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
            await within(alice.ping())  # messages sent before the ping have reached the bridge
            assert alice.unreported == 200
            assert await server.processes[0].end(signal.SIGKILL) == -signal.SIGKILL
            server.processes[0] = await Process.start(BESTER, "bridge", cwd=server.directory)
        finally:
            server.processes[1].send_signal(signal.SIGCONT)
        reports: list[Report] = await within(asyncio.gather(*submitted))
        assert [report for report in reports if not report.good] == []
        assert (await within(alice.send("chat", {"to": "bob", "text": "the last"}))).good
        assert sorted(await within(receiving), key=int) == texts


async def test_message_in_hand_of_a_killed_receiver_is_redelivered_marked() -> None:
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
            pushed = await within(alice.receive())
        assert pushed.outcome == Outcome(report.message or "", "bob", "delivered")
        async with client_of(server, "bob") as bob:
            assert (await within(alice.send("chat", {"to": "bob", "text": "the next"}))).good
            assert (await within(bob.receive())).data["text"] == "the next"


async def test_outcome_of_a_queued_message_is_pushed_and_answered() -> None:
    outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
    async with serving("up") as server, client_of(server, "alice", on_outcome=outcomes.put_nowait) as alice:
        kept = await within(alice.send("chat", {"to": "bob", "text": "kept"}, outcome=True))
        brief = await within(alice.send("chat", {"to": "bob", "text": "brief"}, ttl_s=0.2, outcome=True))
        assert kept.recipients == brief.recipients == {"bob": "queued"}
        assert await within(outcomes.get()) == Outcome(brief.message, "bob", "failed:expired")
        assert await within(alice.outcome(kept.message)) == {"bob": "queued"}
        assert await within(alice.outcome("s1/nobody/1")) is None
        async with client_of(server, "bob") as bob:
            assert (await within(bob.receive())).data["text"] == "kept"
            assert await within(bob.outcome(kept.message)) is None, "only the sender may know"
        assert await within(outcomes.get()) == Outcome(kept.message, "bob", "delivered")
        assert await within(alice.outcome(kept.message)) == {"bob": "delivered"}
        to = f"--to unix:{server.directory}/n.sock --user alice"
        assert await shell(server.directory, f"{BESTER} outcome {to} {kept.message}") == ["bob delivered"]


class Shell:
    """Runs commands of `bester` for users."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server

    async def begin(self, command: str, user: str, *arguments: str) -> Process:
        to = ("--to", f"unix:{self._server.directory}/n.sock", "--user", user)
        return await Process.start(
            BESTER, command, *to, *arguments, cwd=self._server.directory, env={"BESTER_PASSWORD": "secret"}
        )

    async def lines(self, command: str, user: str, *arguments: str) -> list[str]:
        """Run a command that must succeed; return its lines."""
        process = await self.begin(command, user, *arguments)
        assert await within(process.process.wait()) == 0, process.lines
        await process.end()
        return process.lines

    async def listened(self, user: str, count: int) -> list[int]:
        """Return the numbers in the next messages for a user."""
        return numbers_of(await self.lines("listen", user, "--json", "--count", str(count)))

    async def leave(self, user: str, count: int) -> str:
        """Queue so many messages for an absent user; return the server's id of the last one."""
        async with client_of(self._server, "alice" if user == "bob" else "bob", ack=True, manual_ack=True) as sender:
            submitted = [sender.send("chat", {"to": user, "text": str(number)}) for number in range(count)]
            reports: list[Report] = await within(asyncio.gather(*submitted))
        assert all(report.recipients == {user: "queued"} for report in reports)
        return reports[-1].message or ""


def numbers_of(lines: list[str]) -> list[int]:
    """Return the numbers in the messages among frames, in order."""
    frames = [json.loads(line) for line in lines if line.startswith("{")]
    return [int(frame["payload"]["data"]["text"]) for frame in frames if "data" in frame["payload"]]


async def test_outcome_command_loses_no_pending_message() -> None:
    async with serving("up") as server:
        shell = Shell(server)
        message = await shell.leave("bob", 1)  # alice's
        await shell.leave("alice", 200)
        assert await shell.lines("outcome", "alice", message) == ["bob queued"]
        assert await shell.listened("alice", 200) == list(range(200))


async def test_send_command_loses_no_message_that_was_not_shown() -> None:
    async with serving("up") as server:
        shell = Shell(server)
        await shell.leave("alice", COUNT)
        sending = ("--json", "--wait", "0", "chat", '{"to": "bob", "text": "1"}')
        shown = numbers_of(await shell.lines("send", "alice", *sending))
        assert shown == list(range(len(shown)))
        assert len(shown) < COUNT, "it must not wait for all of them"
        assert await shell.listened("alice", COUNT - len(shown)) == list(range(len(shown), COUNT))


async def test_listen_with_count_leaves_the_rest_queued() -> None:
    async with serving("up") as server:
        shell = Shell(server)
        await shell.leave("bob", 5)
        assert await shell.listened("bob", 1) == [0]
        assert await shell.listened("bob", 3) == [1, 2, 3]
        assert await shell.listened("bob", 1) == [4]


async def test_message_written_to_a_closed_pipe_was_not_delivered() -> None:
    """`bester listen | head -1`."""
    async with serving("up") as server:
        shell = Shell(server)
        await shell.leave("bob", 1)
        read, write = os.pipe()
        listener = await asyncio.create_subprocess_exec(
            BESTER, "listen", "--to", f"unix:{server.directory}/n.sock", "--user", "bob", "--json",
            stdout=write, stderr=asyncio.subprocess.PIPE, env={**os.environ, "BESTER_PASSWORD": "secret"},
        )  # fmt: skip
        os.close(write)
        assert numbers_of((await asyncio.to_thread(os.read, read, 1 << 16)).decode().splitlines()) == [0]
        os.close(read)
        async with client_of(server, "alice") as alice:
            report = await within(alice.send("chat", {"to": "bob", "text": "1"}))
        assert report.good
        _, errors = await within(listener.communicate())
        assert (listener.returncode, errors.count(b"\n")) == (1, 1), "it says that it listens, and no more"
        assert await shell.listened("bob", 1) == [1]


async def test_one_dedup_key_is_one_message() -> None:
    async with serving("up") as server, client_of(server, "alice") as alice, client_of(server, "bob") as bob:
        first, second = [
            await within(alice.send("chat", {"to": "bob", "text": "once"}, dedup="mine")) for _ in range(2)
        ]
        assert first.message == second.message
        assert second.good
        assert (await within(alice.send("chat", {"to": "bob", "text": "another"}))).good
        assert [(await within(bob.receive())).data["text"] for _ in range(2)] == ["once", "another"]
