"""Questions of the operator's HTTP side to the broker in the same process, over a direct link."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from bester.broker.server import Broker
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import VERSION, Answer, Ask, Hello, Message

ANSWER_S = 30.0
"""Time for an answer: thousands of dead letters may have to be read for it."""


class Desk:
    """An operator's link. Answers are those that `bester status`, `peers` and the like show."""

    def __init__(self, broker: Broker) -> None:
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._tokens = itertools.count(1)
        self._say = broker.attach(self._received)
        self._say((Hello(VERSION, "operator", "http", {}),))

    async def ask(self, question: str, argument: object = None) -> Any:
        """Return the value of the answer. Raises BesterError for a refusal, or where no answer comes in time."""
        token = next(self._tokens)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[token] = answer
        try:
            self._say((Ask(token, question, argument),))
            async with asyncio.timeout(ANSWER_S):
                found = await answer
        except TimeoutError:
            raise BesterError("timeout", f"no answer to {question!r} within {ANSWER_S:g} s") from None
        finally:
            self._waiting.pop(token, None)
        if found.status:
            raise BesterError("unknown-token", str(found.value or "there is no such thing"))
        return found.value

    def _received(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, Answer):
                answer = self._waiting.get(message.token)
                if answer is not None and not answer.done():
                    answer.set_result(message)
