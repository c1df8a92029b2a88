"""The broker's shell and its store: each report follows its write to disk, and the disk outlives the broker."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from bester.broker.config import Config, FabricConfig, NativeConfig, ServerConfig, StoreConfig
from bester.broker.core.settings import Budget, Settings
from bester.broker.server import Broker
from bester.broker.service import serving
from bester.broker.store.memory import MemoryStore
from bester.broker.store_requests import Bury, Committed, End, Enqueue, MarkSent, Write
from bester.broker.users import OpenAccounts
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import (
    Close,
    Confirm,
    Deliver,
    Hello,
    LoggedIn,
    Login,
    Message,
    Open,
    Report,
    Submit,
)
from tests.live import DEADLINE_S, RawHandler, raw_handler, short_directory
from tests.plain_user import plain_user

ALICE, BOB = 1, 2


class Accounts(OpenAccounts):
    """Accounts of all names but those in `gone`. `left` are removals that are not struck off; `locked` makes striking
    off fail.
    """

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.left: set[str] = set()
        self.locked = False
        self._seen: list[set[str]] = []

    def exists(self, name: str) -> bool:
        return name not in self.gone

    def changed(self) -> bool:
        before, self._seen = self._seen, [set(self.gone), set(self.left)]
        return before != self._seen

    def removed(self) -> set[str]:
        return set(self.left)

    def strike_off(self, names: Collection[str]) -> bool:
        if not self.locked:
            self.left.difference_update(names)
        return not self.locked


class Recorded(MemoryStore):
    """A store that records, in `story`, each kind that was committed, a group at a time."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.story: list[Any] = []

    def begin(self, writes: Sequence[Write]) -> Callable[[], Committed]:
        end = super().begin(writes)

        def commit() -> Committed:
            """Record the group once it is committed."""
            result = end()
            self.story.append([type(write) for write in writes] if result.ok else [result.why])
            return result

        return commit


class Bridge:
    """A bridge in the broker's process: sends a test's messages, and appends those received to the same story."""

    handler: RawHandler

    def __init__(self, broker: Broker, story: list[Any]) -> None:
        self.inbox: list[Message] = []
        self._story = story
        self._news = asyncio.Event()
        self._say = broker.attach(self._receive)
        self.say(Hello(1, "bridge", "b", {}))

    def say(self, *messages: Message) -> None:
        self._say(messages)

    def _receive(self, messages: list[Message]) -> None:
        self._story += messages
        self.inbox += messages
        self._news.set()

    async def hears(self, kind: type[Any], count: int = 1) -> list[Any]:
        """Wait for so many messages of a kind; return them, each once."""
        return [await self._hear(kind) for _ in range(count)]

    async def _hear(self, kind: type[Any]) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for message in self.inbox:
                    if type(message) is kind:
                        self.inbox.remove(message)
                        return message
                self._news.clear()
                await self._news.wait()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def served(
    store: MemoryStore, budget: Budget | None = None, accounts: Accounts | None = None, *, answers: bool = True
) -> AsyncIterator[tuple[Broker, Bridge]]:
    """A broker with a bridge beside it and a handler of `to`, which sends each body to bob."""
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        settings = Settings("s1", budgets={"to": budget} if budget else {})
        async with Broker(settings, (endpoint,), accounts or Accounts(), store) as broker:
            bridge = Bridge(broker, store.story if isinstance(store, Recorded) else [])
            async with raw_handler(endpoint, "to", credit=64) as handler:
                bridge.handler = handler
                answering = asyncio.create_task(
                    handler.serve(1_000_000 if answers else 0, lambda request: [["sendClients", ["bob"], request[3]]])
                )
                bridge.say(Open(ALICE, "alice"))
                try:
                    yield broker, bridge
                finally:
                    answering.cancel()
                    await asyncio.gather(answering, return_exceptions=True)


def submit(token: int) -> Submit:
    return Submit(token, ALICE, "to", b"%d" % token)


def kinds(story: Sequence[Any]) -> list[list[Any]]:
    """Return the kinds in a story: a committed group as all of its kinds, a message as one."""
    return [each if isinstance(each, list) else [type(each)] for each in story]


async def test_queued_is_reported_after_the_write() -> None:
    store = Recorded()
    async with served(store) as (_, bridge):
        bridge.say(submit(7))
        (report,) = await bridge.hears(Report)
        assert (report.token, report.status, report.recipients) == (7, 0, {"bob": "queued"})
        story = kinds(store.story)
        keep = next(group for group in story if Enqueue in group)
        assert story.index(keep) < story.index([Report])


