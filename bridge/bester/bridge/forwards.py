"""Messages of the brokers for servers that speak the native protocol, between their broker and the forwarder. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bester.bridge.brokers import Broker, Brokers
from bester.bridge.marked import Marked
from bester.broker.wire.messages import Forward, Forwarded, Meta
from bester.broker.wire.outcomes import failed


class Forwards:
    """Messages that the forwarder carries now. `carry` gives it one; where `carry` is None, every message fails.

    Brokers number their messages alike, so that those of several get a token of the bridge's own from `tokens`.
    """

    def __init__(self, brokers: Brokers, tokens: Iterator[int], carry: Callable[[Forward], None] | None) -> None:
        self.carry = carry
        self._brokers = brokers
        self._tokens = tokens
        self._carried: dict[int, tuple[Broker, int]] = {}  # of several brokers: by the bridge's own token
        self._marked = Marked("again")

    def begin(self, message: Forward, broker: Broker) -> None:
        """Let the forwarder carry a message of a broker."""
        token = message.token
        if self._brokers.are_several:
            token = next(self._tokens)
            self._carried[token] = broker, message.token
            message = self._marked.take_forward(message)
        if self.carry is None:
            self.on_forwarded(token, failed("unreachable"), {"unsent": True})
        else:
            self.carry(message if token == message.token else message._replace(token=token))

    def on_forwarded(self, token: int, outcome: str, meta: Meta = {}) -> None:  # noqa: B006 (it is never written to)
        """Send the broker the outcome of a Forward, with the meta of a Forwarded."""
        broker, token = self._carried.pop(token, (self._brokers.first, token))
        broker.link.send(Forwarded(token, outcome, meta))
