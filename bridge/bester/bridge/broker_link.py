"""The link to the broker: messages that must arrive, messages that may be refused, and questions. Pure.

A bridge has one broker, through a link that may be lost and come back. Messages that the broker must get while the link
lives (sessions, confirmations) wait here for room on the link. Submits, logins and questions do not: their caller
learns that there is no room.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from bester.bridge.limits import Limits
from bester.broker.wire.messages import Ask, Login, Message, Submit
from bester.broker.wire.trouble import Told

Answered = Callable[[int, Any], None]
"""Called with the status (0 is good) and the value of an answer."""
UNANSWERED = -1
"""Status of a question that no broker has answered: there was none, or its link was lost."""


class BrokerPort(Protocol):
    """The way to the broker: a link of the fabric, or a direct call in the same process."""

    def send(self, message: Message) -> bool:
        """Take a message; False where there is no room for it now."""

    def send_all(self, messages: Sequence[Message]) -> int:
        """Take messages in their order; return how many were taken, the others finding no room now."""

    def give_up(self) -> None:
        """Lose the link, in the next turn of the loop: the broker does not read."""


class BrokerLink:
    """The link to the one broker. `tokens` numbers questions; `notice` gets texts for the log."""

    def __init__(
        self, limits: Limits, tokens: Iterator[int], notice: Callable[[str], None],
        reached: Counter[str] | None = None,
    ) -> None:  # fmt: skip
        self._reached = Counter() if reached is None else reached
        self.is_ready = False
        self.port: BrokerPort | None = None
        self._limits = limits
        self._tokens = tokens
        self._notice = notice
        self._was_lost = False
        self._told = Told()
        self._backlog: deque[Message] = deque()  # messages that wait for room on the link
        self._asks: dict[int, Answered] = {}

    def on_link_ready(self) -> None:
        """Note that the broker has answered (again)."""
        if self._was_lost:
            self._was_lost = False
            self._notice("the broker is back")
        self._told.clear()
        self.is_ready = True

    def on_link_lost(self, why: str) -> None:
        """Discard what waited for room on the lost link, and answer every question with UNANSWERED."""
        if self._told.is_due(why):
            self._notice(f"link to the broker lost: {why}")
        self._was_lost = True
        self.is_ready = False
        self._backlog.clear()
        asks, self._asks = self._asks, {}
        for answered in asks.values():
            answered(UNANSWERED, None)

    @property
    def has_room(self) -> bool:
        """Return whether there is a broker, and no message waits for room on the link."""
        return self.is_ready and not self._backlog

    def send(self, message: Message) -> None:
        """Send a message that the broker must get while the link lives: now, or when there is room."""
        if not self.is_ready or self.port is None:
            return
        if not self._backlog and self.port.send(message):
            return
        room = self._limits.link_room
        if len(self._backlog) < room:
            self._backlog.append(message)
            if len(self._backlog) < room:
                return
            # Without one of them the broker would have wrong sessions. What comes until the link is lost is void.
            self._reached["link_backlog"] += 1
            self._notice(f"{room} messages wait for room on the link to the broker; it is given up")
            self.port.give_up()

    def flush(self) -> bool:
        """Send the waiting messages, as far as there is room; return whether none is left."""
        while self._backlog and self.port is not None and self.port.send(self._backlog[0]):
            self._backlog.popleft()
        return not self._backlog

    def submit(self, messages: Sequence[Submit]) -> int:
        """Send messages in order, as far as there is room; return how many were sent."""
        if self._backlog or not self.is_ready or self.port is None:
            return 0
        return self.port.send_all(messages)

    def login(self, message: Login) -> bool:
        """Send a login if there is room now."""
        return not self._backlog and self.is_ready and self.port is not None and self.port.send(message)

    def ask(self, question: str, argument: Any, answered: Answered) -> bool:
        """Ask the broker. False where there is no broker or no room; `answered` is then not called."""
        token = next(self._tokens)
        self._asks[token] = answered
        if self.is_ready and self.port is not None and self.port.send(Ask(token, question, argument)):
            return True
        del self._asks[token]
        return False

    def on_answer(self, token: int, status: int, value: Any) -> None:
        """Pass the broker's answer to the caller of `ask`."""
        answered = self._asks.pop(token, None)
        if answered is not None:
            answered(status, value)
