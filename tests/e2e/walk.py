"""Record a message's way through the code: the modules of Bester that the message enters, in order.

Bridge, broker and a handler run in this process, with a direct call between bridge and broker and the fabric between
broker and handler, as in `bester up`. A profiler sees a few messages go there and back, one after another.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from bester.bridge import service as bridge_service
from bester.broker import config_file
from bester.broker import service as broker_service
from bester.broker.names import Names
from bester.handlers import App, Message
from bester.handlers.worker import Worker

DEADLINE_S = 20.0
HANDLER = "the handler works"
"""Station of the user's function in a way."""
TIMERS = ("_turn", "_tick", "tick")
"""Functions that a timer calls, with or without a message under way."""
MESSAGES = 5
"""Messages of which the shortest way counts: a heartbeat, or a commit that has ended late, adds stations to some."""


class Recorder:
    """A profiler's function. `way` gathers `PART/MODULE` of each module that is entered from another."""

    def __init__(self) -> None:
        self.way: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record one event of the interpreter."""
        if event != "call":
            return
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_qualname == "walk.<locals>.work":
            self._enter(HANDLER)
        elif name.startswith("bester.") and frame.f_code.co_name not in TIMERS:
            self._enter(name.removeprefix("bester.").replace(".", "/"))

    def _enter(self, station: str) -> None:
        if self.way[-1:] != [station]:
            self.way.append(station)


async def walk(directory: Path) -> list[str]:
    """Send messages from a client to itself by a handler, one alone at a time, and return the stations of the shortest
    way: in, and back out."""
    config = directory / "bester.toml"
    config.write_text(
        f'[server]\nname = "s1"\ndata_dir = "{directory / "data"}"\n'
        '[native]\ntcp4 = "127.0.0.1:0"\n[accounts]\nauth = "open"\n'
    )
    loaded, names, app = config_file.load(config), Names(), App("echo")
    ways: list[list[str]] = []

    @app.handler("echo")
    async def work(message: Message) -> object:
        return message.reply(message.data)

    async with (
        asyncio.timeout(DEADLINE_S),
        broker_service.serving(loaded, names) as broker,
        bridge_service.serving(loaded, names) as bridge,
    ):
        bridge.attach(broker.attach(bridge.bridge.receive))
        worker = Worker(app, loaded.fabric.listen[0])
        worker.start()
        await worker.wait_ready()
        host, _, port = bridge.addresses[0].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))

        async def exchange(answers: int, header: dict[str, Any], payload: dict[str, Any]) -> None:
            """Write a frame and read so many answers."""
            body = json.dumps({"header": {"scope": "client"} | header, "payload": payload}).encode()
            writer.write(struct.pack("<I", len(body)) + body)
            for _ in range(answers):
                (size,) = struct.unpack("<I", await reader.readexactly(4))
                await reader.readexactly(size)

        await exchange(1, {"authentication": {"username": "alice", "password": "x"}}, {})
        await exchange(2, {}, {"type": "echo", "data": 1, "id": "first"})  # loads and makes all that is made once
        for number in range(MESSAGES):
            recorder = Recorder()
            sys.setprofile(recorder)
            try:
                await exchange(2, {}, {"type": "echo", "data": number, "id": "later"})
            finally:
                sys.setprofile(None)
            ways.append(recorder.way)
        writer.close()
        await worker.stop()
    names.close()
    return min(ways, key=len)
