"""Two real brokers of one server on a real PostgreSQL, with one bridge and a handler linked to both."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bester.bridge.brokers import weight
from bester.broker.accounts_postgres import PostgresAccounts
from tests.live import BESTER, LiveServer, Process, RawClient, head, short_directory
from tests.postgres_server import Cluster

BROKERS = ("b1", "b2")
DEADLINE_S = 60.0
APP = """
import asyncio
import os
from bester.handlers import App
app = App("post")
go_on = asyncio.Event()

@app.handler("post", inline=True)
def post(message):
    return message.send_clients(message.data["to"], message.data["number"])

@app.handler("held")
async def held(message):
    if message.attempt == 1:
        print("held", message.data, flush=True)
        await asyncio.sleep(600)
    return message.reply([message.data, message.attempt])

@app.handler("slow")
async def slow(message):
    print("slow", message.attempt, flush=True)
    await asyncio.sleep(600 if message.attempt == 1 else 1.0)
    return message.reply(message.data)

@app.handler("die")
async def die(message):
    await asyncio.sleep(0.3)  # both brokers have given what they have
    os._exit(3)
"""


def user_of(broker: str) -> str:
    """Return a user whose home is this broker."""
    users = (f"user{number}" for number in range(1000))
    return next(user for user in users if max(BROKERS, key=lambda name: weight(name, user)) == broker)


USERS = {broker: user_of(broker) for broker in BROKERS}


class TwoBrokers:
    """Two brokers of one server, a bridge and a handler, each a process; the bridge is found at `server`."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.processes: list[Process] = []
        self.brokers: dict[str, Process] = {}
        self.server: LiveServer
        self.database = database = cluster.database()
        endpoints = [f"ipc://{directory}/{broker}/fabric.sock" for broker in BROKERS]
        for broker in (*BROKERS, "bridge"):
            (directory / f"{broker}.toml").write_text(
                f'[server]\nname = "s1"\nbroker = "{broker}"\ndata_dir = "{directory}/{broker}"\n'
                '[native]\ntcp4 = "127.0.0.1:0"\n'
                f"[fabric]\nconnect = {endpoints}\n".replace("'", '"')
                + f'[store]\nurl = "{database.url}"\nschema = "{database.schema}"\n'
            )
        (directory / "post.py").write_text(APP)
        with closing(PostgresAccounts(database)) as accounts:
            for user in (*USERS.values(), "away"):
                accounts.add(user, "secret")

    async def run(self, *arguments: str) -> Process:
        """Start a program of Bester's."""
        process = await Process.start(BESTER, *arguments, cwd=self.directory)
        self.processes.append(process)
        return process

    async def broker(self, name: str) -> Process:
        """Start a broker, and wait until it serves."""
        process = self.brokers[name] = await self.run("broker", "-c", f"{name}.toml")
        await process.says(f"{name}/fabric.sock")
        return process

    async def begin(self) -> None:
        """Start everything, and wait until every broker has the bridge and the handler."""
        for name in BROKERS:
            await self.broker(name)
        self.handler = await self.run("handler", "-c", "bridge.toml", "post:app")
        bridge = await self.run("bridge", "-c", "bridge.toml")
        address = (await bridge.says(" serves ")).partition(" serves ")[2].strip()
        self.server = LiveServer(self.directory, [bridge], address)
        for name in BROKERS:
            await self.joined(name)

    async def joined(self, name: str) -> None:
        """Wait until a broker has the bridge and the handler."""
        await self.brokers[name].says("bridge-")
        await self.brokers[name].says("'post'")


@asynccontextmanager
async def two_brokers(cluster: Cluster) -> AsyncIterator[TwoBrokers]:
    """Run two brokers; at the end all processes are killed, and none has shown a traceback. What they said is printed
    where the test fails."""
    async with short_directory() as directory:
        both = TwoBrokers(directory, cluster)
        try:
            await both.begin()
            yield both
        except BaseException:
            for process in both.processes:
                print(f"process {process.process.pid}:", *process.lines, sep="\n  ")
            raise
        finally:
            for process in both.processes:
                await process.end(signal.SIGKILL)
        lines = "\n".join(line for process in both.processes for line in process.lines)
        assert "Traceback" not in lines, lines


