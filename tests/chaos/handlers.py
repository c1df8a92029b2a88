"""The handlers of a chaos run, as users write them; both servers run them, in processes that are killed.

`talk` and `slow` deliver to users here, `pipe` hands on to `talk`, `far` sends to another server; `both` does both.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from bester.broker.wire.messages import Command
from bester.handlers import App, Message
from tests.chaos.traffic import SLOWEST_S

quick = App("quick")
slow = App("slow")


def deliver(message: Message, data: dict[str, Any]) -> Command:
    """Send the text to the users it is for here."""
    return message.send_clients(data["to"], {"number": data["number"], "text": data["text"]})


def forward(message: Message, data: dict[str, Any]) -> Command:
    """Send it to the other server, for its users."""
    there = {"number": data["number"], "text": data["text"], "to": data["there"]}
    return message.send_servers([data["server"]], there, as_type=data["as"])


@quick.handler("talk", inline=True)
def talk(message: Message) -> Command:
    return deliver(message, message.data)


@quick.handler("pipe")
def pipe(message: Message) -> Command:
    return message.send_handler("talk", message.data)


@quick.handler("far", inline=True)
def far(message: Message) -> Command:
    return forward(message, message.data)


@quick.handler("both")
async def both(message: Message) -> list[Command]:
    return [deliver(message, message.data), forward(message, message.data)]


@slow.handler("slow")
async def slowly(message: Message) -> Command:
    await asyncio.sleep(Random(message.data["number"]).uniform(0, SLOWEST_S))
    return deliver(message, message.data)
