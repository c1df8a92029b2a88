"""A bridge that was stopped: others have the time that they would have had, and what it passes to native servers may
have come to these by another bridge."""

from __future__ import annotations

import asyncio
import json
import os
import signal

from bester.bridge.forward import Forwarder
from bester.bridge.limits import Limits
from bester.bridge.native_writing import report
from bester.bridge.standstill import GAP_S, Standstill
from bester.broker.clocks import with_sleep
from bester.broker.wire.messages import Forward
from tests.e2e.bridge_scene import Raw
from tests.e2e.test_forward import Outcomes, server
from tests.live import DEADLINE_S, RawClient, live_server, raw_handler


async def test_login_that_waits_for_a_stopped_server_is_not_late() -> None:
    async with live_server("") as there:
        clients = [await RawClient.connect(there) for _ in range(4)]
        (await RawClient.login(there, "ann")).writer.close()  # the others were let in before
        process = there.processes[0]
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.process.pid, os.WSTOPPED | os.WNOWAIT)
        for client in clients[:3]:
            client.send({"header": {"scope": "client", "authentication": {"username": "ann", "password": "secret"}}})
            await client.writer.drain()
        await asyncio.sleep(Limits().first_frame_s + 1.0)
        process.send_signal(signal.SIGCONT)
        for client in clients[:3]:
            assert (await client.receive())["header"]["status"] == "good"
        assert (await clients[3].receive())["payload"] == {"id": "auth_special", "reason": "timeout"}
        for client in clients:
            await client.close()


async def test_message_for_a_server_that_waited_for_a_stopped_bridge_is_marked() -> None:
    frames: asyncio.Queue[bool] = asyncio.Queue()

    async def keep(peer: Raw) -> None:
        frame = await peer.read()
        frames.put_nowait(frame["header"].get("again", False))
        peer.writer.write(report(json.dumps(frame["payload"]["id"]).encode(), 0))

    async with (
        server(keep) as address,
        live_server(f'[servers.n2]\nnative = "{address}"\n', "apart") as there,
        raw_handler(there.fabric, "out") as handler,
    ):
        ann = await RawClient.login(there, "ann")
        bridge = there.processes[0]
        for is_stopped in (False, True):
            ann.submit("out", 1, "x")
            request = await handler.hear(10)
            if is_stopped:
                bridge.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, bridge.process.pid, os.WSTOPPED | os.WNOWAIT)
            await handler.say([11, request[1], 0, [["sendServers", ["n2"], b"1"]], None])
            if is_stopped:
                await asyncio.sleep(GAP_S + 0.6)  # a tick's period and more
                bridge.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(frames.get(), DEADLINE_S) is is_stopped
            await ann.until_report("x")
        await ann.close()


async def test_message_that_waited_for_its_connection_is_marked_after_a_standstill() -> None:
    headers = []

    async def keep(peer: Raw) -> None:
        headers.append((await peer.read())["header"])
        peer.writer.write(report(b"null", 0))

    outcomes, standstill = Outcomes(), Standstill(with_sleep())
    forwarder = Forwarder(Limits(), outcomes.done, standstill=standstill)
    async with server(keep) as address:
        forwarder.forward(Forward(1, address, "m", b"1", {"id": "s1/e/1.0.0"}))
        standstill.tick(with_sleep() + GAP_S + 1.0)  # before the connection is made
        await outcomes.all(1)
    assert headers == [{"scope": "server", "id": "s1/e/1.0.0", "again": True}]
