"""Accounts on disk: who is let in, who is not, and what another process changes meanwhile."""

import asyncio
import os
import re
import sqlite3
import stat
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.broker import data_dir
from bester.broker.accounts import BUSY_S, PASSWORD_LIMIT_BYTES, WAITING_LIMIT, Accounts, OpenAccounts
from bester.broker.data_dir import Claim, prepare
from bester.broker.lockout import FAILURES, FIRST_WAIT_S
from bester.broker.wire.codes import BesterError, ConfigError

HERE = "192.0.2.7"


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-") as name:
        yield Path(name) / "data"


@pytest.fixture
def accounts(directory: Path) -> Iterator[Accounts]:
    opened = Accounts(directory)
    opened.add("tim", "secret")
    yield opened
    opened.close()


async def test_the_right_password_is_let_in_and_nothing_else(accounts: Accounts) -> None:
    assert await accounts.verify("tim", "secret", HERE, 0.0) is None
    for user, password in (("tim", "Secret"), ("tom", "secret"), ("tim", "secret ")):
        assert await accounts.verify(user, password, "", 0.0) == "authentication-failed"


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("", "x"),
        ("tim", ""),
        ("t\n", "x"),
        ("\ud800", "x"),
        ("tim", "\ud800"),
        ("tim", "x" * (PASSWORD_LIMIT_BYTES + 1)),
    ],
)
async def test_what_is_no_login_is_refused_and_not_counted(accounts: Accounts, user: str, password: str) -> None:
    for _ in range(FAILURES * 2):
        assert await accounts.verify(user, password, HERE, 0.0) == "authentication-failed"
    assert await accounts.verify("tim", "secret", HERE, 0.0) is None


async def test_wrong_passwords_slow_the_account_down_from_everywhere(accounts: Accounts) -> None:
    for _ in range(FAILURES):
        assert await accounts.verify("tim", "wrong", "", 10.0) == "authentication-failed"
    assert await accounts.verify("tim", "secret", HERE, 10.0) == "overloaded"
    assert await accounts.verify("tim", "secret", HERE, 10.0 + FIRST_WAIT_S) is None


async def test_wrong_passwords_slow_the_address_down_for_everybody_there(accounts: Accounts) -> None:
    accounts.add("ann", "pass")
    for number in range(FAILURES):
        await accounts.verify(f"nobody{number}", "wrong", HERE, 10.0)
    assert await accounts.verify("ann", "pass", HERE, 10.0) == "overloaded"
    assert await accounts.verify("ann", "pass", "192.0.2.8", 10.0) is None


async def test_a_crowd_of_guesses_at_once_gets_no_more_than_its_share(accounts: Accounts) -> None:
    answers = await asyncio.gather(*(accounts.verify("tim", f"guess{i}", "", 1.0) for i in range(40)))
    assert FAILURES <= answers.count("authentication-failed") <= FAILURES + 1
    assert answers.count("overloaded") == 40 - answers.count("authentication-failed")


async def test_a_crowd_of_good_logins_is_let_in_and_the_loop_stays_free(accounts: Accounts) -> None:
    loop = asyncio.get_running_loop()
    logins = asyncio.gather(*(accounts.verify("tim", "secret", HERE, 1.0) for _ in range(20)))
    turns = 0
    begun = loop.time()
    while not logins.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert await logins == [None] * 20
    assert turns > (loop.time() - begun) / 0.05  # no turn held the loop for the time of a check


@pytest.mark.parametrize("what", ["remove", "passwd"])
async def test_an_account_changed_while_its_password_is_checked_is_not_let_in(accounts: Accounts, what: str) -> None:
    login = asyncio.ensure_future(accounts.verify("tim", "secret", HERE, 1.0))
    await asyncio.sleep(0)  # the hash was read, a thread is at it
    if what == "remove":
        accounts.remove("tim")
    else:
        accounts.passwd("tim", "another")
    assert await login == "authentication-failed"


async def test_too_many_waiting_are_told_so(accounts: Accounts) -> None:
    checks = [asyncio.ensure_future(accounts.verify(f"u{i}", "x", "", 1.0)) for i in range(WAITING_LIMIT)]
    await asyncio.sleep(0)
    assert await accounts.verify("tim", "secret", HERE, 1.0) == "overloaded"
    for check in checks[4:]:
        check.cancel()
    await asyncio.gather(*checks, return_exceptions=True)
    assert await accounts.verify("tim", "secret", HERE, 1.0) is None


