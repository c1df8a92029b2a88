"""Messages that came with a mark that they may be repeats, while a server has several brokers. Pure.

A message that a broker has not reported on is submitted again to another one, whose results are marked: a delivery by
`redelivered`, a message for another server by `again`. Where the first broker was merely frozen, its link slow, or its
process started again at once, its result comes as well, and may come later: it is the second one for the recipient,
though its broker takes it for the first. So it gets the mark here.
"""

from __future__ import annotations

from collections.abc import Iterable

from bester.broker.wire.messages import Deliver, Forward, Meta

MOST = 4096
"""Messages of a kind that are remembered: those of the users of one bridge whose broker has died, for some seconds."""


class Marked:
    """Ids of the latest messages with the entry `mark` in their meta, each with the broker from which it came."""

    def __init__(self, mark: str = "redelivered") -> None:
        self._mark = mark
        self._brokers: dict[str, object] = {}

    def __len__(self) -> int:
        return len(self._brokers)

    def take(self, run: Iterable[Deliver], broker: object) -> list[Deliver]:
        """Return the deliveries of a broker, with a mark on those that came with one from another broker."""
        return [
            message._replace(meta={**message.meta, self._mark: True})
            if self._needs_mark(message.id, message.meta, broker) else message
            for message in run
        ]  # fmt: skip

    def take_forward(self, message: Forward, broker: object) -> Forward:
        """Return a broker's message for another server, with a mark if it came with one from another broker."""
        if self._needs_mark(message.meta.get("id", ""), message.meta, broker):
            return message._replace(meta={**message.meta, self._mark: True})
        return message

    def _needs_mark(self, id_: str, meta: Meta, broker: object) -> bool:
        if meta.get(self._mark) is True:
            self._brokers.pop(id_, None)  # the latest comes last
            self._brokers[id_] = broker
            if len(self._brokers) > MOST:
                del self._brokers[next(iter(self._brokers))]
            return False
        return bool(self._brokers) and self._brokers.get(id_, broker) is not broker