async def test_dead_letter_is_on_disk_before_its_report() -> None:
    store = Recorded()
    async with served(store, Budget(30.0, attempts=1), answers=False) as (_, bridge), asyncio.timeout(DEADLINE_S):
        bridge.say(submit(7))
        await bridge.handler.hear(10)
        await bridge.handler.say([1, 1, "operator", "no handler any more", {}])
        (report,) = await bridge.hears(Report)
        assert report.reason == "handler-lost"
        story = kinds(store.story)
        assert story.index(next(group for group in story if Bury in group)) < story.index([Report])


async def test_a_turn_of_the_loop_is_one_group() -> None:
    store = Recorded()
    async with served(store) as (_, bridge):
        bridge.say(*(submit(number) for number in range(50)))
        await bridge.hears(Report, 50)
        groups = [group for group in kinds(store.story) if Enqueue in group]
        assert sum(group.count(Enqueue) for group in groups) == 50
        assert len(groups) < 25  # a handler's replies come in batches


async def test_queued_message_is_delivered_in_the_next_life_and_ends_within_a_tick() -> None:
    store = Recorded()
    async with served(store) as (_, bridge):
        for number in (1, 2, 3):
            bridge.say(submit(number))
            await bridge.hears(Report)
    again = store.copy()
    async with served(again) as (_, bridge):
        bridge.say(Open(BOB, "bob"))
        delivers = await bridge.hears(Deliver, 3)
        assert [deliver.body for deliver in delivers] == [b"1", b"2", b"3"]
        assert kinds(again.story).index([MarkSent]) < kinds(again.story).index([Deliver])
        bridge.say(Confirm(delivers[-1].serial))
        await until(lambda: any(End in group for group in kinds(again.story)))
    assert again.copy().open().queues == {}


async def test_last_writes_of_the_core_are_committed() -> None:
    store = Recorded()
    async with served(store) as (_, bridge):
        bridge.say(submit(1))
        await bridge.hears(Report)
        bridge.say(Open(BOB, "bob"))
        (deliver,) = await bridge.hears(Deliver)
        bridge.say(Confirm(deliver.serial))
    assert store.copy().open().queues == {}


async def test_full_store_is_reported_and_logged_once_and_other_messages_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "bester.broker")
    store = Recorded()
    async with served(store) as (_, bridge):
        store.full = True
        for number in range(3):
            bridge.say(submit(number))
            (report,) = await bridge.hears(Report)
            assert (report.status, report.reason) == (1, "storage-full")
        bridge.say(Open(BOB, "bob"))
        bridge.say(submit(10))
        (deliver,) = await bridge.hears(Deliver)
        bridge.say(Confirm(deliver.serial), Close(BOB))
        assert deliver.body == b"10"
        store.full = False
        number = 100

        async def kept() -> bool:
            nonlocal number
            number += 1
            bridge.say(submit(number))
            (report,) = await bridge.hears(Report)
            return bool(report.recipients == {"bob": "queued"})

        async with asyncio.timeout(DEADLINE_S):
            while not await kept():
                await asyncio.sleep(0.05)
    assert len([line for line in caplog.messages if line.startswith("storage-full")]) == 1


async def test_queued_messages_of_a_removed_account_end() -> None:
    store, accounts = Recorded(), Accounts()
    async with served(store, accounts=accounts) as (broker, bridge):
        bridge.say(submit(1))
        await bridge.hears(Report)
        assert broker.router.has("bob")
        accounts.gone.add("bob")
        await until(lambda: any(End in group for group in kinds(store.story)))
    assert store.copy().open().queues == {}


async def test_removal_is_struck_off_when_the_end_of_the_mailbox_is_on_disk() -> None:
    store, accounts = Recorded(), Accounts()
    async with served(store, accounts=accounts) as (_, bridge):
        bridge.say(submit(1))
        await bridge.hears(Report)
        store.broken = True
        accounts.left.add("bob")  # and bob has a new account already
        story = len(store.story)
        await until(lambda: len(store.story) > story + 3)
        assert accounts.left == {"bob"}
        store.broken = False
        await until(lambda: not accounts.left)
    assert store.copy().open().queues == {}


async def test_until_a_removal_is_struck_off_the_name_has_no_mailbox_and_no_login() -> None:
    store, accounts = Recorded(), Accounts()
    async with served(store, accounts=accounts) as (_, bridge):
        accounts.locked = True
        accounts.left.add("bob")
        bridge.say(submit(1), Login(BOB, "bob", "secret", ""))
        (report,) = await bridge.hears(Report)
        assert report.recipients == {"bob": "failed:unknown-user"}
        assert await bridge.hears(LoggedIn) == [LoggedIn(BOB, 1, "overloaded")]
        accounts.locked = False
        await until(lambda: not accounts.left)
        bridge.say(Login(BOB, "bob", "secret", ""))
        assert await bridge.hears(LoggedIn) == [LoggedIn(BOB, 0, None, account="")]


