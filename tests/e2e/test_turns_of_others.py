"""Costly parties leave the turns of the loop to others: reading at the encrypted door, and links that are lost."""

from __future__ import annotations

import asyncio
from functools import partial

from bester.broker.accounts import OpenAccounts
from bester.broker.core.effects import Link
from bester.broker.core.settings import Settings
from bester.broker.curve import CLOCK, MADE_UP_S
from bester.broker.fabric_socket import Frames
from bester.broker.server import LOST_AT_ONCE, Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.wire.messages import Heartbeat
from tests.e2e.test_endless_message import PAIRS, door, party
from tests.live import DEADLINE_S, short_directory


async def test_costly_message_is_followed_by_turns_without_reading() -> None:
    """The two messages are on their way before the first is read, and the second comes while that one is handled."""
    loop, turns, read_at = asyncio.get_running_loop(), 0, list[int]()

    def count_turn() -> None:
        nonlocal turns, counting
        turns += 1
        counting = loop.call_soon(count_turn)

    def handle(frames: Frames) -> None:
        read_at.append(turns)
        enough = CLOCK() + 2 * MADE_UP_S
        while CLOCK() < enough:
            pass

    async with door() as here:
        honest = party(here.port, PAIRS["honest"])
        counting = loop.call_soon(count_turn)
        try:
            await honest.send_frames(b"first")
            await here.until(partial(here.has_read, 1))
            here.socket._on_frames = handle
            await honest.send_frames(b"costly")
            await honest.send_frames(b"next")
            await here.until(lambda: len(read_at) == 2)
            assert read_at[1] - read_at[0] >= 3
        finally:
            counting.cancel()
            honest.close()


async def test_few_links_are_lost_in_one_turn_and_the_others_in_the_next() -> None:
    async with short_directory() as directory:
        settings = Settings("s1", open_accounts=True)
        async with Broker(settings, (f"ipc://{directory}/f",), OpenAccounts(), MemoryStore()) as broker:
            gone = [Link("ipc", b"0:gone%d" % number) for number in range(2 * LOST_AT_ONCE + 1)]
            broker._outgoing = {link: [Heartbeat()] for link in gone}
            broker._flush()
            assert list(broker._outgoing) == gone[LOST_AT_ONCE:]
            async with asyncio.timeout(DEADLINE_S):
                while broker._outgoing:
                    await asyncio.sleep(0)
