"""A disk whose fsync fails: what was told as failed does not come back, neither after a kill nor when a file is opened
again. SQLite has written such a transaction whole into its log by then.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from bester.broker.accounts import Accounts
from bester.client import Client
from tests.broken_disk import COMPILER, BrokenDisk
from tests.live import BESTER, DEADLINE_S, Process, head, short_directory

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

CONFIG = (
    head()
    + """[handlers.chat]
app = "bester.handlers.stock.chat:app"
[handlers.mail]
app = "bester.handlers.stock.mail:app"
"""
)
STATES = """
import os, pathlib, sys
from bester.broker.accounts import Accounts
from bester.broker.wire.codes import BesterError
from bester.handlers import HandlerError
from bester.handlers.stock.store import Store

directory, switch = map(pathlib.Path, sys.argv[1:])
accounts = Accounts(directory)
accounts.add("alice", "secret")
state = Store("mail", "CREATE TABLE IF NOT EXISTS told (word TEXT);", directory)
with state.turn() as db:
    db.execute("INSERT INTO told VALUES ('kept')")
switch.touch()


def change_state():
    with state.turn() as db:
        db.execute("INSERT INTO told VALUES ('refused')")


changes = [(change_state, HandlerError), (lambda: accounts.add("bob", "secret"), BesterError),
           (lambda: accounts.remove("alice"), BesterError)]
for change, failure in changes:
    try:
        change()
    except failure:
        continue
    raise SystemExit("the wait did not fail")
switch.unlink()
with state.turn() as db:
    print("opened again:", db.execute("SELECT word FROM told").fetchall(), flush=True)
os._exit(9)
"""


async def up(directory: Path, disk: BrokenDisk) -> tuple[Process, str]:
    server = await Process.start(BESTER, "up", cwd=directory, env=disk.env)
    line = await server.says(" serves ")
    await server.says("'chat'")
    return server, line.partition(" serves ")[2].split(",")[0].strip()


async def test_message_that_was_reported_failed_is_not_delivered_after_a_kill(tmp_path: Path) -> None:
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(CONFIG)
        with closing(Accounts(directory / "data")) as accounts:
            for user in ("alice", "bob"):
                accounts.add(user, "secret")
        disk = BrokenDisk(tmp_path, directory / "data")
        server, address = await up(directory, disk)
        try:
            async with Client(address, user="alice", password="secret") as alice:
                kept = await alice.send("chat", {"to": "bob", "text": "kept"})
                disk.breaks()
                failed = await alice.send("chat", {"to": "bob", "text": "failed"})
            assert (kept.recipients, failed.recipients) == ({"bob": "queued"}, {"bob": "failed:storage-full"})
            await server.end(signal.SIGKILL)
            disk.heals()
            server, address = await up(directory, disk)
            async with Client(address, user="alice", password="secret") as alice:
                await alice.send("chat", {"to": "bob", "text": "last"})
            async with Client(address, user="bob", password="secret") as bob, asyncio.timeout(DEADLINE_S):
                assert [(await anext(bob)).data["text"] for _ in range(2)] == ["kept", "last"]
        finally:
            await server.end(signal.SIGKILL)


def test_changes_that_were_told_as_failed_are_not_there_afterwards(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    disk = BrokenDisk(tmp_path, directory)
    ran = subprocess.run(
        [sys.executable, "-c", STATES, directory, disk.env["BROKEN_DISK_SWITCH"]],
        env=disk.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 9, ran.stdout + ran.stderr
    assert ran.stdout == "opened again: [('kept',)]\n"
    with closing(Accounts(directory)) as accounts:
        assert [account.name for account in accounts.list()] == ["alice"]


async def test_what_cannot_be_read_is_not_called_damaged() -> None:
    """SQLite takes a read that fails for a damaged page: a backup in its place would not help on that disk."""
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(CONFIG)
        (directory / "data").mkdir(mode=0o700)
        with closing(Accounts(directory / "data")) as accounts:
            accounts.add("alice", "secret")
        disk = BrokenDisk(directory, directory / "data" / "accounts.db", reads=True)
        disk.breaks()
        for command in (("up",), ("user", "list"), ("check",)):
            process = await Process.start(BESTER, *command, cwd=directory, env=disk.env)
            try:
                line = await process.says("accounts.db: disk I/O error; see that its disk is well and has room")
                assert "malformed" not in line and "backup" not in line
            finally:
                await process.end(signal.SIGKILL)
