"""The peer's handler: a nats-py subscriber that answers each request with the request's own bytes.

Run as a process of its own, on uvloop, exactly as a Bester handler process is; one printed line says that the handler
is subscribed. Invariant: only a plain nats-py program's means, without batching of its own or parsing of bodies.
"""

# mypy: disable-error-code="import-not-found"
# (nats-py comes with the extra `bench` alone, and types are checked without it, too.)

from __future__ import annotations

import asyncio
import signal
import sys

import nats
import uvloop
from nats.aio.msg import Msg


async def echo(url: str) -> None:
    """Answer requests on `bench.echo` of the server at `url` until SIGTERM comes."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    client = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await client.subscribe("bench.echo", cb=answer)
    await client.flush()
    sys.stdout.write("subscribed\n")
    sys.stdout.flush()
    await ended.wait()
    await client.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(echo(sys.argv[1]))
