"""The broker's shell and what the core has left to later turns of a message to many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from bester.broker import store_driver
from bester.broker.core.settings import Limits, Settings
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.store_requests import Committed, Enqueue, Write
from bester.broker.users import OpenAccounts
from bester.broker.wire.messages import Deliver, Hello, Message, Open, Submit
from tests.live import DEADLINE_S, RawHandler, raw_handler, short_directory

ALICE = 1
AWAY = [f"away{number}" for number in range(1_000)]
HERE = [f"here{number}" for number in range(30)]


class Accounts(OpenAccounts):
    """Accounts of all names."""

    def exists(self, name: str) -> bool:
        return True


class SlowStore(MemoryStore):
    """A store that takes a millisecond for a commit. `count` are the messages that it has got."""

    count = 0

    def begin(self, writes: Sequence[Write]) -> Callable[[], Committed]:
        time.sleep(0.001)
        self.count += sum(type(write) is Enqueue for write in writes)
        return super().begin(writes)


class Town:
    """A broker, with alice and the users of HERE on a bridge beside it, and a handler of `tell`."""

    def __init__(self, broker: Broker, handler: RawHandler, store: SlowStore) -> None:
        self.broker = broker
        self.handler = handler
        self.inbox: list[tuple[Message, int]] = []
        self._store = store
        self._news = asyncio.Event()
        self._say = broker.attach(self._receive)
        sessions = [Open(number, name) for number, name in enumerate(["alice", *HERE], ALICE)]
        self._say([Hello(1, "bridge", "b", {}), *sessions])

    def _receive(self, messages: list[Message]) -> None:
        self.inbox += [(message, self._store.count) for message in messages]
        self._news.set()

    async def tell(self, *parts: Sequence[str]) -> None:
        """Let alice send a message for each part, and the handler reply with one command for all of its users."""
        self._say([Submit(token, ALICE, "tell", b"1") for token in range(len(parts))])
        tokens = [(await self.handler.hear(10))[1] for _ in parts]
        replies = [
            [11, token, 0, [["sendClients", part, b"2"]], None] for token, part in zip(tokens, parts, strict=True)
        ]
        await self.handler.say(*replies)

    async def hears(self, kind: type[Message], count: int) -> list[int]:
        """Wait for so many messages of a kind; return how many messages the store had got at each of them."""
        async with asyncio.timeout(DEADLINE_S):
            while len(found := [had for message, had in self.inbox if type(message) is kind]) < count:
                self._news.clear()
                await self._news.wait()
        return found


@asynccontextmanager
async def town(store: SlowStore) -> AsyncIterator[Town]:
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        settings = Settings("s1", limits=Limits(targets_at_once=len(HERE) - 1, heartbeat_s=DEADLINE_S))
        async with (
            Broker(settings, (endpoint,), Accounts(), store) as broker,
            raw_handler(endpoint, "tell", credit=256) as handler,
        ):
            yield Town(broker, handler, store)


async def test_users_are_sent_to_though_the_store_always_has_more_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_driver, "GROUP_MESSAGES", 1)
    store = SlowStore()
    async with town(store) as there:
        await there.tell(*(AWAY[at : at + 5] for at in range(0, len(AWAY), 5)), HERE)
        *_, last = await there.hears(Deliver, 2)
        assert last < len(AWAY)
    assert store.count == len(AWAY), "all is written at the end"