async def test_removal_is_not_struck_off_while_the_account_has_a_session() -> None:
    store, accounts = Recorded(), Accounts()
    async with served(store, accounts=accounts) as (broker, bridge):
        bridge.say(Open(BOB, "bob"))
        await until(lambda: broker.router.has("bob"))
        accounts.left.add("bob")
        assert await bridge.hears(Close, 2) == [Close(BOB), Close(BOB)]  # with each tick anew
        assert accounts.left == {"bob"}
        bridge.say(Close(BOB))
        await until(lambda: not accounts.left)


# --- opening ---


def config(directory: Path, **store: Any) -> Config:
    listen = (f"ipc://{directory}/data/f",)
    return Config(
        directory, ServerConfig("s1", directory / "data"), NativeConfig(), FabricConfig(listen, listen), auth="open",
        store=StoreConfig(**store),
    )  # fmt: skip


async def test_store_is_the_only_file_left_in_the_data_directory() -> None:
    async with short_directory() as directory:
        for _ in range(2):
            async with serving(config(directory, path=directory / "data" / "store.db")):
                assert (directory / "data" / "store.db").exists()
            assert sorted(each.name for each in (directory / "data").iterdir()) == [
                "server.key",
                "server.lock",
                "store.db",
            ]


async def test_store_outside_the_data_directory_is_locked_too() -> None:
    async with short_directory() as directory:
        (directory / "else").mkdir()
        there = directory / "else" / "kept.db"
        async with serving(config(directory, path=there)):
            other = config(directory / "second", path=there)
            with pytest.raises(BesterError, match=r"else/kept\.db: process \d+ serves from it; .* \[store\] url"):
                async with serving(other):
                    pass
        async with serving(other):
            pass


async def test_store_of_another_server_is_refused() -> None:
    async with short_directory() as directory:
        first = config(directory, path=directory / "data" / "store.db")
        (directory / "link").symlink_to(directory / "data")
        second = config(directory / "second", path=directory / "link" / "store.db")
        for one, other in ((first, second), (second, first)):
            async with serving(one):
                with pytest.raises(BesterError, match=r"process \d+ serves from it; "):
                    async with serving(other):
                        pass


async def test_unusable_store_is_one_line_and_releases_locks_and_sockets() -> None:
    async with short_directory() as directory:
        path = directory / "data" / "store.db"
        for broken in (True, False):
            (directory / "data").mkdir(mode=0o700, exist_ok=True)
            if broken:
                path.write_bytes(b"no database" * 1000)
                with pytest.raises(BesterError, match=r"store\.db: .*; .*"):
                    async with serving(config(directory, path=path)):
                        pass
            else:
                path.unlink()
                async with serving(config(directory, path=path)):
                    pass


def text_file(path: Path) -> None:
    path.write_text("root:x:0:0:root:/root:/bin/sh\n" * 10)


def database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE cat (name)")


@pytest.mark.parametrize("make", [Path.mkdir, text_file, database])
async def test_file_named_by_mistake_stays_unchanged(make: Callable[[Path], None]) -> None:
    async with short_directory() as directory:
        there = directory / "else" / "thing"
        there.parent.mkdir()
        make(there)
        there.chmod(0o755)
        before = there.read_bytes() if there.is_file() else b""
        with pytest.raises(BesterError, match=r"else/thing: .*name (a|another) file"):
            async with serving(config(directory, path=there)):
                pass
        assert stat.S_IMODE(there.stat().st_mode) == 0o755
        assert before == (there.read_bytes() if there.is_file() else b"")
        assert [each.name for each in there.parent.iterdir()] == ["thing"]


async def test_file_that_is_no_lock_is_refused() -> None:
    async with short_directory() as directory:
        (directory / "else").mkdir()
        theirs = directory / "else" / "cargo.lock"
        theirs.write_text("version = 3\n")
        with pytest.raises(
            BesterError, match=r"else/cargo\.lock: a foreign file stands .*; name another \[store\] url"
        ):
            async with serving(config(directory, path=directory / "else" / "cargo")):
                pass
        assert theirs.read_text() == "version = 3\n"
        assert [each.name for each in theirs.parent.iterdir()] == ["cargo.lock"]


async def test_store_in_a_missing_directory_names_the_directory() -> None:
    async with short_directory() as directory:
        with pytest.raises(BesterError) as caught:
            async with serving(config(directory, path=directory / "nowhere" / "kept.db")):
                pass
        assert caught.value.text == f"{directory}/nowhere: no such directory; make it, or name another [store] url"
        (directory / "closed").mkdir(mode=0o555)
        theirs = (directory, directory / "data", directory / "data" / "server.lock", directory / "closed")
        with plain_user(*theirs), pytest.raises(BesterError) as caught:
            async with serving(config(directory, path=directory / "closed" / "kept.db")):
                pass
        text = "Permission denied; name a place of your own as [store] url"
        assert caught.value.text == f"{directory}/closed: {text}"
