"""What a bridge says to its broker: words that must be heard, words that may be refused, and questions. Pure.

A bridge has one broker, through a link that may be lost and come back. What the broker must hear while the link lives
(sessions, confirmations) waits here when the link has no room. A message, a login or a question does not: whoever
wants it said is told that there is no room for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from bester.bridge.limits import Limits
from bester.broker.wire.messages import Ask, Login, Message, Submit

Answered = Callable[[int, Any], None]
"""Gets the status (0 is good) and the value of an answer."""
UNANSWERED = -1
"""Status of a question that no broker has answered: there was none, or its link was lost."""


class BrokerPort(Protocol):
    """The way to the broker: a link of the fabric, or a direct call in the same process."""

    def send(self, message: Message) -> bool:
        """Take a message; False: not now (nothing was taken)."""

    def send_all(self, messages: Sequence[Message]) -> int:
        """Take messages in their order; return how many. The rest: not now."""


class BrokerLink:
    """The way to the broker. `tokens` numbers whatever is to be answered; `notice` is told what nobody else is."""

    def __init__(self, limits: Limits, tokens: Iterator[int], notice: Callable[[str], None]) -> None:
        self.is_ready = False
        self.port: BrokerPort | None = None
        self._limits = limits
        self._tokens = tokens
        self._notice = notice
        self._was_lost = False
        self._owed: deque[Message] = deque()  # what the link had no room for and the broker must hear
        self._asks: dict[int, Answered] = {}

    def on_link_ready(self) -> None:
        """The broker has answered (again)."""
        if self._was_lost:
            self._was_lost = False
            self._notice("the broker is back")
        self.is_ready = True

    def on_link_lost(self, why: str) -> None:
        """The link is lost, and what was said on it is void; whoever asked is told so."""
        if self.is_ready or not self._was_lost:
            self._notice(f"link to the broker lost: {why}")
        self._was_lost = True
        self.is_ready = False
        self._owed.clear()
        asks, self._asks = self._asks, {}
        for answered in asks.values():
            answered(UNANSWERED, None)

    @property
    def has_room(self) -> bool:
        """Whether there is a broker, and nothing waits for room on the link to it."""
        return self.is_ready and not self._owed

    @property
    def keeps_up(self) -> bool:
        """Whether nothing waits for room on the link."""
        return not self._owed

    def tell(self, message: Message) -> None:
        """Say what the broker must hear while the link lives: now, or when there is room."""
        if not self.is_ready or self.port is None:
            return
        if not self._owed and self.port.send(message):
            return
        if len(self._owed) < self._limits.owed:
            self._owed.append(message)
        else:
            self._notice(f"the link to the broker is full; {type(message).__name__} dropped")

    def flush(self) -> None:
        """Say what waits, as far as there is room."""
        while self._owed and self.port is not None and self.port.send(self._owed[0]):
            self._owed.popleft()

    def submit(self, messages: Sequence[Submit]) -> int:
        """Say as many of these, in order, as there is room for now; returns how many that was."""
        if self._owed or not self.is_ready or self.port is None:
            return 0
        return self.port.send_all(messages)

    def login(self, message: Login) -> bool:
        """Say this if there is room for it now."""
        return not self._owed and self.is_ready and self.port is not None and self.port.send(message)

    def ask(self, question: str, argument: Any, answered: Answered) -> bool:
        """Ask the broker. False: it cannot be asked now, and `answered` will not be called."""
        token = next(self._tokens)
        self._asks[token] = answered
        if self.is_ready and self.port is not None and self.port.send(Ask(token, question, argument)):
            return True
        del self._asks[token]
        return False

    def on_answer(self, token: int, status: int, value: Any) -> None:
        """The broker has answered a question."""
        asker = self._asks.pop(token, None)
        if asker is not None:
            asker(status, value)
