"""A keyed party that misbehaves below ZeroMQ, on its connection: that connection ends, and the server does not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import zmq

from bester.broker.curve import REFUSED
from tests.e2e.test_endless_message import MIB, PAIRS, Door, door, party
from tests.raw_curve import COMMAND, IS_THERE, PING, RawCurve

pytestmark = pytest.mark.skipif(not IS_THERE, reason="libsodium is needed")
KEY = PAIRS["endless"].public.encode()
MANY = 5000
"""Above the bound that ZeroMQ would have on messages that are not read."""


@asynccontextmanager
async def raw(here: Door, identity: bytes = b"", more: bytes = b"") -> AsyncIterator[RawCurve]:
    link = RawCurve(PAIRS["endless"], PAIRS["server"].public, identity, more)
    await link.connect(here.port)
    try:
        yield link
    finally:
        link.reset()


@pytest.mark.parametrize("nonce", [1, 3])
async def test_message_with_a_nonce_that_was_used_ends_its_connection_at_once(
    nonce: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection would stay, and be read no more; after a reset the next PING to it would end the process."""
    monkeypatch.setattr("bester.broker.curve.PING_MS", 600_000)  # no PING that is not answered ends it
    async with door() as here, raw(here) as link:
        link.send(b"first")
        await here.until(partial(here.has_read, 1))
        link.send(b"second", nonce=nonce)
        await link.ended()
        await here.until(lambda: here.gone)
        assert len(here.read) == 1 and REFUSED not in {why for _, _, why in here.refused}


async def test_input_goes_on_however_many_messages_are_not_read() -> None:
    """ZeroMQ would stop it at a number of them, and a PING behind these would end the process, once the connection was
    reset and they are read."""
    async with door() as here, raw(here) as link:
        link.send(b"first")
        await here.until(partial(here.has_read, 1))
        asyncio.get_running_loop().remove_reader(int(here.socket.socket.getsockopt(zmq.FD)))
        for _ in range(MANY):
            link.send(b"")
            link.send(PING, COMMAND)
        link.send(b"", nonce=1)  # comes to light once everything before it was taken in
        await link.ended()
        assert len(here.read) < MANY
        here.socket.look_again()
        await here.until(lambda: here.gone)
        assert len(here.read) == 1 + MANY


@pytest.mark.parametrize("name", [b"", b"\x04PING", b"\x07UNKNOWN", b"\x09SUBSCRIBE", b"\x05READY", b"\xffshort"])
async def test_commands_of_a_party_harm_nobody(name: bytes) -> None:
    async with door() as here, raw(here) as link:
        honest = party(here.port, PAIRS["honest"])
        try:
            for _ in range(100):
                link.send(name + bytes(100), COMMAND)
            link.reset()
            await honest.send_frames(b"honest")
            await here.until(lambda: any(frames[2:] == [b"honest"] for frames in here.read))
        finally:
            honest.close()


@pytest.mark.parametrize("identity", [b"\0\0\0\0\1", b"\0", b"1", b"x" * 255, b"x" * 70_000])
async def test_routing_id_that_a_party_chooses_counts_for_nothing(identity: bytes) -> None:
    """Of two connections with one, ZeroMQ would take the first message of the second for another; and one of the kind
    that it makes up itself, for a later connection, would end the process with that connection."""
    async with door() as here:
        for number in range(1, 200, 2):  # the answer of ZAP may come before ZeroMQ has read the party's own choice
            async with raw(here, identity) as first, raw(here, identity) as second:
                first.send(b"first")
                second.send(b"first")
                await here.until(partial(here.has_read, number + 1))
        assert sorted(here.read) == sorted([b"%d" % number, KEY, b"first"] for number in range(1, 201))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must count the bytes of a connection")
@pytest.mark.parametrize("speaks", [True, False])
async def test_megabytes_of_properties_end_their_connection(*, speaks: bool) -> None:
    """libzmq keeps fourteen times as many bytes of them, as long as the connection stays."""
    async with door() as here, raw(here, more=b"\1x\0\0\0\0" * (MIB // 3)) as link:  # 2 MiB
        here.socket.unread.most_strange_bytes = 3 * MIB if speaks else MIB
        if speaks:
            link.send(b"first")
            await here.until(partial(here.has_read, 1))
            assert not here.refused
            here.socket.unread.most_bytes = MIB
        await here.until(lambda: here.refused)
        await link.ended()
