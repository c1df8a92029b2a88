"""Who sends costly messages on the encrypted fabric leaves the turns of the loop to others."""

from __future__ import annotations

import asyncio

from bester.broker.curve import CLOCK, MADE_UP_S
from bester.broker.fabric_socket import Frames
from tests.e2e.test_endless_message import PAIRS, door, party


async def test_costly_message_is_followed_by_turns_without_reading() -> None:
    """Both messages are on their way before the first is read, and the second comes while that one is handled."""
    loop, turns, read_at = asyncio.get_running_loop(), 0, list[int]()
    counting: asyncio.Handle | None = None

    def count_turn() -> None:
        nonlocal turns, counting
        turns += 1
        counting = loop.call_soon(count_turn)

    def handle(frames: Frames) -> None:
        read_at.append(turns)
        enough = CLOCK() + 2 * MADE_UP_S
        while CLOCK() < enough:
            pass

    async with door(handle) as here:
        honest = party(here.port, PAIRS["honest"])
        count_turn()
        try:
            await honest.send_frames(b"first")
            await here.until(lambda: read_at)
            read_at.clear()
            await honest.send_frames(b"costly")
            await honest.send_frames(b"next")
            await here.until(lambda: len(read_at) == 2)
            assert read_at[1] - read_at[0] >= 3
        finally:
            assert counting is not None
            counting.cancel()
            honest.close()
