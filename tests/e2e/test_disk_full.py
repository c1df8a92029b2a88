"""A disk that fills up under load: senders get reports, others are served, no file is damaged, the server recovers."""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytest

from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, head, short_directory

DISK_MIB = 16
BALLAST_BYTES = 4 * 1024 * 1024
"""Bytes of the disk that another file takes from the beginning."""
LIMIT_BYTES = 4 * 1024 * 1024
PAD = "x" * 10_000
BURST = 25
"""Messages in flight at once."""

TOML = head() + '[handlers.post]\napp = "post:app"\n[store]\nsender_share = 1\n'
APP = """
from bester.handlers import App
app = App()

@app.handler("post", inline=True)
def post(message):
    return message.send_clients([message.data["to"]], message.data)
"""
ADD_USERS = """
import sys
from pathlib import Path
from bester.broker.accounts import Accounts
accounts = Accounts(Path(sys.argv[1]))
for name in ("ann", "bob", "eve"):
    accounts.add(name, "secret")
accounts.close()
"""
ADD_ONE = """
import sys
from pathlib import Path
from bester.broker.accounts import Accounts
accounts = Accounts(Path(sys.argv[1]))
accounts.add("zoe", "secret")
accounts.close()
"""
CHECK = """
import sqlite3, sys
print(*sqlite3.connect(sys.argv[1]).execute("PRAGMA integrity_check").fetchone())
"""

# --- ways to run out of room ------------------------------------------------------------------------------------


class Disk(Protocol):
    """The disk of a server's data. `prefix` stands before a command that must see this disk."""

    prefix: tuple[str, ...]
    full: tuple[str, ...]
    """Prefix of a command for which the disk is full from the start."""

    def bound(self, server: Process) -> None:
        """Note that a server has been started on this disk."""

    def fill(self) -> None:
        """Fill the disk up."""

    def fill_before(self) -> None:
        """Fill the disk up for a server that is started with the prefix `full`."""

    def make_room(self) -> None:
        """Make room on the disk again."""


class Small:
    """A small disk in memory, seen by the processes in the namespace of `holder`; a file fills the disk."""

    def __init__(self, holder: int, directory: Path) -> None:
        self.prefix: tuple[str, ...] = (*_enter(holder), f"--wd={directory}")
        self.full = self.prefix
        self._ballast = Path(f"/proc/{holder}/root{directory}/data/ballast")
        self._ballast.write_bytes(b"x" * BALLAST_BYTES)

    def bound(self, server: Process) -> None:
        """Do nothing: the disk has a size of its own."""

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:  # no space left on device
                    pass

    fill_before = fill

    def make_room(self) -> None:
        self._ballast.unlink()