async def exchanged(client: RawClient, to: str, number: int) -> Any:
    """Post a number to a user, and return the outcome."""
    client.submit("post", {"to": [to], "number": number}, str(number))
    report, _ = await client.until_report(str(number))
    return report["payload"].get("recipients", {}).get(to, report["header"]["status"])


async def at_home(both: TwoBrokers, broker: str) -> RawClient:
    """Log in a user whose home is this broker, and wait until the user's messages go there: a bridge that was not
    welcome there yet sends them to the other one for a moment."""
    client = await RawClient.login(both.server, USERS[broker])
    while True:
        assert await exchanged(client, USERS[broker], 0) == "good"
        asked = await both.run("status", "--json", "-c", f"{broker}.toml")
        await asyncio.wait_for(asked.process.wait(), DEADLINE_S)
        await asked.end()
        if json.loads("".join(asked.lines))["types"]["post"]["received"]:
            return client


async def test_users_of_a_killed_broker_go_on_at_the_other_and_come_home_again(cluster: Cluster) -> None:
    async with two_brokers(cluster) as both, asyncio.timeout(2 * DEADLINE_S):
        clients = {broker: await at_home(both, broker) for broker in BROKERS}
        one, two = clients["b1"], clients["b2"]
        for sender, to, client in ((one, "b2", two), (two, "b1", one)):  # any broker reaches any user
            assert await exchanged(sender, USERS[to], 1) == "good"
            assert (await client.receive())["payload"]["data"] == 1
        one.submit("held", 1, "held")
        await both.handler.says("held 1")
        for number in range(100):
            one.submit("post", {"to": [USERS["b1"]], "number": number}, str(number))
        await both.brokers["b1"].end(signal.SIGKILL)

        answer: Any = None
        numbers: list[int] = []
        reports: set[str] = set()
        while len(reports) < 101:
            frame = await one.receive()
            if frame["header"].get("messageType") == "receivedMessage":
                if frame["payload"]["type"] == "held":
                    answer = frame["payload"]["data"], frame["header"].get("redelivered")
                else:
                    numbers.append(frame["payload"]["data"])
            else:
                assert frame["header"]["status"] == "good"
                reports.add(frame["payload"]["id"])
        assert answer == ([1, 2], True)
        assert sorted(set(numbers)) == list(range(100))
        assert await exchanged(one, USERS["b2"], 7) == "good"
        assert (await two.receive())["payload"]["data"] == 7
        assert await exchanged(two, "away", 8) == "queued"
        status = await both.run("status", "-c", "b2.toml")
        await status.says("s1, broker b2, up ")
        newcomer = await RawClient.login(both.server, USERS["b1"])
        await newcomer.close()
        for name, expected in (("b1", 1), ("b2", 0)):  # each file is about its own broker
            asked = await both.run("status", "-c", f"{name}.toml")
            assert await asyncio.wait_for(asked.process.wait(), DEADLINE_S) == expected, asked.lines

        await both.broker("b1")
        await both.joined("b1")
        await both.server.processes[0].says("is back (broker b1)")
        assert await exchanged(one, USERS["b2"], 9) == "good"
        assert (await two.receive())["payload"]["data"] == 9
        for client in clients.values():
            await client.close()


