"""A client process that sends: `python -m tests.chaos.sender SERVER ADDRESS USER JOURNAL LIFE SEED`.

Each message is written down before it is submitted, and each report when it comes. On SIGTERM the sender submits no
more, waits for its reports, writes down that it is done, and ends.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from random import Random

from bester.client import Client, ClientError, Outcome, Report
from tests.chaos import traffic
from tests.chaos.journal import Closed, GivenUp, Journal, Later, Sent, Told, now_s

RATE_PER_S = 20.0
"""Moderate: two slow cores must keep up while a third of their time goes into starting processes again."""
BURSTS_PER_S = 0.07
"""Poison with its company. Each costs a few lives of a handler; after many of them the next is put off for long."""
UNREPORTED = 400
"""Upper bound of submissions without a report: while a server is away, its clients pile up no messages without end."""
PASSWORD = "secret"
RETRY_S = 0.2
"""Between two attempts to log in for the first time."""


class Sender:
    """A user at one server, with the client library."""

    def __init__(self, server: str, address: str, user: str, journal: Journal, life: int, random: Random) -> None:
        self.server = server
        self.address = address
        self.user = user
        self.journal = journal
        self.random = random
        self.number = life * traffic.NUMBERS_A_LIFE
        self.enough = asyncio.Event()

    async def run(self) -> None:
        """Send until the end is asked for, with a new client whenever one ends for good."""
        while not self.enough.is_set():
            # With acknowledgements: outcomes that a killed sender missed go to the next one.
            client = Client(self.address, user=self.user, password=PASSWORD, ack=True, on_outcome=self._came_later)
            try:
                await client.start()
            except ClientError:
                await self._rest(RETRY_S)
                continue
            hearing = asyncio.create_task(self._hear(client))
            try:
                await self._send(client, hearing)
            finally:
                await client.close(0)
                await hearing
        self.journal.write(Closed(now_s()))

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.enough.wait(), seconds)
        except TimeoutError:
            pass

    async def _send(self, client: Client, hearing: asyncio.Task[None]) -> None:
        """Send until the end is asked for, then wait for all reports; or until the client has ended."""
        while not self.enough.is_set() and not hearing.done():
            if client.unreported < UNREPORTED:
                poison = self.random.random() < BURSTS_PER_S / RATE_PER_S
                some = traffic.burst if poison else _one
                for message in some(self.number + 1, self.server, self.random):
                    self._submit(client, message)
            await self._rest(self.random.expovariate(RATE_PER_S))
        while client.unreported and not hearing.done():
            await asyncio.sleep(0.05)

    def _submit(self, client: Client, message: traffic.Message) -> None:
        self.number = message.number
        self.journal.write(
            Sent(message.number, message.type, message.targets, now_s(), message.ttl_s, kills=message.kills)
        )
        report = client.submit(message.type, message.data, ttl_s=message.ttl_s, outcome=True)
        report.add_done_callback(lambda done: self._reported(message.number, done))

    def _reported(self, number: int, done: asyncio.Future[Report]) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            self.journal.write(GivenUp(number, str(error), now_s()))
            return
        report = done.result()
        self.journal.write(Told(number, report.good, report.reason, report.recipients, report.message, now_s()))

    async def _hear(self, client: Client) -> None:
        """Read the client's messages, so that reports are read too; end with the client. Nobody writes to a sender."""
        try:
            async for message in client:
                raise AssertionError(f"a message for a sender: {message}")
        except ClientError:
            pass

    def _came_later(self, later: Outcome) -> None:
        self.journal.write(Later(later.message, later.recipient, later.outcome, now_s()))


def _one(number: int, server: str, random: Random) -> list[traffic.Message]:
    return [traffic.compose(number, server, random)]


async def main() -> None:
    server, address, user, journal, life, seed = sys.argv[1:]
    with Journal(Path(journal)) as open_journal:
        sender = Sender(server, address, user, open_journal, int(life), Random(f"{seed}/{user}/{life}"))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sender.enough.set)
        await sender.run()


if __name__ == "__main__":
    asyncio.run(main())
