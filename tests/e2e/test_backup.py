"""`bester backup`: the files copied, from a running server and from a stopped one, and refusals."""

import asyncio
import errno
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.broker.accounts import FILE, Accounts
from bester.broker.config import STORE_FILE
from bester.broker.store import schema
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import Enqueue, Entry, Fetch, mailbox
from bester.cli import main
from bester.cli.errors import describe
from tests.e2e.stock_stand import pair
from tests.live import BESTER, LiveServer, Process
from tests.plain_user import plain_user

BOX = mailbox("tim")
POST = """
from bester.handlers import App
app = App()

@app.handler("post")
async def post(message):
    to_the_other = message.user is not None
    return message.send_servers(["s2"], message.data) if to_the_other else message.send_clients(["g"], message.data)
"""
ENTRY = Entry(2**32, BOX, "here/b/1.0.0", "tim", "chat", b'{"text":"hello"}', "tom", 9e9, {"origin": "here"})


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        monkeypatch.chdir(name)
        yield Path(name)


def add_user(data_dir: Path, *names: str) -> None:
    accounts = Accounts(data_dir)
    for name in names or ("tim",):
        accounts.add(name, "secret")
    accounts.close()


def waiting_in(path: Path) -> int:
    store = SqliteStore(path)
    boxes = store.open().queues
    store.close()
    return sum(box.messages for box in boxes.values())


def keep_one(path: Path) -> str:
    """Queue a message in a store, and return the store's own name."""
    store = SqliteStore(path)
    epoch = store.open().epoch
    assert store.commit([Enqueue(ENTRY)]).ok
    store.close()
    return epoch


def names_in(data_dir: Path) -> list[str]:
    accounts = Accounts(data_dir)
    try:
        return [account.name for account in accounts.list()]
    finally:
        accounts.close()


