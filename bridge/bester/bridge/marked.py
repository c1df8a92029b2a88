"""Messages that came with a mark that they may be repeats, while a server has several brokers. Pure.

A message that a broker has not reported on is submitted again to another one, whose results are marked: a delivery by
`redelivered`, a message for another server by `again`. Where the first broker was merely frozen, its link slow, its
process started again at once, or what it had written is adopted, its result comes as well, and may come later: it is
the second one for the recipient, though its broker takes it for the first. So it gets the mark here.
"""

from __future__ import annotations

from collections.abc import Sequence

from bester.broker.wire.messages import Deliver, Forward, Meta

MOST = 4096
"""Messages of a kind that are remembered: those of the users of one bridge whose broker has died, for some seconds."""


class Marked:
    """Ids of the latest messages with the entry `mark` in their meta, the latest last."""

    def __init__(self, mark: str = "redelivered") -> None:
        self._mark = mark
        self._ids: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def take(self, run: Sequence[Deliver]) -> Sequence[Deliver]:
        """Return deliveries, with a mark on those of which one with a mark has come."""
        mark = self._mark
        if not self._ids and not [True for message in run if mark in message.meta]:
            return run  # usual, and without a call for every message
        return [
            message._replace(meta={**message.meta, self._mark: True})
            if self._needs_mark(message.id, message.meta) else message
            for message in run
        ]  # fmt: skip

    def take_forward(self, message: Forward) -> Forward:
        """Return a message for another server, with a mark if one with a mark has come."""
        if self._needs_mark(message.meta.get("id", ""), message.meta):
            return message._replace(meta={**message.meta, self._mark: True})
        return message

    def _needs_mark(self, id_: str, meta: Meta) -> bool:
        if meta.get(self._mark) is True:
            self._ids.pop(id_, None)
            self._ids[id_] = None
            if len(self._ids) > MOST:
                del self._ids[next(iter(self._ids))]
            return False
        return id_ in self._ids
