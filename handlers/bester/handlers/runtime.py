"""What a handler says of its own accord: emit, and questions; awaited on the loop, or blocking in a thread.

The app does not know what carries it out: a worker with a broker behind it, or a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from bester.broker.wire.messages import Command

T = TypeVar("T")
PATIENCE_S = 30.0
"""How long an emit or a question may take, a lost broker's return included."""


class Outcome(NamedTuple):
    """What became of an emit; `recipients` names everyone whose outcome is not `delivered`. `reason` is the first
    failure's code, `note` what a handler said that refused what was handed on to it."""

    good: bool
    recipients: dict[str, str]
    reason: str | None = None
    note: str | None = None


class Runtime(Protocol):
    """What runs an app: it has a loop, sends what is emitted and gets answers to questions."""

    loop: asyncio.AbstractEventLoop

    async def emit(self, type_: str, commands: list[Command], id_: str | None, timeout_s: float) -> Outcome:
        """Have commands carried out as a message of one of the app's types."""
        ...

    async def ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """Ask the broker."""
        ...


class Holder(Protocol):
    """An app, as this module sees it: it has an outlet while it runs."""

    @property
    def outlet(self) -> Runtime:
        """The outlet. Raises RuntimeError while the app is not running."""
        ...

    async def emit(
        self,
        type_: str,
        commands: Command | Sequence[Command],
        id: str | None = None,  # noqa: A002 (the name users know from `message.id`)
        timeout_s: float = PATIENCE_S,
    ) -> Outcome:
        """As App.emit."""
        ...


class Ask:
    """`await app.ask.is_client("g")`: what the server knows. Raises BesterError where there is no answer."""

    def __init__(self, app: Holder) -> None:
        self._app = app

    async def is_client(self, name: str, timeout_s: float = PATIENCE_S) -> bool:
        """Whether this user has a connection to the server now."""
        return bool(await self._app.outlet.ask("isClient", name, timeout_s))

    async def list_clients(self, timeout_s: float = PATIENCE_S) -> list[str]:
        """The users connected now."""
        return list(await self._app.outlet.ask("listClients", None, timeout_s))

    async def server_info(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """What the server says of itself."""
        return dict(await self._app.outlet.ask("serverInfo", None, timeout_s))


class Blocking:
    """The same for code in threads (handlers that are a plain def): `app.blocking.emit(…)`, `.is_client("g")`."""

    def __init__(self, app: Holder, ask: Ask) -> None:
        self._app = app
        self._ask = ask

    def emit(
        self,
        type_: str,
        commands: Command | Sequence[Command],
        id: str | None = None,  # noqa: A002 (the name users know from `message.id`)
        timeout_s: float = PATIENCE_S,
    ) -> Outcome:
        """As `App.emit`."""
        return self._wait(self._app.emit(type_, commands, id, timeout_s))

    def is_client(self, name: str, timeout_s: float = PATIENCE_S) -> bool:
        """As `Ask.is_client`."""
        return self._wait(self._ask.is_client(name, timeout_s))

    def list_clients(self, timeout_s: float = PATIENCE_S) -> list[str]:
        """As `Ask.list_clients`."""
        return self._wait(self._ask.list_clients(timeout_s))

    def server_info(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """As `Ask.server_info`."""
        return self._wait(self._ask.server_info(timeout_s))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            work.close()
            raise RuntimeError("app.blocking would stop the loop it waits for; in async code await app.emit, app.ask")
        try:
            loop = self._app.outlet.loop
        except RuntimeError:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, loop).result()
