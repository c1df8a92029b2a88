"""Emits and questions of an app on one link: checked, sent, and awaited.

An emit with an id that had no answer may have been carried out: the next one of that id says so to the broker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from bester.broker.fabric import FabricLink
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import Ask, Command, Emit, Meta
from bester.handlers.calls import PendingCalls
from bester.handlers.runtime import Outcome

MAX_UNSURE = 4096
"""Bound on emits with an id and without an answer, kept to mark a retry as one; the oldest is forgotten."""


Unsure = OrderedDict[tuple[str, str], None]
"""Types and ids of the emits that perhaps were carried out, the oldest first."""


class Emits:
    """Emits and questions on a link whose answers come through `calls`. `types` are those that the app serves."""

    def __init__(self, link: FabricLink, calls: PendingCalls, types: Collection[str], unsure: Unsure) -> None:
        self._link = link
        self._calls = calls
        self._types = types
        self._unsure = unsure

    async def emit(self, type_: str, commands: list[Command], id_: str | None, timeout_s: float) -> Outcome:
        """Emit as App.emit does."""
        self.check(type_, commands, id_)
        if id_ is None:
            return await self._emit(type_, commands, {}, timeout_s)
        key = (type_, id_)
        meta: Meta = {"id": id_, "again": True} if key in self._unsure else {"id": id_}
        self._unsure[key] = None  # until there is an answer
        if len(self._unsure) > MAX_UNSURE:
            self._unsure.popitem(last=False)
        try:
            outcome = await self._emit(type_, commands, meta, timeout_s)
        except BesterError as error:
            if error.code not in ("timeout", "unreachable"):  # any other error is an answer, too
                self._unsure.pop(key, None)
            raise
        self._unsure.pop(key, None)
        return outcome

    def check(self, type_: str, commands: list[Command], id_: str | None) -> None:
        """Raise ValueError for an emit that cannot be sent."""
        self._check_message(Emit(0, type_, commands, {"id": id_}))
        if type_ not in self._types:
            raise ValueError(f"an app emits as one of its own types ({', '.join(self._types)}), not as {type_!r}")

    def _check_message(self, message: Emit | Ask) -> None:
        wrong = self._link.fault(message)
        if wrong is not None:
            raise ValueError(wrong.text)

    async def _emit(self, type_: str, commands: list[Command], meta: Meta, timeout_s: float) -> Outcome:
        outcome: Outcome = await self._calls.ask(lambda token: Emit(token, type_, commands, meta), timeout_s)
        return outcome

    def check_ask(self, question: str, argument: Any) -> None:
        """Raise ValueError for an invalid question."""
        self._check_message(Ask(0, question, argument))

    async def ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """Ask the broker. Raises BesterError where no answer comes, ValueError for an invalid question."""
        self.check_ask(question, argument)
        return await self._calls.ask(lambda token: Ask(token, question, argument), timeout_s)
