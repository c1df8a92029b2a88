"""Deliveries that came with the mark `redelivered`, while a server has several brokers. Pure.

A message that a broker has not reported on is submitted again to another one, whose delivery is marked. Where the first
broker was merely frozen, or its link slow, its delivery comes as well, and may come later: it is the second one for the
client, though its broker takes it for the first. So it gets the mark here.
"""

from __future__ import annotations

from collections.abc import Iterable

from bester.broker.wire.messages import Deliver

MOST = 4096
"""Deliveries that are remembered: those to the users of one bridge whose broker has died, for some seconds."""


class Marked:
    """Ids of the latest marked deliveries, each with the broker from which it came."""

    def __init__(self) -> None:
        self._brokers: dict[str, object] = {}

    def __len__(self) -> int:
        return len(self._brokers)

    def take(self, run: Iterable[Deliver], broker: object) -> list[Deliver]:
        """Return the deliveries of a broker, with a mark on those that came with one from another broker."""
        return [self._take(message, broker) for message in run]

    def _take(self, message: Deliver, broker: object) -> Deliver:
        if message.meta.get("redelivered") is True:
            self._brokers.pop(message.id, None)  # the latest comes last
            self._brokers[message.id] = broker
            if len(self._brokers) > MOST:
                del self._brokers[next(iter(self._brokers))]
        elif self._brokers and self._brokers.get(message.id, broker) is not broker:
            return message._replace(meta={**message.meta, "redelivered": True})
        return message