def test_accounts_and_queued_messages_are_copied(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = directory / "bester-data"
    add_user(data_dir)
    epoch = keep_one(data_dir / STORE_FILE)
    assert main(["backup", "copies/monday"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["copies/monday/accounts.db", "copies/monday/store.db"]
    copy = directory / "copies/monday"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in copy.iterdir()} == {0o600}
    assert names_in(copy) == ["tim"]
    store = SqliteStore(copy / STORE_FILE)
    assert store.open().epoch != epoch
    assert store.read(Fetch(BOX, 0, 10, 10_000)) == [ENTRY]
    store.close()


def test_each_start_from_one_copy_has_an_epoch_of_its_own(directory: Path) -> None:
    """Numbers of the first start are given again by the second: other servers must not know them."""
    add_user(directory / "bester-data")
    epochs = [keep_one(directory / "bester-data" / STORE_FILE)]
    assert main(["backup", "copy"]) == 0
    for place in ("first", "second"):
        shutil.copytree("copy", place)
        for _ in range(2):
            with closing(SqliteStore(directory / place / STORE_FILE)) as store:
                epochs.append(store.open().epoch)
    original, first, again, second, later = epochs
    assert len({original, first, second}) == 3 and (first, second) == (again, later)


def test_what_waits_in_a_copy_is_marked_as_sent(directory: Path) -> None:
    """The original may deliver it after the copy was made."""
    path = directory / "bester-data" / STORE_FILE
    add_user(path.parent)
    keep_one(path)
    with closing(SqliteStore(path)) as store:
        assert store.open().queues[BOX].sent_upto == 0
    assert main(["backup", "copy"]) == 0
    with closing(SqliteStore(directory / "copy" / STORE_FILE)) as store:
        assert store.open().queues[BOX].sent_upto == ENTRY.number


def test_a_store_elsewhere_is_copied_too(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "bester.toml").write_text('[store]\nurl = "sqlite:elsewhere/kept.db"\n')
    (directory / "elsewhere").mkdir()
    keep_one(directory / "elsewhere/kept.db")
    assert main(["backup", "copy"]) == 0
    assert [path.name for path in (directory / "copy").iterdir()] == [STORE_FILE]
    assert capsys.readouterr().out.startswith("copy/store.db  ")


def test_store_in_memory_is_not_copied(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "bester.toml").write_text('[store]\nurl = "memory:"\n')
    add_user(directory / "bester-data")
    assert main(["backup", "copy"]) == 0
    assert [path.name for path in (directory / "copy").iterdir()] == [FILE]
    assert "memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "message"),
    [("full", "full: there is something in it; name a directory that is empty"), ("file", "file: is no directory")],
)
def test_existing_files_are_not_overwritten(
    target: str, message: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_user(directory / "bester-data")
    (directory / "full").mkdir()
    (directory / "full/mine").write_text("mine")
    (directory / "file").write_text("mine")
    assert main(["backup", target]) == 2
    assert capsys.readouterr().err.startswith(f"bester: {message}")
    assert [path.name for path in (directory / "full").iterdir()] == ["mine"]


def test_backup_without_databases_is_an_error(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backup", "copy"]) == 2
    assert "nothing is kept there" in capsys.readouterr().err
    assert not (directory / "copy").exists()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the status and the one line with which a command ends."""
    status = main(list(arguments))
    out, message = capsys.readouterr()
    assert (out, message.count("\n")) == ("", 1)
    return status, message.removeprefix("bester: ").strip()


def test_data_of_another_user_is_not_copied(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = directory / "bester-data"
    add_user(data_dir)
    with plain_user(directory, data_dir, data_dir / FILE):
        data_dir.chmod(0)
        remedy = "run this as the user whose server it is"
        assert refused(capsys, "backup", "copy") == (2, f"{data_dir}: Permission denied; {remedy}")
        data_dir.chmod(0o700)
        (data_dir / FILE).chmod(0)
        mode = "its mode (0000) keeps its owner from it; chmod 600 it"
        assert refused(capsys, "backup", "copy") == (1, f"{data_dir}/{FILE}: {mode}")
        assert refused(capsys, "user", "list") == (1, f"{data_dir}/{FILE}: {mode}")
    assert not (directory / "copy").exists()


def test_impossible_directory_is_an_error(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_user(directory / "bester-data")
    (directory / "closed").mkdir(mode=0o555)
    remedy = "name another place for the copies"
    assert refused(capsys, "backup", "/proc/foo") == (2, f"/proc: no directory can be made there; {remedy}")
    (directory / "file").touch()
    assert refused(capsys, "backup", "file/copy") == (2, f"{directory}/file: is no directory; {remedy}")
    with plain_user(directory, directory / "bester-data", directory / "bester-data" / FILE, directory / "closed"):
        for place in ("closed/copy", "closed/monday/copy"):
            fault = "no directory can be made there (Permission denied)"
            assert refused(capsys, "backup", place) == (2, f"{directory}/closed: {fault}; {remedy}")
        status, message = refused(capsys, "backup", "closed")
        assert (status, message.count("closed"), "Errno" in message) == (1, 1, False)
        (directory / "closed").chmod(0)
        named = "closed: Permission denied; name a directory of your own"
        assert refused(capsys, "backup", "closed") == (2, named)


def test_killed_backup_leaves_nothing_that_could_be_taken_for_a_copy(directory: Path) -> None:
    add_user(directory / "bester-data")
    keep_one(directory / "bester-data" / STORE_FILE)
    killed = (
        "import os, pathlib\n"
        "from bester.broker.store import backup, schema\n"
        "schema.make_copy = lambda db: os._exit(9)\n"
        "backup.backup(pathlib.Path('bester-data'), pathlib.Path('copy'))\n"
    )
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    assert not list((directory / "copy").glob("*.db"))
    assert [path.name[:12] for path in (directory / "copy").iterdir()] == [".unfinished-"]


def test_failed_backup_leaves_no_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    add_user(directory / "bester-data")
    keep_one(directory / "bester-data" / STORE_FILE)
    monkeypatch.setattr(schema, "make_copy", fail)
    (directory / "empty").mkdir()
    for target in ("copy", "empty"):
        status, message = refused(capsys, "backup", target)
        assert (status, message.partition(";")[0]) == (
            1, f"{directory}/bester-data/store.db to {target}: database or disk is full",
        )  # fmt: skip
    assert not (directory / "copy").exists()
    assert not list((directory / "empty").iterdir()), "a directory that was there stays"


def test_a_store_that_is_no_file_is_not_copied(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "bester.toml").write_text('[store]\nurl = "sqlite:."\n')
    status, message = refused(capsys, "backup", "copy")
    assert (status, message.partition(": ")[2]) == (2, "is no file; see what [server] data_dir and [store] url name")


def test_unreadable_file_is_not_reported_as_a_port() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "some/file")
    assert describe(denied) == (
        "some/file: Permission denied; use a path that is yours, or run this as the user whose it is",
        1,
    )
    assert "ports below 1024" in describe(PermissionError(errno.EACCES, "Permission denied"))[0]


async def test_server_goes_on_during_a_backup_and_its_copy_serves(directory: Path) -> None:
    add_user(directory / "data", "tim", "tom")
    toml = '[server]\ndata_dir = "{}"\n[native]\ntcp4 = "127.0.0.1:0"\n'
    toml += '[handlers.chat]\napp = "bester.handlers.stock.chat:app"\n'

    async def shell(*arguments: str) -> str:
        process = await Process.start(BESTER, *arguments, cwd=directory, env={"BESTER_PASSWORD": "secret"})
        assert await process.process.wait() == 0, process.lines
        await process.end()
        return "\n".join(process.lines)

    server = await LiveServer.start(directory, toml.format("data"))
    try:
        for text in ("before", "after"):
            data = f'{{"to":["tom"],"text":"{text}"}}'
            assert "queued" in await shell("send", "--to", server.address, "--user", "tim", "chat", data)
            if text == "before":
                assert "copy/store.db" in await shell("backup", "copy")
    finally:
        await server.stop()
    server = await LiveServer.start(directory, toml.format("copy"))
    try:
        line = await shell("listen", "--to", server.address, "--user", "tom", "--count", "1")
        assert '"before"' in line and "redelivered" in line, "the original may have delivered it since"
    finally:
        await server.stop()
    assert names_in(directory / "copy") == ["tim", "tom"]
    assert waiting_in(directory / "copy/store.db") == 0
    assert waiting_in(directory / "data/store.db") == 2


async def test_another_server_gets_what_a_server_sends_that_was_restored_twice_from_one_copy() -> None:
    """That server knows the numbers of the first time: it took the messages of the second time for repeats."""
    async with pair("post", "s2", "s1", code=POST) as servers, asyncio.timeout(60.0):
        g = await servers.seat("s2", "g")
        home = servers.directory / "s1"
        copying = await Process.start(BESTER, "backup", "copy", cwd=home)
        assert await copying.process.wait() == 0, copying.lines
        await copying.end()
        for text in ("first", "second"):
            await servers.kill("s1")
            shutil.rmtree(home / "data")
            shutil.copytree(home / "copy", home / "data")
            server = await servers.start("s1")
            await server.processes[0].says("server-reached")
            t = await servers.seat("s1", "t")
            await t.good("post", text)
            assert await g.gets(lambda _: True) == text