class Limited:
    """The kernel's limit on the size of the server's files: all writes beyond the limit fail."""

    prefix: tuple[str, ...] = ()
    full: tuple[str, ...] = ("sh", "-c", 'ulimit -S -f 0 && exec "$@"', "sh")

    def bound(self, server: Process) -> None:
        self._pid = server.process.pid
        if resource.prlimit(self._pid, resource.RLIMIT_FSIZE)[0]:
            self._limit(LIMIT_BYTES)

    def fill(self) -> None:
        self._limit(0)

    def fill_before(self) -> None:
        """Do nothing: the prefix sets the limit of the new process."""

    def make_room(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size_bytes: int) -> None:
        _, hard = resource.prlimit(self._pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


def _hold(size: str, directory: Path) -> tuple[str, ...]:
    """Return a command that mounts a disk for its own namespace, and holds the disk until its input ends."""
    script = 'mount -t tmpfs -o mode=700,size="$1" tmpfs "$2" && echo ready && exec cat'
    return ("unshare", "-rm", "sh", "-c", script, "sh", size, str(directory))


def _enter(holder: int) -> tuple[str, ...]:
    return ("nsenter", "-t", str(holder), "-m", "-U", "--preserve-credentials")


def _may_mount() -> bool:
    with TemporaryDirectory(prefix="b-") as name:
        try:
            with subprocess.Popen(_hold("1m", Path(name)), stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as holder:
                assert holder.stdin is not None and holder.stdout is not None
                if holder.stdout.readline() != b"ready\n":
                    return False
                entered = subprocess.run([*_enter(holder.pid), "true"], check=False, stderr=DEVNULL, timeout=DEADLINE_S)
                return entered.returncode == 0
        except OSError:  # no such programs on this machine
            return False


WAYS = ["limited", "small"] if _may_mount() else ["limited"]
"""Ways that this machine allows: some forbid mounts."""


@asynccontextmanager
async def disk(way: str, directory: Path) -> AsyncIterator[Disk]:
    (directory / "data").mkdir(mode=0o700)
    if way == "limited":
        yield Limited()
        return
    command = _hold(f"{DISK_MIB}m", directory / "data")
    holder = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert await asyncio.wait_for(holder.stdout.readline(), DEADLINE_S) == b"ready\n"
        yield Small(holder.pid, directory)
    finally:
        holder.stdin.close()
        await asyncio.wait_for(holder.wait(), DEADLINE_S)


# --- the scene --------------------------------------------------------------------------------------------------


class Scene:
    """A server whose disk is small, and ann, who writes to other users. `queued` are numbers reported as queued, in
    order.
    """

    def __init__(self, disk: Disk, directory: Path) -> None:
        self.disk = disk
        self.directory = directory
        self.queued: list[int] = []
        self._number = 0

    async def run(self, program: str, *arguments: str) -> str:
        """Run a program in Python on the disk."""
        process = await Process.start(*self.disk.prefix, sys.executable, "-c", program, *arguments, cwd=self.directory)
        await process.process.wait()
        assert await process.end() == 0, process.lines
        return "\n".join(process.lines)

    async def start(self, *, full: bool = False) -> None:
        prefix = self.disk.full if full else self.disk.prefix
        self.process = await Process.start(*prefix, BESTER, "up", cwd=self.directory)
        line = await self.process.says(" serves ")
        self.disk.bound(self.process)
        self.server = LiveServer(self.directory, [self.process], line.partition(" serves ")[2].split(",")[0].strip())
        await self.server.has_type("post")
        self.ann = await RawClient.login(self.server, "ann")

    async def ends(self, number: int = signal.SIGKILL) -> None:
        await self.process.end(number)
        await self.ann.close()

    async def burst(self, to: str, pad: str = PAD) -> list[int]:
        """Send some messages at once; return those reported good."""
        waiting = {str(self._number + each): self._number + each for each in range(1, BURST + 1)}
        self._number += BURST
        for id_, number in waiting.items():
            self.ann.submit("post", {"to": to, "number": number, "pad": pad}, id_)
        good: list[int] = []
        while waiting:
            frame = await self.ann.receive()
            payload = frame["payload"]
            number = waiting.pop(payload["id"])
            outcome = payload.get("recipients", {to: "delivered"})[to]
            if frame["header"]["status"] == "good":
                good.append(number)
                if outcome == "queued":
                    self.queued.append(number)
            else:
                assert (payload["reason"], outcome) == ("storage-full", "failed:storage-full")
        return good

    async def until_refused(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(await self.burst("bob")) == BURST:
                pass

    async def until_taken(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(await self.burst("bob")) < BURST:
                await asyncio.sleep(0.1)  # refusals come at once

    async def others_are_served(self) -> None:
        eve = await RawClient.login(self.server, "eve")
        for _ in range(4):
            sent = await self.burst("eve")
            assert len(sent) == BURST
            assert [(await eve.receive())["payload"]["data"]["number"] for _ in sent] == sent
        await eve.close()

    async def bob_gets_all_once_and_in_order(self) -> None:
        bob = await RawClient.login(self.server, "bob")
        got: list[dict[str, Any]] = [await bob.receive() for _ in self.queued]
        assert [frame["payload"]["data"]["number"] for frame in got] == self.queued
        assert len({frame["header"]["id"] for frame in got}) == len(got)
        self.queued.clear()
        last = await self.burst("bob", pad="")  # no message comes between those and this
        assert [(await bob.receive())["payload"]["data"]["number"] for _ in last] == last
        await bob.close()


@asynccontextmanager
async def scene(way: str, *, full: bool = False) -> AsyncIterator[Scene]:
    """Run a scene; with `full`, the disk is full from the beginning, and no message was ever queued."""
    async with short_directory() as directory, disk(way, directory) as there:
        (directory / "bester.toml").write_text(TOML)
        (directory / "post.py").write_text(APP)
        scene = Scene(there, directory)
        await scene.run(ADD_USERS, "data")
        if full:
            there.fill_before()
        await scene.start(full=full)
        try:
            yield scene
            await scene.ann.close()
            assert await scene.process.end() == 0, scene.process.lines
        finally:
            if scene.process.process.returncode is None:
                await scene.process.end(signal.SIGKILL)
        assert not [line for line in scene.process.lines if "Traceback" in line], scene.process.lines
        assert await scene.run(CHECK, "data/store.db") == "ok"


@pytest.mark.parametrize("way", WAYS)
async def test_disk_that_fills_up_is_reported_harms_no_other_user_and_recovers(way: str) -> None:
    async with scene(way) as there:
        await there.until_refused()
        assert there.queued
        there.disk.fill()
        await there.others_are_served()
        assert await there.burst("bob") == []
        await there.others_are_served()
        there.disk.make_room()
        await there.until_taken()
        await there.process.says("storage-full")
        await there.ends()
        await there.start()
        await there.bob_gets_all_once_and_in_order()


@pytest.mark.parametrize("way", WAYS)
async def test_delivered_mailbox_makes_room(way: str) -> None:
    async with scene(way) as there:
        await there.until_refused()
        await there.bob_gets_all_once_and_in_order()
        await there.until_taken()
        await there.bob_gets_all_once_and_in_order()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("way", WAYS)
async def test_server_started_on_a_full_disk_delivers_to_connected_users(way: str, end: int) -> None:
    async with scene(way) as there:
        assert len(await there.burst("bob")) == BURST
        await there.ends(end)
        there.disk.fill_before()
        await there.start(full=True)
        if end == signal.SIGTERM:  # the log of a store that was killed may have room for the start's own writes
            assert "; until then nothing can be kept" in await there.process.says("warning broker: storage-full")
        await there.others_are_served()
        assert await there.burst("bob") == []
        await there.process.says("warning broker: storage-full")
        await there.others_are_served()
        there.disk.make_room()
        await there.until_taken()
        await there.run(ADD_ONE, str(there.directory / "data"))
        await (await RawClient.login(there.server, "zoe")).close()
        await there.ends()
        await there.start()
        await there.bob_gets_all_once_and_in_order()


@pytest.mark.parametrize("way", WAYS)
async def test_server_without_a_store_starts_on_a_full_disk(way: str) -> None:
    async with scene(way, full=True) as there:
        await there.process.says("storage-full")
        assert not (there.directory / "data" / "store.db").exists()
        await there.others_are_served()
        assert await there.burst("bob") == []
        there.disk.make_room()
        await there.until_taken()
        await there.ends()
        await there.start()
        await there.bob_gets_all_once_and_in_order()


CREATE = """
import os, sqlite3, subprocess, sys
from contextlib import closing
from pathlib import Path
from bester.broker.accounts import Accounts
from bester.broker.store.sqlite import SqliteStore
from bester.broker.wire.codes import BesterError

def make_store(path):
    store = SqliteStore(path)
    store.open()
    store.close()

disk = Path(sys.argv[1])
for kib in range(4, 400, 8):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,size={kib}k", "tmpfs", disk], check=True)
    for path, make in ((disk / "store.db", make_store), (disk / "accounts.db", lambda _: Accounts(disk).close())):
        try:
            make(path)
        except BesterError as error:
            assert "room" in error.text, error.text
        if path.exists():
            with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",), (kib, path)
    print(kib, os.listdir(disk))
    subprocess.run(["umount", disk], check=True)
"""


@pytest.mark.skipif("small" not in WAYS, reason="this machine forbids mounts")
async def test_file_made_on_a_disk_of_any_size_is_whole_or_not_there() -> None:
    async with short_directory() as directory:
        process = await Process.start("unshare", "-rm", sys.executable, "-c", CREATE, str(directory), cwd=directory)
        await process.process.wait()
        assert await process.end() == 0, process.lines
        assert "store.db" in process.lines[-1]
        assert "store.db" not in process.lines[0]


@pytest.mark.skipif("small" not in WAYS, reason="this machine forbids mounts")
@pytest.mark.parametrize(
    ("command", "free"),
    [("keys", 0), ("keys new k", 0), ("keys new k", 4), ("new handler ab", 0), ("new handler ab", 4)],
)
async def test_command_on_a_full_disk_names_the_remedy_and_leaves_nothing(command: str, free: int) -> None:
    async with short_directory() as directory:
        script = (
            'mount -t tmpfs -o mode=700,size=8k tmpfs "$0" && cd "$0" && head -c "$1" /dev/zero >fill && shift && "$@"'
        )
        process = await Process.start(
            "unshare", "-rm", "sh", "-c", f"{script}; echo $?; rm fill; ls", str(directory),
            f"{8 - free}k", BESTER, *command.split(), cwd=directory,
        )  # fmt: skip
        await process.process.wait()
        await process.end()
    why, status, *left = process.lines
    assert status in ("1", "2")
    assert "No space left on device; " in why
    assert "room on" in why
    assert left in ([], ["bester-data"]), left
