"""The bound on values holds for handlers and servers on tcp, and not for bridges and parties of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
import zmq
import zmq.asyncio

from bester.broker.core.settings import Grant, Route, Settings
from bester.broker.keys import KeyPair
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from tests.keyed import KeyedParty, free_port, new_pair
from tests.live import DEADLINE_S, RawHandler, short_directory

PAIRS = {name: new_pair() for name in ("server", "handler", "bridge")}
GRANTS = {
    PAIRS["handler"].public: Grant("handler", "h", frozenset({"a"})),
    PAIRS["bridge"].public: Grant("bridge", "b"),
}
ANSWERED = [14, 1, "serverInfo"]
HEAVY = [12, 7, "a", [], {"m": [[[]] * 15_000] * 2}]
"""An emission of 270,000 values, more than a handler may send."""
FAILURES = [27, 1, [], [[n, 1, "gone"] for n in range(30_000)], 0]
"""A confirmation of 330,000 values, as a bridge sends."""


class Here:
    """A broker with a door for each kind of party."""

    def __init__(self, broker: Broker, local: str, keyed: str, opened: AsyncExitStack) -> None:
        self.broker = broker
        self._local = local
        self._keyed = keyed
        self._opened = opened

    def party(self, door: str) -> RawHandler:
        """Return a party that comes by a door: the name of its key, or `local`."""
        if door == "local":
            party = RawHandler(self._local, ["a"])
        else:
            party = KeyedParty(self._keyed, PAIRS[door], PAIRS["server"].public, ["a"])
        self._opened.callback(party.close)
        return party

    @property
    def refused(self) -> int:
        """Number of messages that were refused for their values."""
        return self.broker.router.inspect().reached["max_values"]

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until `done()` is true."""
        async with asyncio.timeout(DEADLINE_S):
            while not done():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def broker(**settings: Any) -> AsyncIterator[Here]:
    async with short_directory() as directory, AsyncExitStack() as opened:
        local, keyed = f"ipc://{directory}/f", f"tcp://127.0.0.1:{free_port()}"
        made = Broker(
            Settings("s1", grants=GRANTS, **settings), (local, keyed), OpenAccounts(), MemoryStore(),
            pair=KeyPair(*PAIRS["server"]), curve=True,
        )  # fmt: skip
        async with made as running, opened:
            yield Here(running, local, keyed, opened)


@pytest.mark.parametrize(
    ("door", "role", "heavy", "is_read"),
    [
        ("handler", "handler", HEAVY, False),
        ("local", "handler", HEAVY, True),
        ("bridge", "bridge", FAILURES, True),
    ],
)
async def test_message_of_very_many_values_is_for_bridges_and_this_machine(
    door: str, role: str, heavy: list[Any], is_read: bool
) -> None:
    async with broker() as here:
        party = here.party(door)
        assert (await party.hello(role))[0] == 2
        await party.say(heavy, ANSWERED)
        answer = await party.hear(5, 13, 15)
        if is_read:
            assert answer[0] != 5
        else:
            assert answer[:2] == [5, "malformed"] and "more than 262,144 values" in answer[2], answer
            assert answer[3:] == [12, 7]
            assert (await party.hear(15))[1] == 1
        assert here.refused == (not is_read)


async def test_answers_of_another_server_are_read_within_one_bound() -> None:
    """They are read in one step, and no turn of theirs comes later: so all of a batch count together."""
    port = free_port()
    steps = [35, 1, [{"m": [[]] * 10_000}], {}]
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as other:
        other.linger = 0
        other.bind(f"tcp://127.0.0.1:{port}")
        async with broker(routes={"s2": Route("s2", fabric=f"tcp://127.0.0.1:{port}")}) as here:
            peer, _ = await other.recv_multipart()
            await other.send_multipart([peer, msgpack.packb([[2, 1, "s2", {"heartbeat_ms": 2000}], steps])])
            await other.send_multipart([peer, msgpack.packb([steps] * 2)])
            await other.send_multipart([peer, msgpack.packb([steps] * 3)])
            await here.until(lambda: here.refused > 0)
            assert here.refused == 1