async def test_an_unknown_name_takes_as_long_as_a_wrong_password(accounts: Accounts) -> None:
    async def cost_s(user: str, turn: int) -> float:
        begun = time.perf_counter()
        await accounts.verify(user, "wrong", "", turn * 1000.0)
        return time.perf_counter() - begun

    known, unknown = [], []
    for turn in range(7):
        known.append(await cost_s("tim", turn))
        unknown.append(await cost_s("tom", turn))
    assert 0.4 < statistics.median(unknown) / statistics.median(known) < 2.5


async def test_another_process_changes_accounts_under_a_running_server(accounts: Accounts, directory: Path) -> None:
    def elsewhere(call: str) -> None:
        program = f"from bester.broker.accounts import Accounts; Accounts(Path({str(directory)!r})).{call}"
        subprocess.run([sys.executable, "-c", f"from pathlib import Path; {program}"], check=True)

    assert not accounts.exists("ann")
    elsewhere("add('ann', 'one')")
    assert accounts.exists("ann")
    assert await accounts.verify("ann", "one", HERE, 0.0) is None
    elsewhere("passwd('ann', 'two')")
    assert await accounts.verify("ann", "one", HERE, 0.0) == "authentication-failed"
    assert await accounts.verify("ann", "two", HERE, 0.0) is None
    elsewhere("remove('ann')")
    assert not accounts.exists("ann")
    assert await accounts.verify("ann", "two", HERE, 0.0) == "authentication-failed"


def test_a_removal_stays_written_down_until_it_is_struck_off(accounts: Accounts, directory: Path) -> None:
    with closing(Accounts(directory)) as other:
        for name in ("ann", "bob"):
            other.add(name, "x")
        assert other.removed() == set()
        accounts.changed()
        for name in ("ann", "bob"):
            other.remove(name)
        with pytest.raises(BesterError, match="no user 'ann'"):
            other.remove("ann")
        other.add("bob", "y")  # does not undo it
        other.remove("bob")
        other.add("bob", "z")
    assert accounts.changed()
    assert accounts.removed() == {"ann", "bob"}
    assert accounts.strike_off({"bob", "nobody"})
    assert accounts.removed() == {"ann"}
    assert [account.name for account in accounts.list()] == ["bob", "tim"]


def test_a_removal_is_written_down_with_the_account_gone_or_not_at_all(accounts: Accounts, directory: Path) -> None:
    with closing(sqlite3.connect(directory / "accounts.db")) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON removed BEGIN SELECT RAISE(ABORT, 'no room'); END")
        with pytest.raises(BesterError, match="no room"):
            accounts.remove("tim")
        assert accounts.exists("tim")
        db.execute("DROP TRIGGER full")
    accounts.remove("tim")
    assert (accounts.exists("tim"), accounts.removed()) == (False, {"tim"})