async def test_message_that_kills_at_one_broker_costs_no_other_one_its_attempts(cluster: Cluster) -> None:
    """Each broker has given the handler a single message. No broker knows of the other's."""
    async with two_brokers(cluster) as both, asyncio.timeout(2 * DEADLINE_S):
        innocent, killer = [await at_home(both, broker) for broker in BROKERS]
        innocent.submit("slow", "alive", "slow")
        await both.handler.says("slow 1")
        killer.submit("die", None, "die")
        reported = asyncio.create_task(killer.until_report("die"))
        deaths = 0
        while not reported.done():
            ended = asyncio.create_task(both.handler.process.wait())
            await asyncio.wait((reported, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                deaths += 1
                both.handler = await both.run("handler", "-c", "bridge.toml", "post:app")
            ended.cancel()
        report, _ = await reported
        assert report["payload"]["reason"] == "handler-lost"
        report, _ = await innocent.until_report("slow")
        assert report["header"]["status"] == "good"
        assert deaths == 4, "one that it was not known to be alone with, and its attempts"
        for client in (innocent, killer):
            await client.close()


async def test_mailbox_of_a_removed_account_at_a_broker_that_is_away_ends_with_its_adoption(cluster: Cluster) -> None:
    """The other broker, which had nothing of the user, had struck the removal off by then: the messages waited for a
    user that nobody was, and went to the next account of the name."""
    async with two_brokers(cluster) as both, asyncio.timeout(2 * DEADLINE_S):
        sender = await at_home(both, "b2")
        sender.submit("post", {"to": ["away"], "number": 1}, "old")
        report, _ = await sender.until_report("old")
        assert report["payload"]["recipients"] == {"away": "queued"}
        await both.brokers["b2"].end()
        with closing(PostgresAccounts(both.database)) as accounts:
            accounts.remove("away")
            accounts.add("away", "secret")
        newcomer = await logged_in_soon(both.server, "away")
        await both.brokers["b1"].says(" adopted ")
        assert await exchanged(sender, "away", 2) == "good"
        assert (await newcomer.receive())["payload"]["data"] == 2, "nothing that was queued for the old account"
        asked = {"type": "outcome", "data": report["payload"]["message"]}
        sender.send({"payload": {"type": "builtin", "id": "asked", "data": {"command": asked}}})
        assert (await sender.receive())["payload"]["data"]["recipients"] == {"away": "failed:unknown-user"}
        for client in (sender, newcomer):
            await client.close()


async def test_up_beside_another_broker_of_the_schema_names_the_commands_for_several(cluster: Cluster) -> None:
    database = cluster.database()
    async with short_directory() as directory:
        for name in BROKERS:
            (directory / f"{name}.toml").write_text(
                f'[server]\nname = "s1"\nbroker = "{name}"\ndata_dir = "{name}"\n[native]\ntcp4 = "127.0.0.1:0"\n'
                f'[store]\nurl = "{database.url}"\nschema = "{database.schema}"\n'
            )
        started: list[Process] = []
        try:
            for name in BROKERS:
                started.append(await Process.start(BESTER, "up", "-c", f"{name}.toml", cwd=directory))
                await started[-1].says(" serves ")
            await started[1].says("run `bester broker`, `bester bridge` and `bester handler`")
            assert not any("run `bester broker`" in line for line in started[0].lines), "the first was alone"
            checked = await Process.start(BESTER, "check", "-c", "b1.toml", cwd=directory)
            started.append(checked)
            await checked.says("broker b2 lives")
        finally:
            for process in started:
                await process.end(signal.SIGKILL)


async def test_orders_name_the_brokers_that_were_not_told(cluster: Cluster) -> None:
    async with two_brokers(cluster) as both, asyncio.timeout(2 * DEADLINE_S):
        for name in BROKERS:
            with (both.directory / f"{name}.toml").open("a") as file:
                file.write('[servers.s9]\nnative = "127.0.0.1:1"\n')
            both.brokers[name].send_signal(signal.SIGHUP)
            await both.brokers[name].says("the configuration was read again")
        for name in BROKERS:
            seen = 0
            while seen < len(BROKERS):  # a broker looks for the others now and then
                asked = await both.run("status", "--json", "-c", f"{name}.toml")
                await asyncio.wait_for(asked.process.wait(), DEADLINE_S)
                await asked.end()
                seen = len(json.loads("".join(asked.lines))["brokers"])
        held = await both.run("peers", "-c", "b1.toml", "hold", "s9")
        assert await asyncio.wait_for(held.process.wait(), DEADLINE_S) == 0
        await held.says("holding messages to s9, now 0")
        await held.says("broker b1 alone was told; tell the others, too, each by its own file (-c): b2")
        for order in (["list"], ["show", "m1"], ["drop", "m1"], ["replay", "--all"]):
            asked = await both.run("dead", *order, "-c", "b2.toml")
            await asyncio.wait_for(asked.process.wait(), DEADLINE_S)
            await asked.says("broker b2 alone was asked; ask the others, too, each by its own file (-c): b1")


@pytest.mark.parametrize("broker", BROKERS)
async def test_schema_of_another_server_is_refused_while_that_lives(cluster: Cluster, broker: str) -> None:
    """A copied file with another name: each of the servers would adopt the mailboxes of the other's users."""
    database = cluster.database()
    async with short_directory() as directory:
        for name, its in (("s1", "b1"), ("s2", broker)):
            (directory / f"{name}.toml").write_text(
                f'[server]\nname = "{name}"\nbroker = "{its}"\ndata_dir = "{name}"\n[native]\ntcp4 = "127.0.0.1:0"\n'
                f'[store]\nurl = "{database.url}"\nschema = "{database.schema}"\n'
            )
        started: list[Process] = []
        try:
            started.append(await Process.start(BESTER, "up", "-c", "s1.toml", cwd=directory))
            await started[0].says(" serves ")
            for command in ("up", "check"):
                refused = await Process.start(BESTER, command, "-c", "s2.toml", cwd=directory)
                started.append(refused)
                told = await refused.says("the schema is that of server 's1', whose broker 'b1' is process")
                assert told.endswith(
                    "; name another [store] schema, or stop that broker first if the server has a new name"
                )
                assert await asyncio.wait_for(refused.process.wait(), DEADLINE_S) == 1
            await started[0].end()
            renamed = await Process.start(BESTER, "up", "-c", "s2.toml", cwd=directory)
            started.append(renamed)
            await renamed.says(" serves ")
        finally:
            for process in started:
                await process.end(signal.SIGKILL)


async def logged_in_soon(server: LiveServer, user: str) -> RawClient:
    """Log a user in as soon as the bridge has a broker, where one of its two links is being given up for the other, and
    as soon as the broker has the account."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            client = await RawClient.connect(server)
            login = {"scope": "client", "authentication": {"username": user, "password": "secret"}}
            client.send({"header": login, "payload": {"data": None, "type": "dummy"}})
            answer = await client.receive()
            if answer["header"]["status"] == "good":
                return client
            assert answer["payload"]["reason"] in ("unreachable", "overloaded", "authentication-failed"), answer
            await client.close()
            await asyncio.sleep(0.05)


async def test_endpoint_that_leads_to_the_same_broker_is_left_out(cluster: Cluster) -> None:
    async with short_directory() as directory:
        endpoints = [f"ipc://{directory}/{name}.sock" for name in ("first", "second")]
        fabric = f"[fabric]\nlisten = {endpoints}\nconnect = {endpoints}\n".replace("'", '"')
        (directory / "bester.toml").write_text(head(auth="open") + fabric)
        broker = await Process.start(BESTER, "broker", cwd=directory)
        bridge = await Process.start(BESTER, "bridge", cwd=directory)
        try:
            address = (await bridge.says(" serves ")).partition(" serves ")[2].strip()
            await bridge.says("lead to one broker")
            client = await logged_in_soon(LiveServer(directory, [bridge], address), "ann")
            reasons: list[str] = []
            async with asyncio.timeout(DEADLINE_S):
                while "unknown-type" not in reasons:
                    client.submit("nothing", 1, str(len(reasons)))
                    report, _ = await client.until_report(str(len(reasons)))
                    reasons.append(report["payload"]["reason"])
            assert set(reasons) <= {"unknown-type", "unreachable"}, reasons
            await client.close()
        finally:
            statuses = [await process.end() for process in (bridge, broker)]
        assert statuses == [0, 0], "\n".join(line for process in (bridge, broker) for line in process.lines)
