"""PgBouncer between a server and PostgreSQL: in session mode nothing is different, any other one is refused."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import psycopg
import pytest

from bester.broker import postgres, postgres_schema
from bester.broker.postgres import Database
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, head, short_directory
from tests.postgres_server import Cluster

pytestmark = pytest.mark.skipif(
    shutil.which("pgbouncer") is None, reason="PgBouncer is not installed (apt-get install pgbouncer)"
)
PORT = 6432
"""Part of the name of its socket alone: it listens at no address."""


@asynccontextmanager
async def pooler(cluster: Cluster, mode: str, size: int = 20) -> AsyncIterator[str]:
    """Run a pooler with so many sessions; the value is the address of the database behind it."""
    async with short_directory() as directory:
        settings = {
            "listen_addr": "", "listen_port": PORT, "unix_socket_dir": directory, "auth_type": "trust",
            "auth_file": directory / "users", "pool_mode": mode, "default_pool_size": size,
        }  # fmt: skip
        lines = [f"* = host={cluster.folder}", "[pgbouncer]", *(f"{key} = {value}" for key, value in settings.items())]
        (directory / "pgbouncer.ini").write_text("\n".join(["[databases]", *lines, ""]))
        (directory / "users").write_text('"bester" ""\n')
        as_user = ("runuser", "-u", cluster.user, "--") if cluster.user else ()
        if cluster.user:
            os.chown(directory, pwd.getpwnam(cluster.user).pw_uid, -1)
        process = await Process.start(*as_user, "pgbouncer", str(directory / "pgbouncer.ini"), cwd=directory)
        try:
            await process.says("process up")
            yield f"postgresql://bester@/postgres?host={directory}&port={PORT}"
        finally:
            await process.end()


def toml(url: str, schema: str) -> str:
    return head(auth="open") + f'[store]\nurl = "{url}"\nschema = "{schema}"\n'


async def test_pooler_in_session_mode_makes_no_difference(cluster: Cluster) -> None:
    async with pooler(cluster, "session") as url, short_directory() as directory:
        server = await LiveServer.start(directory, toml(url, cluster.schema()))
        assert await server.stop() == [0]


async def test_pooler_without_another_session_keeps_nobody_waiting(cluster: Cluster) -> None:
    """It would let a second connection wait for two minutes, and a start or a check with it."""
    async with pooler(cluster, "session", 1) as url:
        database = Database(url, cluster.schema())
        with closing(await asyncio.to_thread(postgres.connect, database, "test")) as connection:
            await asyncio.wait_for(asyncio.to_thread(postgres.see_session, connection, database), DEADLINE_S)


async def test_pooler_without_a_session_is_told_and_keeps_nobody_waiting(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pooler(cluster, "session", 1) as url:
        database = Database(url, cluster.schema())
        with closing(await asyncio.to_thread(postgres.connect, database, "test")):
            monkeypatch.setattr("bester.broker.postgres.ANSWER_S", 0.5)
            found = await asyncio.wait_for(asyncio.to_thread(postgres_schema.fault, database), DEADLINE_S)
    assert found is not None and "no session within 0.5 s; see the pooler in between: it has no session left" in found


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_pooler_that_gives_sessions_away_is_refused_in_one_line(cluster: Cluster, mode: str) -> None:
    schema = cluster.schema()
    async with pooler(cluster, mode) as url, short_directory() as directory:
        (directory / "bester.toml").write_text(toml(url, schema))
        for command in ("up", "check"):
            process = await Process.start(BESTER, command, cwd=directory)
            try:
                async with asyncio.timeout(DEADLINE_S):
                    assert await process.process.wait() != 0
            finally:
                await process.end()
            told = [line for line in process.lines if "pool_mode = session" in line]
            assert len(told) == 1, process.lines
            assert command == "check" or process.lines == told
    with psycopg.connect(cluster.url()) as connection:
        row = connection.execute("SELECT count(*) FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone()
    assert row == (0,), "a start that is refused makes nothing"
