"""The handler of the RabbitMQ side: an aio-pika consumer that answers each message with the message's own bytes.

Run as a process of its own, on uvloop, exactly as a Bester handler process is; one printed line says that the consumer
is there. Invariant: only a plain aio-pika program's means. Messages and answers are transient and not acknowledged,
the cheapest way that RabbitMQ has.
"""

# mypy: disable-error-code="import-not-found"
# (aio-pika comes with the extra `bench` alone, and types are checked without it, too.)

from __future__ import annotations

import asyncio
import signal
import sys

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage


async def echo(url: str) -> None:
    """Answer messages of the queue `bench.echo` of the server at `url` until SIGTERM comes."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    connection = await aio_pika.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    queue = await channel.declare_queue("bench.echo", exclusive=False, durable=False)

    async def answer(message: AbstractIncomingMessage) -> None:
        reply = aio_pika.Message(message.body, correlation_id=message.correlation_id)
        await channel.default_exchange.publish(reply, routing_key=message.reply_to or "")

    await queue.consume(answer, no_ack=True)
    sys.stdout.write("consuming\n")
    sys.stdout.flush()
    await ended.wait()
    await connection.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(echo(sys.argv[1]))
