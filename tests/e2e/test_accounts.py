"""Accounts on disk: admitted and refused logins, and changes by another process."""

import asyncio
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import argon2
import pytest

from bester.broker import accounts_file, data_dir
from bester.broker.accounts import Accounts
from bester.broker.accounts_file import BUSY_S
from bester.broker.check_queue import MAX_WAITING
from bester.broker.core.settings import Settings
from bester.broker.data_dir import Claim, prepare
from bester.broker.lockout import BUDGET, FAILURES, FIRST_WAIT_S
from bester.broker.removed_accounts import RemovedAccounts
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import PASSWORD_LIMIT_BYTES, OpenAccounts
from bester.broker.verifying import LET_IN, OVERLOADED, VERIFIERS, WRONG, Verdict
from bester.broker.wire.codes import BesterError, ConfigError
from bester.broker.wire.messages import VERSION, Hello, LoggedIn, Login, Message
from tests.full_directory import FullDirectory

HERE = "192.0.2.7"
NO_MEMORY = argon2.low_level.error_to_str(-22)


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-") as name:
        yield Path(name) / "data"


class Clock:
    """Clock that advances by hand, in seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(directory: Path, clock: Clock) -> Iterator[Accounts]:
    opened = Accounts(directory, clock)
    opened.add("tim", "secret")
    yield opened
    opened.close()


async def test_only_the_right_password_is_admitted(accounts: Accounts) -> None:
    assert await accounts.verify("tim", "secret", HERE) == LET_IN
    for user, password in (("tim", "Secret"), ("tom", "secret"), ("tim", "secret ")):
        assert await accounts.verify(user, password, "") == WRONG


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
async def test_impossible_login_is_refused_and_not_counted(accounts: Accounts, user: str, password: str) -> None:
    for _ in range(FAILURES * 2):
        assert await accounts.verify(user, password, HERE) == WRONG
    assert await accounts.verify("tim", "secret", HERE) == LET_IN


async def test_wrong_passwords_delay_one_user_at_one_address(accounts: Accounts, clock: Clock) -> None:
    accounts.add("ann", "pass")
    for number in range(FAILURES):
        assert await accounts.verify("tim", f"wrong {number}", HERE) == WRONG
    assert await accounts.verify("tim", "secret", HERE) == Verdict("try-later", FIRST_WAIT_S)
    assert await accounts.verify("tim", "secret", "192.0.2.8") == LET_IN
    assert await accounts.verify("ann", "pass", HERE) == LET_IN
    clock.now += FIRST_WAIT_S
    assert await accounts.verify("tim", "secret", HERE) == LET_IN


async def test_old_password_is_refused_until_right_again(accounts: Accounts) -> None:
    for _ in range(20):
        assert await accounts.verify("tim", "old", HERE) == WRONG
    assert await accounts.verify("tim", "secret", HERE) == LET_IN
    for _ in range(20):
        assert await accounts.verify("tim", "old", HERE) == WRONG
    accounts.passwd("tim", "old")
    assert await accounts.verify("tim", "old", HERE) == LET_IN
    assert await accounts.verify("tim", "secret", HERE) == WRONG


async def test_name_that_becomes_an_account_is_admitted(accounts: Accounts) -> None:
    assert await accounts.verify("ann", "pass", HERE) == WRONG
    accounts.add("ann", "pass")
    assert await accounts.verify("ann", "pass", HERE) == LET_IN


@pytest.mark.parametrize("name", ["tim", "nobody"])
async def test_concurrent_guesses_stay_within_the_budget(accounts: Accounts, name: str) -> None:
    answers = await asyncio.gather(*(accounts.verify(name, f"guess{i}", "") for i in range(40)))
    assert FAILURES <= answers.count(WRONG) <= FAILURES + VERIFIERS - 1
    assert {answer.reason for answer in answers} == {"authentication-failed", "try-later"}


async def test_guesses_from_many_addresses_are_deferred_and_the_right_password_is_admitted(
    accounts: Accounts, clock: Clock
) -> None:
    guesses = [accounts.verify("tim", f"guess {i}", f"10.0.0.{i}") for i in range(BUDGET + 30)]
    answers = await asyncio.gather(*guesses)
    assert BUDGET <= answers.count(WRONG) < BUDGET + VERIFIERS
    assert answers.count(Verdict("try-later", 1.0)) == BUDGET + 30 - answers.count(WRONG)
    assert await accounts.verify("tim", "secret", HERE) == Verdict("try-later", 1.0)
    clock.now += 1.0
    assert await accounts.verify("tim", "secret", HERE) == LET_IN
    assert await accounts.verify("tim", "secret", HERE) == LET_IN  # from the next question on


async def test_many_good_logins_are_admitted_without_blocking_the_loop(accounts: Accounts) -> None:
    loop = asyncio.get_running_loop()
    logins = asyncio.gather(*(accounts.verify("tim", "secret", HERE) for _ in range(20)))
    turns = 0
    begun = loop.time()
    while not logins.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert await logins == [LET_IN] * 20
    assert turns > (loop.time() - begun) / 0.05  # no turn held the loop for the time of a check


@pytest.mark.parametrize("what", ["remove", "passwd"])
async def test_account_changed_during_a_check_is_not_admitted(accounts: Accounts, what: str) -> None:
    login = asyncio.ensure_future(accounts.verify("tim", "secret", HERE))
    await asyncio.sleep(0)  # the hash was read, and a thread checks the password
    if what == "remove":
        accounts.remove("tim")
    else:
        accounts.passwd("tim", "another")
    assert await login == WRONG


async def test_too_many_waiting_logins_are_overloaded(accounts: Accounts) -> None:
    checks = [asyncio.ensure_future(accounts.verify(f"u{i}", "x", HERE)) for i in range(MAX_WAITING + VERIFIERS)]
    await asyncio.sleep(0)
    assert await accounts.verify("tim", "secret", HERE) == OVERLOADED
    elsewhere = asyncio.ensure_future(accounts.verify("tim", "secret", "192.0.2.8"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [check.result() for check in checks if check.done()] == [OVERLOADED]  # displaced by this login
    for check in checks[4:]:
        check.cancel()
    assert await elsewhere == LET_IN
    await asyncio.gather(*checks, return_exceptions=True)
    assert await accounts.verify("tim", "secret", HERE) == LET_IN


@pytest.mark.parametrize("kept", [0, 1])
async def test_without_a_thread_a_login_is_deferred_and_not_counted(
    accounts: Accounts, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(kept):  # the thread that is there already
        assert await accounts.verify("tim", "secret", HERE) == LET_IN

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", start)
        for turn in range(FAILURES):
            verdicts = await asyncio.gather(*(accounts.verify("tim", f"no {turn} {n}", HERE) for n in range(VERIFIERS)))
            assert verdicts.count(OVERLOADED) == VERIFIERS - kept
            assert await accounts.verify("tim", "secret", HERE) == (LET_IN if kept else OVERLOADED)
    assert await asyncio.gather(*(accounts.verify("tim", "secret", HERE) for _ in range(4))) == [LET_IN] * 4


@pytest.mark.parametrize("error", [MemoryError("no room"), argon2.exceptions.VerificationError(NO_MEMORY)])
async def test_without_memory_a_right_password_is_deferred_and_not_called_wrong(
    accounts: Accounts, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(hasher: object, hash_: str, password: str) -> bool:
        raise error

    with monkeypatch.context() as context:
        context.setattr(argon2.PasswordHasher, "verify", verify)
        for _ in range(FAILURES):
            assert await accounts.verify("tim", "secret", HERE) == OVERLOADED
    assert await accounts.verify("tim", "secret", HERE) == LET_IN


async def test_a_login_that_cannot_be_checked_does_not_end_the_server(directory: Path) -> None:
    class Broken(OpenAccounts):
        async def verify(self, user: str, password: str, address: str) -> Verdict:
            if user == "eve":
                raise RuntimeError("no such luck")
            return await super().verify(user, password, address)

    prepare(directory)
    endpoint = f"ipc://{directory}/f.sock"
    async with asyncio.timeout(20):
        async with Broker(Settings("s1", open_accounts=True), (endpoint,), Broken(), MemoryStore()) as broker:
            answers: asyncio.Queue[LoggedIn] = asyncio.Queue()

            def receive(messages: list[Message]) -> None:
                for message in messages:
                    if isinstance(message, LoggedIn):
                        answers.put_nowait(message)

            say = broker.attach(receive)
            say((Hello(VERSION, "bridge", "b", {}), Login(1, "eve", "x", HERE)))
            assert (await answers.get()).reason == "overloaded"
            say((Login(2, "tim", "x", HERE),))
            assert (await answers.get()).reason is None


async def test_unknown_name_takes_as_long_as_a_wrong_password(accounts: Accounts) -> None:
    async def cost_s(user: str, turn: int) -> float:
        begun = time.perf_counter()
        assert await accounts.verify(user, f"wrong {turn}", f"10.0.0.{turn}") == WRONG
        return time.perf_counter() - begun

    known, unknown = [], []
    for turn in range(7):
        known.append(await cost_s("tim", turn))
        unknown.append(await cost_s("tom", turn))
    assert 0.4 < min(unknown) / min(known) < 2.5  # the least of each: a busy machine lengthens most of them


async def test_another_process_changes_accounts_under_a_running_server(accounts: Accounts, directory: Path) -> None:
    def elsewhere(call: str) -> None:
        program = f"from bester.broker.accounts import Accounts; Accounts(Path({str(directory)!r})).{call}"
        subprocess.run([sys.executable, "-c", f"from pathlib import Path; {program}"], check=True)

    assert not accounts.exists("ann")
    elsewhere("add('ann', 'one')")
    assert accounts.exists("ann")
    assert await accounts.verify("ann", "one", HERE) == LET_IN
    elsewhere("passwd('ann', 'two')")
    assert await accounts.verify("ann", "one", HERE) == WRONG
    assert await accounts.verify("ann", "two", HERE) == LET_IN
    elsewhere("remove('ann')")
    assert not accounts.exists("ann")
    assert await accounts.verify("ann", "two", HERE) == WRONG


def test_removal_stays_recorded_until_struck_off(accounts: Accounts, directory: Path) -> None:
    with closing(Accounts(directory)) as other:
        for name in ("ann", "bob"):
            other.add(name, "x")
        assert other.removed() == set()
        accounts.changed()
        for name in ("ann", "bob"):
            other.remove(name)
        with pytest.raises(BesterError, match="no user 'ann'"):
            other.remove("ann")
        other.add("bob", "y")  # changes nothing
        other.remove("bob")
        other.add("bob", "z")
    assert accounts.changed()
    assert accounts.removed() == {"ann", "bob"}
    assert accounts.strike_off({"bob", "nobody"})
    assert accounts.removed() == {"ann"}
    assert [account.name for account in accounts.list()] == ["bob", "tim"]


def test_removal_and_its_record_are_atomic(accounts: Accounts, directory: Path) -> None:
    with closing(sqlite3.connect(directory / "accounts.db")) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON removed BEGIN SELECT RAISE(ABORT, 'no room'); END")
        with pytest.raises(BesterError, match="no room"):
            accounts.remove("tim")
        assert accounts.exists("tim")
        db.execute("DROP TRIGGER full")
    accounts.remove("tim")
    assert (accounts.exists("tim"), accounts.removed()) == (False, {"tim"})


def test_striking_off_waits_for_no_lock(accounts: Accounts, directory: Path) -> None:
    accounts.remove("tim")
    with closing(sqlite3.connect(directory / "accounts.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        begun_s = time.monotonic()
        assert not accounts.strike_off({"tim"})
        assert time.monotonic() - begun_s < BUSY_S / 2
    assert accounts.strike_off({"tim"})
    assert accounts.removed() == set()


@pytest.mark.parametrize("serving", [False, True])
@pytest.mark.parametrize("later", [("removed", "disabled"), ("disabled",), ()])
def test_older_database_gets_the_tables_that_it_lacks(directory: Path, later: tuple[str, ...], serving: bool) -> None:
    prepare(directory)
    with closing(Accounts(directory)) as accounts:
        accounts.add("tim", "secret")
        accounts.add("ann", "secret")
    with closing(sqlite3.connect(directory / "accounts.db")) as db, db:
        for table in later:
            db.execute(f"DROP TABLE {table}")
    with closing(Accounts(directory, serving=serving)) as accounts:
        assert (accounts.removed(), accounts.disabled(["ann", "tim"]), accounts.token("tim") is None) == (
            set(),
            set(),
            False,
        )
        accounts.remove("tim")
        accounts.disable("ann")
        assert (accounts.removed(), accounts.disabled(["ann", "tim"])) == ({"tim"}, {"ann"})


def test_unreadable_removals_are_read_again(accounts: Accounts, directory: Path) -> None:
    accounts.changed()
    with closing(sqlite3.connect(directory / "accounts.db")) as db:
        db.execute("ALTER TABLE removed RENAME TO elsewhere")
        assert (accounts.changed(), accounts.removed(), accounts.changed()) == (True, set(), True)
        db.execute("ALTER TABLE elsewhere RENAME TO removed")


async def test_file_is_looked_through_once_however_often_it_is_opened_again(
    accounts: Accounts, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking holds the loop for up to a second; without room the file is opened again every second."""
    accounts.close()
    full = FullDirectory(monkeypatch)
    monkeypatch.setattr(accounts_file, "LOOK_S", 0.0)
    with closing(Accounts(directory, serving=True)) as served:
        for _ in range(3):
            served.changed()
        assert full.looks == 1
        full.has_room = True
        served.changed()
        assert full.looks == 1
        served.add("ann", "secret")
        assert [each.name for each in served.list()] == ["ann", "tim"]