def test_striking_off_waits_for_nobody(accounts: Accounts, directory: Path) -> None:
    accounts.remove("tim")
    with closing(sqlite3.connect(directory / "accounts.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        begun_s = time.monotonic()
        assert not accounts.strike_off({"tim"})
        assert time.monotonic() - begun_s < BUSY_S / 2
    assert accounts.strike_off({"tim"})
    assert accounts.removed() == set()


def test_an_older_database_learns_of_removals(directory: Path) -> None:
    prepare(directory)
    with closing(sqlite3.connect(directory / "accounts.db")) as db, db:
        db.execute("CREATE TABLE account (name TEXT PRIMARY KEY, hash TEXT NOT NULL, created_s INTEGER NOT NULL)")
        db.execute("INSERT INTO account VALUES ('tim', 'x', 1)")
    with closing(Accounts(directory)) as accounts:
        assert accounts.removed() == set()
        accounts.remove("tim")
        assert accounts.removed() == {"tim"}


def test_removals_that_cannot_be_read_are_asked_for_again(accounts: Accounts, directory: Path) -> None:
    accounts.changed()
    with closing(sqlite3.connect(directory / "accounts.db")) as db:
        db.execute("ALTER TABLE removed RENAME TO elsewhere")
        assert (accounts.changed(), accounts.removed(), accounts.changed()) == (True, set(), True)
        db.execute("ALTER TABLE elsewhere RENAME TO removed")


def test_what_cannot_be_changed_is_an_error_with_a_remedy(accounts: Accounts) -> None:
    mistakes: list[tuple[Callable[[], None], str]] = [
        (lambda: accounts.add("tim", "x"), "there is a user tim already"),
        (lambda: accounts.add("", "x"), "at least one character"),
        (lambda: accounts.add("a" * 129, "x"), "128 characters at most"),
        (lambda: accounts.add("ann", ""), "at least one character"),
        (lambda: accounts.passwd("ann", "x"), "`bester user list` shows them"),
        (lambda: accounts.remove("ann"), "`bester user list` shows them"),
        (lambda: accounts.remove("\ud800"), "text that UTF-8 can write"),
    ]
    for call, said in mistakes:
        with pytest.raises(BesterError, match=said):
            call()
    assert [account.name for account in accounts.list()] == ["tim"]
    assert not accounts.exists("\ud800")


def test_files_are_private_and_hold_no_password(accounts: Accounts, directory: Path) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert b"secret" not in file.read_bytes()
    with sqlite3.connect(directory / "accounts.db") as db:
        ((stored,),) = db.execute("SELECT hash FROM account")
    db.close()
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_a_file_that_is_no_database_is_one_line(directory: Path) -> None:
    prepare(directory)
    (directory / "accounts.db").write_bytes(b"something else " * 100)
    with pytest.raises(BesterError, match="see that the file is yours") as caught:
        Accounts(directory)
    assert str(caught.value).isprintable()


async def test_a_database_that_breaks_lets_nobody_in_and_calls_nobody_unknown(
    accounts: Accounts, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite3.connect(directory / "accounts.db") as db:
        db.execute("DROP TABLE account")
    db.close()
    assert await accounts.verify("tim", "secret", HERE, 0.0) == "overloaded"
    assert accounts.exists("tom")
    assert "no such table" in caplog.text
    assert "secret" not in caplog.text


async def test_open_accounts_let_anybody_in_who_gives_both() -> None:
    accounts = OpenAccounts()
    assert await accounts.verify("who", "ever", HERE, 0.0) is None
    assert await accounts.verify("", "x", HERE, 0.0) == "authentication-failed"
    assert await accounts.verify("x", "", HERE, 0.0) == "authentication-failed"
    assert not accounts.exists("who")
    assert accounts.removed() == set()


def test_one_server_at_a_time(directory: Path) -> None:
    claim = Claim(directory)
    with pytest.raises(BesterError, match="serves from it; stop that"):
        Claim(directory)
    claim.close()
    Claim(directory).close()


def test_a_directory_of_others_is_refused_and_ours_is_tightened(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    prepare(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    directory.chmod(0o755)
    (directory / "letter.txt").write_text("not Bester's")
    with pytest.raises(ConfigError, match="chmod 700 it"):
        prepare(directory)
    with pytest.raises(ConfigError, match="is no directory"):
        prepare(directory / "letter.txt")


@pytest.mark.parametrize("path", ["/etc", "/usr", "/var/lib", "/tmp", "/"])
def test_nobody_is_told_to_close_a_directory_of_the_system(path: str) -> None:
    mode = Path(path).stat().st_mode
    with pytest.raises(ConfigError, match="name a directory of Bester's own") as refused:
        prepare(Path(path))
    assert "chmod" not in refused.value.text
    assert Path(path).stat().st_mode == mode


def test_nobody_is_told_to_close_somebody_elses_or_the_home_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(mode=0o755)
    (directory / "letter.txt").write_text("not Bester's")
    with monkeypatch.context() as at_home:
        at_home.setenv("HOME", str(directory))
        with pytest.raises(ConfigError, match="name a directory of Bester's own"):
            prepare(directory)
    monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="name a directory of Bester's own"):
        prepare(directory)


def test_an_empty_directory_of_the_system_is_left_as_it_is(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(mode=0o755)
    monkeypatch.setattr(data_dir, "SYSTEM", re.compile(re.escape(str(directory))))
    with pytest.raises(ConfigError, match="name a directory of Bester's own"):
        prepare(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


async def test_whoever_starts_while_another_ends_waits_for_it(directory: Path) -> None:
    await data_dir.until_ended(directory)  # there is nobody, and no directory
    claim = Claim(directory)
    await data_dir.until_ended(directory)  # who does not end is not waited for
    for _ in range(2):
        data_dir.about_to_end()
        with pytest.raises(BesterError, match=f"process {os.getpid()} serves from it"):
            Claim(directory)
    waiting = asyncio.create_task(data_dir.until_ended(directory))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    claim.close()
    await asyncio.wait_for(waiting, 20.0)
    claim = Claim(directory)
    await data_dir.until_ended(directory)  # the mark is gone with the one who made it
    claim.close()
    (directory / data_dir.LOCK).write_bytes(b"4711\nending\n")  # of one that was killed while it ended
    await data_dir.until_ended(directory)
    Claim(directory).close()
