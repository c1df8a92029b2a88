"""Cables of a chaos run: they carry all bytes, in no direction while they are frozen, and none once they are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from tests.chaos.cables import Cable
from tests.live import DEADLINE_S, short_directory

SHORT_S = 0.1
"""Time in which nothing comes through a frozen cable."""


class OneWay(Random):
    """Chance that freezes one direction alone: that from the socket `here`."""

    def random(self) -> float:
        return 0.99

    def randbelow(self, _: int) -> int:
        return 0

    _randbelow = randbelow


Ends = tuple[Cable, asyncio.StreamReader, asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connection(random: Random) -> AsyncIterator[Ends]:
    """A cable, and both ends of a connection that it carries."""
    came: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set_result((reader, writer))

    async with short_directory() as directory:
        server = await asyncio.start_unix_server(accept, directory / "there")
        cable = Cable("cable", directory / "here", directory / "there", random)
        async with cable.carried():
            near, to_far = await asyncio.open_unix_connection(directory / "here")
            far, to_near = await came
            try:
                yield cable, near, to_far, far, to_near
            finally:
                to_far.close()
                to_near.close()
                server.close()


async def heard(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await reader.readexactly(count)


async def hears_nothing(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(SHORT_S):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_a_frozen_cable_carries_nothing_until_it_is_well_again() -> None:
    async with connection(Random(1)) as (cable, near, to_far, far, to_near):
        to_far.write(b"one")
        assert await heard(far, 3) == b"one"
        cable.freeze()
        to_far.write(b"two")
        to_near.write(b"three")
        assert await hears_nothing(far)
        assert await hears_nothing(near)
        cable.thaw()
        assert (await heard(far, 3), await heard(near, 5)) == (b"two", b"three")


async def test_a_cable_may_be_deaf_on_one_side_alone() -> None:
    async with connection(OneWay()) as (cable, near, to_far, far, to_near):
        cable.freeze()
        to_far.write(b"two")
        to_near.write(b"three")
        assert await heard(near, 5) == b"three"
        assert await hears_nothing(far)


async def test_the_end_of_a_connection_is_not_heard_of_through_a_frozen_cable() -> None:
    async with connection(Random(1)) as (cable, _, to_far, far, _):
        cable.freeze()
        to_far.close()
        assert await hears_nothing(far)
        cable.thaw()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await far.readexactly(1)


async def test_a_cut_cable_ends_its_connections_and_each_new_one_until_it_is_back() -> None:
    async with connection(Random(1)) as (cable, near, _, far, _):
        cable.kill()
        assert not cable.alive
        later, from_later = await asyncio.open_unix_connection(cable.here)
        for reader in (near, far, later):
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await reader.readexactly(1)
        from_later.close()
        cable.back()
        assert cable.alive