def test_failed_change_is_an_error_with_a_remedy(accounts: Accounts) -> None:
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


def test_many_names_are_looked_up_at_once(accounts: Accounts, directory: Path) -> None:
    for name in ("ann", "tom"):
        accounts.add(name, "secret")
    odd = ["ann", "no'body", '"', "\\u0041nn", "\ud800", "ann\0", "", "ANN", "tom"]
    assert accounts.existing(odd) == {"ann", "tom"}
    assert accounts.existing([f"nobody{number}" for number in range(10_000)]) == set()
    for names in (["tom"], ["nobody"], []):
        assert accounts.existing(names) == {"tom"}.intersection(names)
    with closing(Accounts(directory)) as other:
        other.remove("tom")
    removed = RemovedAccounts(accounts)
    assert removed.accounts_of(["ann", "tom"]) == {"ann"}
    accounts.add("tom", "another")
    assert removed.accounts_of(["ann", "tom"]) == {"ann"}, "the removal has not ended"


def test_files_are_private_and_hold_no_password(accounts: Accounts, directory: Path) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert b"secret" not in file.read_bytes()
    with sqlite3.connect(directory / "accounts.db") as db:
        ((stored,),) = db.execute("SELECT hash FROM account")
    db.close()
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_file_that_is_no_database_is_refused_in_one_line(directory: Path) -> None:
    prepare(directory)
    (directory / "accounts.db").write_bytes(b"something else " * 100)
    with pytest.raises(BesterError, match="see that the file is yours") as caught:
        Accounts(directory)
    assert str(caught.value).isprintable()


