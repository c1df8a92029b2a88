"""A simulated oven: a device of the stock sub-protocol kitchen (docs/kitchen.md).

    BESTER_PASSWORD=… python oven.py HOST:PORT oven g@s2 …

The oven logs in as the user `oven`, allows the named users to look at it and to set it, and reports its state at every
change: {"on": true, "target": 180, "celsius": 95}. It heats by 5 degrees a second up to its target, and cools by 2.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from bester.client import Client, ClientError

ROOM = 20
HOTTEST = 300
HEATS, COOLS = 5, 2
TICK_S = float(os.environ.get("OVEN_TICK_S", "1"))


class Oven:
    """State of an oven."""

    def __init__(self) -> None:
        self.on = False
        self.target = 180
        self.celsius = ROOM

    def tick(self) -> None:
        """Heat or cool for one second."""
        aim = self.target if self.on else ROOM
        if self.celsius < aim:
            self.celsius = min(aim, self.celsius + HEATS)
        else:
            self.celsius = max(aim, self.celsius - COOLS)

    def set(self, wish: Any) -> None:
        """Follow a wish as far as it makes sense; the rest is ignored."""
        if isinstance(wish, dict) and isinstance(wish.get("on"), bool):
            self.on = wish["on"]
        if isinstance(wish, dict) and type(wish.get("target")) is int:
            self.target = max(ROOM, min(HOTTEST, wish["target"]))

    @property
    def state(self) -> dict[str, Any]:
        """State as reported."""
        return {"on": self.on, "target": self.target, "celsius": self.celsius}


async def main(address: str, name: str, *allowed: str) -> None:
    """Run the oven until the process ends."""
    oven = Oven()
    async with Client(address, user=name, password=os.environ.get("BESTER_PASSWORD", "")) as client:
        if allowed:
            await client.send("kitchen", {"allow": list(allowed)})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_listen(client, oven))
            tasks.create_task(_report(client, oven))


async def _listen(client: Client, oven: Oven) -> None:
    async for message in client:
        if message.type == "kitchen" and isinstance(message.data, dict) and "set" in message.data:
            oven.set(message.data["set"])
            print(f"{message.data['from']} sets {message.data['set']}", flush=True)


async def _report(client: Client, oven: Oven) -> None:
    last = None
    while True:
        if oven.state != last:
            report = await client.send("kitchen", {"state": oven.state})
            last = oven.state if report.good else last
            print(oven.state if report.good else f"{report.reason}: {report.note}", flush=True)
        await asyncio.sleep(TICK_S)
        oven.tick()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: BESTER_PASSWORD=… python oven.py HOST:PORT USER [ALLOWED …]")
    why = None
    try:
        asyncio.run(main(*sys.argv[1:]))
    except* KeyboardInterrupt:
        pass
    except* (ClientError, ValueError) as errors:  # a server that is not there, a wrong password, no HOST:PORT
        why = errors.exceptions[0]
    if why is not None:
        sys.exit(f"oven: {why}")
