"""A ZeroMQ message of very many frames: refused, and read in pieces beside everybody else's."""

from __future__ import annotations

import asyncio

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
import zmq

from bester.broker.fabric_socket import FabricSocket
from bester.broker.wire.codec import decode
from bester.broker.wire.messages import MAX_FRAMES, Heartbeat, Malformed
from tests.live import RawHandler, live_server, raw_handler, short_directory

DEADLINE_S = 30.0
BEAT = msgpack.packb([[3]])


@pytest.mark.parametrize("extra", [MAX_FRAMES - 1, MAX_FRAMES, MAX_FRAMES + 1, 3 * MAX_FRAMES])
@pytest.mark.parametrize("known", [False, True], ids=["tcp", "ipc"])
async def test_message_is_cut_and_the_next_one_is_whole(extra: int, known: bool) -> None:
    async with short_directory() as directory:
        came: list[list[bytes]] = []
        enough = asyncio.Event()

        def received(frames: list[bytes]) -> None:
            came.append(frames[1:])
            if len(came) == 3:
                enough.set()

        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = FabricSocket(context, zmq.ROUTER, received)
        endpoint = f"ipc://{directory}/f.sock"
        router.socket.bind(endpoint)
        if known:
            router.remember_processes()
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.connect(endpoint)
        router.register()
        try:
            await asyncio.to_thread(dealer.send, BEAT)
            await asyncio.to_thread(dealer.send_multipart, [BEAT, *[b"x"] * extra], copy=True)
            await asyncio.to_thread(dealer.send, BEAT)
            async with asyncio.timeout(DEADLINE_S):
                await enough.wait()
        finally:
            dealer.close()
            router.close()
            context.term()
        first, many, last = (decode(frames) for frames in came)
        assert (first, last) == ([Heartbeat()], [Heartbeat()])
        fits = extra < MAX_FRAMES
        assert (many == [Heartbeat()]) == fits
        assert isinstance(many[0], Malformed) != fits
        assert router.overlong == (not fits)
        assert max(map(len, came)) <= MAX_FRAMES + 1


async def test_sender_is_told_and_others_are_served() -> None:
    async with (
        live_server(handlers=("bester.handlers.stock.echo:app",)) as server,
        raw_handler(server.fabric, "raw") as one,
    ):
        await one.send_frames(BEAT, *[b""] * 100_000)
        error = await one.hear(5)
        assert (error[1], "frames" in error[2]) == ("malformed", True)
        other = RawHandler(server.fabric, ["other"])
        assert (await other.hello())[0] == 2
        await other.say([4, "done"])
        await other.hear(4)
        other.close()
