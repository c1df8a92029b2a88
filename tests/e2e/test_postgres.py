"""Real servers on a real PostgreSQL: either may die at any moment, and each message with a good report arrives once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bester.broker.accounts_postgres import PostgresAccounts
from bester.broker.postgres import Database, connect
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, short_directory
from tests.postgres_server import Cluster

APP = """
from bester.handlers import App
app = App("post")

@app.handler("post", inline=True)
def post(message):
    return message.send_clients(message.data["to"], message.data["number"])
"""
UNAVAILABLE = "failed:storage-unavailable"
PASSWORD = "not-to-be-seen"


def toml(database: Database, broker: str = "b1") -> str:
    """Return the configuration of a server on a database, with a password in the address."""
    return (
        f'[server]\nname = "s1"\ndata_dir = "data"\nbroker = "{broker}"\n[native]\ntcp4 = "127.0.0.1:0"\n'
        f'[store]\nurl = "{database.url.replace("bester@", f"bester:{PASSWORD}@")}"\nschema = "{database.schema}"\n'
        '[handlers.post]\napp = "post:app"\ntypes = ["post"]\n'
    )


class Servers:
    """Lives of brokers on one database, all of which have ended at the end of a test."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.directory = directory
        self.database = database
        self.processes: list[Process] = []
        with closing(PostgresAccounts(database)) as accounts:
            for user in ("ann", "bob"):
                accounts.add(user, "secret")

    async def start(self, name: str = "first", broker: str = "b1") -> LiveServer:
        """Start a broker in a directory of its own, or start it again there."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        (directory / "post.py").write_text(APP)
        server = await LiveServer.start(directory, toml(self.database, broker))
        self.processes += server.processes
        await server.has_type("post")
        return server

    def lines(self) -> str:
        """Return the output of all lives."""
        return "\n".join(line for process in self.processes for line in process.lines)


@asynccontextmanager
async def servers_on(cluster: Cluster | Database) -> AsyncIterator[Servers]:
    """Run servers on a database; at the end, all are killed, and none has shown a password or a traceback."""
    async with short_directory() as directory:
        servers = Servers(directory, cluster if isinstance(cluster, Database) else cluster.database())
        try:
            yield servers
        finally:
            for process in servers.processes:
                await process.end(signal.SIGKILL)
        assert PASSWORD not in servers.lines()
        assert "Traceback" not in servers.lines()


async def posted(client: RawClient, to: str, number: int) -> str:
    """Post to a user, and return the outcome."""
    client.submit("post", {"to": [to], "number": number}, str(number))
    report, _ = await client.until_report(str(number))
    return outcome(report, to)


def outcome(report: Any, to: str) -> str:
    """Return the outcome for one recipient; `good` where no report names any, as for one who was reached."""
    found: str = report["payload"].get("recipients", {}).get(to, report["header"]["status"])
    return found


async def received(server: LiveServer, user: str, count: int) -> list[int]:
    """Log a user in, and return the first `count` messages from the mailbox."""
    client = await RawClient.login(server, user)
    came = [await client.receive() for _ in range(count)]
    await client.close()
    assert not any("redelivered" in frame["header"] for frame in came)
    return [frame["payload"]["data"] for frame in came]


async def kept_again(client: RawClient, first: int) -> int:
    """Post to bob until a message is queued, and return its number: the database is back."""
    async with asyncio.timeout(DEADLINE_S * 2):
        for number in range(first, first + 10_000):
            if await posted(client, "bob", number) == "queued":
                return number
            await asyncio.sleep(0.05)  # the return of a database gives its clients no event
    raise AssertionError("nothing is queued")


async def test_mailbox_of_a_killed_broker_is_delivered_once_and_in_order(cluster: Cluster) -> None:
    async with servers_on(cluster) as servers:
        server = await servers.start()
        ann = await RawClient.login(server, "ann")
        for number in range(200):
            ann.submit("post", {"to": ["bob"], "number": number}, str(number))
        reports = [await ann.receive() for _ in range(200)]
        await servers.processes[-1].end(signal.SIGKILL)
        assert {outcome(report, "bob") for report in reports} == {"queued"}
        await ann.close()
        server = await servers.start()
        assert await received(server, "bob", 200) == list(range(200))
        ann = await RawClient.login(server, "ann")
        assert await posted(ann, "bob", 200) == "queued"
        assert await received(server, "bob", 1) == [200]
        await ann.close()


async def test_database_that_is_away_stops_what_must_be_kept_alone(cluster: Cluster) -> None:
    async with servers_on(cluster) as servers:
        server = await servers.start()
        ann = await RawClient.login(server, "ann")
        assert await posted(ann, "bob", 1) == "queued"
        cluster.stop("fast")
        try:
            assert await posted(ann, "bob", 2) == UNAVAILABLE
            assert await posted(ann, "ann", 3) == "good"
            other = await RawClient.login(server, "ann")  # passwords can be checked meanwhile
            await other.close()
            assert await posted(ann, "bob", 4) == UNAVAILABLE
        finally:
            cluster.start()
        number = await kept_again(ann, 5)
        assert await received(server, "bob", 2) == [1, number]
        assert "nothing can be kept until" in servers.lines()
        assert "connected again" in servers.lines()
        await ann.close()


async def test_database_that_crashes_in_the_middle_loses_and_invents_nothing(cluster: Cluster) -> None:
    count = 300
    async with servers_on(cluster) as servers:
        server = await servers.start()
        ann = await RawClient.login(server, "ann")
        for number in range(count):
            ann.submit("post", {"to": ["bob"], "number": number}, str(number))
        reports = [await ann.receive()]
        cluster.stop("immediate")
        cluster.start()
        while len(reports) < count:
            reports.append(await ann.receive())
        outcomes = {int(report["payload"]["id"]): outcome(report, "bob") for report in reports}
        assert set(outcomes.values()) <= {"queued", UNAVAILABLE}
        kept = [number for number in range(count) if outcomes[number] == "queued"]
        last = await kept_again(ann, count)
        assert await received(server, "bob", len(kept) + 1) == [*kept, last]
        await ann.close()


async def test_start_in_the_middle_of_an_adoption_waits_for_its_end(cluster: Cluster) -> None:
    async with servers_on(cluster) as servers:
        first = await servers.start()
        ann = await RawClient.login(first, "ann")
        assert await posted(ann, "bob", 1) == "queued"
        await ann.close()
        assert await servers.processes[-1].end() == 0
        with connect(servers.database, "a test") as other:  # as if it had moved the first part of much
            other.execute(  # and moves others every five seconds, however long the start takes
                "INSERT INTO adoption (broker, adopter, messages, outcomes, letters, at) SELECT 'b1', 'b2', 9, 0, 0, "
                "clock_timestamp() + part * INTERVAL '5 seconds' FROM generate_series(0, 60) AS part"
            )
            again = await Process.start(BESTER, "up", cwd=servers.directory / "first")
            servers.processes.append(again)
            await again.says("waiting until broker 'b2' has adopted what broker 'b1' has left")
            other.execute("DELETE FROM entry")
        await again.says(" serves ")
        assert await again.end() == 0


async def test_broker_whose_lease_was_taken_writes_nothing_and_ends(cluster: Cluster) -> None:
    async with servers_on(cluster) as servers:
        first = await servers.start()
        ann = await RawClient.login(first, "ann")
        assert await posted(ann, "bob", 1) == "queued"

        directory = servers.directory / "second"
        directory.mkdir()
        (directory / "bester.toml").write_text(toml(servers.database))
        refused = await Process.start(BESTER, "broker", cwd=directory)
        kept = [1]
        while refused.process.returncode is None:  # each commit renews the lease, and so shows that its holder lives
            kept.append(kept[-1] + 1)
            assert await posted(ann, "bob", kept[-1]) == "queued"
            await asyncio.sleep(0.1)  # one sender's share of a mailbox is bounded
        assert await refused.end() == 1
        assert "broker 'b1' is held by process" in refused.lines[-1]

        stopped = servers.processes[-1]
        stopped.send_signal(signal.SIGSTOP)
        with connect(servers.database, "a test") as other:  # as if it had been stopped for long
            other.execute("UPDATE broker SET until = 'epoch'")
        second = await servers.start("second")
        ann.submit("post", {"to": ["bob"], "number": 0}, "last")
        stopped.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(stopped.process.wait(), DEADLINE_S * 2) == 1
        assert "another process has taken the lease" in stopped.lines[-1]
        assert not [line for line in stopped.lines if "still under way" in line], "nothing was waited for"
        assert await received(second, "bob", len(kept)) == kept
        await ann.close()


async def test_other_broker_adopts_what_a_killed_one_has_left(cluster: Cluster) -> None:
    async with servers_on(cluster) as servers:
        first = await servers.start()
        killed = servers.processes[-1]
        second = await servers.start("second", "b2")
        ann = await RawClient.login(first, "ann")
        for number in range(20):
            assert await posted(ann, "bob", number) == "queued"
        bob = await RawClient.login(second, "bob")
        killed.send_signal(signal.SIGSTOP)
        with connect(servers.database, "a test") as other:  # as if it had been stopped for long
            other.execute("UPDATE broker SET until = 'epoch' WHERE name = 'b1'")
        came = [await bob.receive() for _ in range(20)]
        assert [frame["payload"]["data"] for frame in came] == list(range(20))
        assert not any("redelivered" in frame["header"] for frame in came)
        killed.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(killed.process.wait(), DEADLINE_S * 2) == 1
        assert "another process has taken the lease" in killed.lines[-1]
        await ann.close()

        first = await servers.start()  # which is welcome, and finds nothing
        ann = await RawClient.login(first, "ann")
        assert await posted(ann, "bob", 20) == "queued"
        await servers.processes[-1].end(signal.SIGKILL)
        frame = await bob.receive()  # once the lease has run out by itself
        assert (frame["payload"]["data"], "redelivered" in frame["header"]) == (20, False)
        await bob.close()
        await ann.close()
        assert any("adopted" in line and "b1" in line for line in servers.lines().splitlines())
        with connect(servers.database, "a test") as other:
            view = "SELECT broker, adopter, messages, outcomes, dead_letters FROM adoptions ORDER BY adopted_at"
            assert other.execute(view).fetchall() == [("b1", "b2", 20, 0, 0), ("b1", "b2", 1, 0, 0)]
        async with asyncio.timeout(DEADLINE_S):
            while len(rows := [line.split() for line in await status_of(second) if line.startswith("b1 ")]) < 2:
                await asyncio.sleep(0.1)  # the next look at the database is no event for others
        assert [(row[1], row[-3:]) for row in rows] == [("b2", ["1", "0", "0"]), ("b2", ["20", "0", "0"])]
        assert any(line.startswith("brokers: b1 dead for ") for line in await status_of(second))


async def status_of(server: LiveServer) -> list[str]:
    """Return the lines of `bester status`."""
    command = await asyncio.create_subprocess_exec(
        BESTER, "status", cwd=server.directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(command.communicate(), DEADLINE_S)
    return said.decode().splitlines()


@pytest.mark.parametrize("command", [("up",), ("user", "list")])
async def test_database_that_cannot_be_reached_is_one_line(command: tuple[str, ...]) -> None:
    async with short_directory() as directory:
        url = f"postgresql://bester:{PASSWORD}@/db?host={directory}"
        (directory / "bester.toml").write_text(f'[store]\nurl = "{url}"\n[native]\ntcp4 = "127.0.0.1:0"\n')
        process = await Process.start(BESTER, *command, cwd=directory)
        assert await asyncio.wait_for(process.process.wait(), DEADLINE_S) == 1
        await process.end()
        (line,) = process.lines
        assert "see that PostgreSQL is running" in line
        assert PASSWORD not in line
