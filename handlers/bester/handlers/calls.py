"""Pending calls of a worker to the broker: emits and questions without an answer, by token. Bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from bester.broker.fabric import FabricLink
from bester.broker.wire.codes import CODES, BesterError
from bester.broker.wire.messages import OP_OF, Answer, Ask, Emit, Error, Message
from bester.broker.wire.messages import Outcome as WireOutcome
from bester.handlers.runtime import Outcome

MAX_UNANSWERED = 1024
"""Emits and questions that may be pending at once; more are refused as `overloaded`."""
_ASKING = (OP_OF[Emit], OP_OF[Ask])


class PendingCalls:
    """Sends calls on one link and awaits the answers; `fail_all` fails the pending ones when the link is lost."""

    def __init__(self, link: FabricLink) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._last_token = 0
        self._ready = asyncio.Event()

    def set_ready(self) -> None:
        """Send the calls that waited for a broker, and those to come."""
        self._ready.set()

    async def ask(self, make: Callable[[int], Message], timeout_s: float) -> Any:
        """Send `make(token)` once there is a broker; return the answer. Raises BesterError where none comes."""
        if self._count >= MAX_UNANSWERED:
            raise BesterError("overloaded", f"{MAX_UNANSWERED} emits and questions are pending already")
        self._last_token += 1
        token = self._last_token
        self._count += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
                if not self._link.send(make(token)):
                    raise BesterError("unreachable", f"no link to the broker at {self._link.endpoint}")
                answer = self._waiting[token] = self._loop.create_future()
                return await answer
        except TimeoutError:
            text = f"the broker at {self._link.endpoint} did not answer in {timeout_s:g} s"
            raise BesterError("timeout", text) from None
        finally:
            self._count -= 1
            self._waiting.pop(token, None)

    def settle(self, message: Message) -> bool:
        """Match a message to a pending call; False: the message is no answer."""
        if isinstance(message, WireOutcome):
            answer: Any = Outcome(message.status == 0, message.recipients, message.reason, message.note)
        elif isinstance(message, Answer):
            answer = message.value if message.status == 0 else _refusal(message.value)
        elif isinstance(message, Error) and message.op in _ASKING and message.token is not None:
            answer = BesterError(message.code, message.text or message.code)
        else:
            return False
        assert message.token is not None
        future = self._waiting.pop(message.token, None)
        if future is not None and not future.done():
            if isinstance(answer, BesterError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        return True

    def fail_all(self, why: str) -> None:
        """Fail every pending call: the link was lost, and its answers with it."""
        self._ready.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(BesterError("unreachable", why))


def _refusal(value: Any) -> BesterError:
    code = value if isinstance(value, str) and value in CODES else "not-allowed"
    return BesterError(code, f"the broker refuses the question: {value}")