async def test_broken_database_admits_no_user_and_calls_none_unknown(
    accounts: Accounts, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite3.connect(directory / "accounts.db") as db:
        db.execute("DROP TABLE account")
    db.close()
    assert await accounts.verify("tim", "secret", HERE) == OVERLOADED
    assert accounts.exists("tom")
    assert "no such table" in caplog.text
    assert "secret" not in caplog.text


async def test_open_accounts_admit_any_name_with_any_password() -> None:
    accounts = OpenAccounts()
    assert await accounts.verify("who", "ever", HERE) == LET_IN
    assert await accounts.verify("", "x", HERE) == WRONG
    assert await accounts.verify("x", "", HERE) == WRONG
    assert not accounts.exists("who")
    assert accounts.removed() == set()


def test_one_server_at_a_time(directory: Path) -> None:
    claim = Claim(directory)
    with pytest.raises(BesterError, match="serves from it; stop that"):
        Claim(directory)
    claim.close()
    Claim(directory).close()


def test_foreign_directory_is_refused_and_an_own_one_gets_mode_0700(directory: Path) -> None:
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
def test_no_remedy_closes_a_directory_of_the_system(path: str) -> None:
    mode = Path(path).stat().st_mode
    with pytest.raises(ConfigError, match="name a directory of Bester's own") as refused:
        prepare(Path(path))
    assert "chmod" not in refused.value.text
    assert Path(path).stat().st_mode == mode


def test_no_remedy_closes_a_foreign_or_the_home_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir()
    directory.chmod(0o755)  # whatever the umask is
    (directory / "letter.txt").write_text("not Bester's")
    with monkeypatch.context() as at_home:
        at_home.setenv("HOME", str(directory))
        with pytest.raises(ConfigError, match="name a directory of Bester's own"):
            prepare(directory)
    monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="name a directory of Bester's own"):
        prepare(directory)


def test_empty_directory_of_the_system_stays_unchanged(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir()
    directory.chmod(0o755)  # whatever the umask is
    monkeypatch.setattr(data_dir, "SYSTEM", re.compile(re.escape(str(directory))))
    with pytest.raises(ConfigError, match="name a directory of Bester's own"):
        prepare(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


async def test_server_started_during_the_end_of_another_waits(directory: Path) -> None:
    await data_dir.until_ended(directory)  # no account and no directory exists
    claim = Claim(directory)
    await data_dir.until_ended(directory)  # a server that does not end is not waited for
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
    await data_dir.until_ended(directory)  # the mark ends with its process
    claim.close()
    (directory / data_dir.LOCK).write_bytes(b"4711\nending\n")  # the mark of a server that was killed during its end
    await data_dir.until_ended(directory)
    Claim(directory).close()
