"""The handlers of a chaos run, as users write them; both servers run them, in processes that are killed.

`talk` and `slow` deliver to users here, `line` does so in order, `pipe` hands on to `talk`, `far` sends to another
server, `both` does both, and `out` sends to a native server. Poison ends the process, after a word in a journal.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
from pathlib import Path
from random import Random
from typing import Any

from bester.broker.wire.messages import Command
from bester.handlers import App, Message
from tests.chaos.journal import Died, Journal, now_s
from tests.chaos.traffic import SLOWEST_S

quick = App("quick")
slow = App("slow")


def taste(data: dict[str, Any]) -> dict[str, Any]:
    """Return the message's poison for the next handler, or die of the poison here."""
    poison = data.get("poison")
    if poison is None:
        return {}
    if poison["steps"]:
        return {"poison": poison | {"steps": poison["steps"] - 1}}
    server = Path.cwd()
    with Journal(server.parent / f"deaths-{server.name}-{os.getpid()}.journal") as journal:
        journal.write(Died(data["number"], server.name, now_s()))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if poison["how"] == "exit":
        os._exit(1)
    if poison["how"] == "fault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process survived SIGKILL")


def deliver(message: Message, data: dict[str, Any]) -> Command:
    """Send the text to the message's users at this server."""
    taste(data)
    return message.send_clients(data["to"], {"number": data["number"], "text": data["text"]})


def forward(message: Message, data: dict[str, Any]) -> Command:
    """Send the message to the other server, for its users."""
    there = {"number": data["number"], "text": data["text"], "to": data["there"]}
    return message.send_servers([data["server"]], there | taste(data), as_type=data["as"])


@quick.handler("talk", inline=True)
def talk(message: Message) -> Command:
    return deliver(message, message.data)


@quick.handler("line", inline=True, order="user")
def line(message: Message) -> Command:
    return deliver(message, message.data)


@quick.handler("pipe")
def pipe(message: Message) -> Command:
    return message.send_handler("talk", message.data | taste(message.data))


@quick.handler("far", inline=True)
def far(message: Message) -> Command:
    return forward(message, message.data)


@quick.handler("out", inline=True)
def out(message: Message) -> Command:
    return message.send_servers([message.data["native"]], {key: message.data[key] for key in ("number", "text")})


@quick.handler("flood", inline=True)
def flood(message: Message) -> None:
    """Answer nothing: what the sender asks for is work."""


@quick.handler("both")
async def both(message: Message) -> list[Command]:
    return [deliver(message, message.data), forward(message, message.data)]


@slow.handler("slow")
async def slowly(message: Message) -> Command:
    await asyncio.sleep(Random(message.data["number"]).uniform(0, SLOWEST_S))
    return deliver(message, message.data)
