"""The second server of a chaos run as a cluster: two brokers, two bridges, four handlers, and a PostgreSQL.

The handlers are linked to both brokers, and so are the bridges; one sends by the first and receives by the second. The
database is on disk (`fsync`), and is killed and frozen like every program. So is each cable: a bridge or a handler may
reach one broker and not the other, and a broker everybody but its database. Whoever has lost its lease ends; something
like systemd starts it again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from bester.broker.accounts_postgres import PostgresAccounts
from bester.broker.postgres import Database
from tests.benchmarks.processes import children
from tests.chaos.cables import Cable
from tests.chaos.happened import CLUSTER_BROKERS, Happened
from tests.chaos.journal import now_s
from tests.chaos.letters import DeadLetter
from tests.chaos.machine import Machine
from tests.chaos.processes import BESTER, LOOK_S, Part, Parts
from tests.chaos.remains import may_wait
from tests.chaos.sender import PASSWORD
from tests.chaos.servers import CONFIG, QUICK, TTL_S, USER_MESSAGES, Program, Server, free_port
from tests.chaos.traffic import ATTEMPTS, FLOODER, SENDERS, SERVERS
from tests.postgres_server import Cluster

NAME = "s2"
BROKERS = ("b1", "b2")
LAYOUTS = ("usual", "cluster")
SOCKET = ".s.PGSQL.5432"
"""Name of a socket of PostgreSQL."""


class DatabasePart(Part):
    """The database, as a part of the run that dies and freezes. It runs as a user of its own, without the mark."""

    def __init__(self, directory: Path) -> None:
        super().__init__("database", directory, "")
        self.cluster = Cluster("fsync=on")
        self._runs = True

    @property
    def alive(self) -> bool:
        return self._runs

    def kill(self) -> None:
        """End the database as a crash does: what it has not flushed is lost."""
        self.thaw()
        self.cluster.stop("immediate")
        self._runs = False

    def back(self) -> None:
        """Start the database again; it recovers from its log."""
        self.cluster.start()
        self._runs = True

    def _signal_all(self, number: int) -> None:
        pid = self.cluster.process
        for each in (pid, *children(pid)):
            with suppress(ProcessLookupError):
                os.kill(each, number)

    def freeze(self) -> None:
        self._signal_all(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            self._signal_all(signal.SIGCONT)
        self.frozen = False


class ServerCluster:
    """The server `s2` as a cluster in a directory; nothing is started but the database."""

    def __init__(
        self, parts: Parts, directory: Path, machine: Machine, more: dict[str, str], natives: str, peer_data: Path,
        seed: int,
    ) -> None:  # fmt: skip
        own = directory / NAME
        own.mkdir()
        self.database_part = DatabasePart(directory)
        self.database = Database(self.database_part.cluster.url(), "chaos")
        with closing(PostgresAccounts(self.database)) as accounts:
            for user in (SENDERS[NAME], *SERVERS[NAME], FLOODER):
                accounts.add(user, PASSWORD)
        self._own = own
        self._seed = seed
        self.cables: dict[str, list[Cable]] = {"fabric": [], "handlers": [], "database": []}
        """Cables by what is behind them."""
        self.tcp = [f"127.0.0.1:{free_port()}" for _ in BROKERS]
        for number, broker in enumerate(BROKERS):
            text = CONFIG.format(
                name=NAME, peer="s1", tcp=self.tcp[number], peer_fabric=peer_data, ttl_s=TTL_S,
                user_messages=USER_MESSAGES, attempts=ATTEMPTS, natives=natives, quick=json.dumps(QUICK),
                unix=f"[fabric]\nconnect = {json.dumps(self._fabric('fabric', f'bridge-{broker}'))}",
            )  # fmt: skip
            url = self._database_url(broker)
            text = text.replace('data_dir = "data"', f'data_dir = "{own}/{broker}"\nbroker = "{broker}"')
            text = text.replace("[store]", f'[store]\nurl = "{url}"\nschema = "{self.database.schema}"')
            (own / f"{broker}.toml").write_text(text)
        types = "|".join(f"'{type_}'" for type_ in (*QUICK, "slow"))

        def handler(kind: str) -> Program:
            part = parts.part(kind, own)
            endpoints = self._fabric("handlers", kind, part)
            fabric = [word for endpoint in endpoints for word in ("--fabric", endpoint)]
            return program(part, BESTER, "handler", f"tests.chaos.handlers:{kind}", *fabric, "--workers", "2")

        def program(part: Part, *command: str) -> Program:
            return Program(part, machine, more, *command)

        self.brokers = [
            program(parts.part(f"broker-{name}", own, ready=f"broker |{types}"), BESTER, "broker", "-c", f"{name}.toml")
            for name in BROKERS
        ]
        self.bridges = [
            program(parts.part(f"bridge-{name}", own, ready=" serves "), BESTER, "bridge", "-c", f"{name}.toml")
            for name in BROKERS
        ]
        self.handlers = [handler(kind) for kind in ("quick", "slow")]
        programs = [*self.brokers, *self.bridges, *self.handlers]
        configs = [own / f"{broker}.toml" for broker in BROKERS]
        self.server = Server(NAME, self.tcp[0], self.tcp[0], machine, programs, configs)
        self.server.receiving = self.tcp[1]

    def _cable(self, kind: str, name: str, here: Path, there: Path, *ends: Part) -> None:
        """Lay a cable between two sockets."""
        here.parent.mkdir(exist_ok=True)
        self.cables[kind].append(Cable(name, here, there, Random(f"{self._seed}/{name}"), ends))

    def _fabric(self, kind: str, program: str, *ends: Part) -> list[str]:
        """Return the endpoints of both brokers for a program, behind cables of its own."""
        for to in BROKERS:
            place = self._own / program / to
            self._cable(kind, f"cable of {program} to {to}", place, self._own / to / "fabric.sock", *ends)
        return [f"ipc://{self._own / program / to}" for to in BROKERS]

    def _database_url(self, broker: str) -> str:
        """Return the address of the database for a broker, behind a cable of its own."""
        place, behind = self._own / f"{broker}-db", self.database_part.cluster
        self._cable("database", f"cable of {broker} to database", place / SOCKET, behind.folder / SOCKET)
        return self.database.url.replace(str(behind.folder), str(place))

    @property
    def all_cables(self) -> list[Cable]:
        """All cables."""
        return [cable for cables in self.cables.values() for cable in cables]

    async def keep_up(self, is_hit: Callable[[str], bool], happened: Happened) -> None:
        """Start brokers again that end by themselves, until cancelled: their lease was taken meanwhile. The end of one
        is recorded: its users move to another broker, and back."""
        while True:
            await asyncio.sleep(LOOK_S * 5)
            for program in (*self.brokers, *self.bridges):
                if not program.part.alive and not is_hit(program.part.name):
                    program.start()
                    if program in self.brokers:
                        at_s = now_s()
                        happened.ends(happened.begins(CLUSTER_BROKERS, kills=True, at_s=at_s - LOOK_S * 5), at_s)

    def close(self) -> None:
        """End the database and delete its data."""
        self.database_part.thaw()
        self.database_part.cluster.close()

    def _rows(self, query: str) -> Sequence[tuple[Any, ...]]:
        if not self.database_part.alive:
            self.database_part.back()
        with psycopg.connect(self.database.url) as connection:
            return connection.execute(query).fetchall()

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters of both brokers; call once all processes have ended."""
        rows = self._rows(
            "SELECT body, reason, extract(epoch FROM died_at)::float8 FROM chaos.dead_letters ORDER BY died_at"
        )
        return [DeadLetter(NAME, json.loads(bytes(body))["number"], reason, at_s, None) for body, reason, at_s in rows]

    def waiting(self) -> list[str]:
        """Return the messages that still wait, as `remains.waiting` does."""
        rows = self._rows("SELECT e.box, b.name, count(*) FROM chaos.entry e JOIN chaos.broker b USING (ns) "
                          "WHERE e.outcome IS NULL GROUP BY 1, 2")  # fmt: skip
        return [
            f"still waits at {broker} of {NAME}: {count} in {queue!r}"
            for queue, broker, count in rows
            if not may_wait(queue, SENDERS[NAME])
        ]
