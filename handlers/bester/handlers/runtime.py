"""Emits and questions of an app: awaited on the loop, or blocking in a thread.

The app knows its runtime by a protocol alone: a worker with a broker behind it, or a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from bester.broker.wire.arguments import check_wait
from bester.broker.wire.messages import Command

T = TypeVar("T")
PATIENCE_S = 30.0
"""Seconds that an emit or a question may take, the return of a lost broker included."""


class Outcome(NamedTuple):
    """Outcome of an emit; `recipients` names everyone whose outcome is not `delivered`. `reason`: the first failure's
    code. `note`: the text of a handler that refused a result."""

    good: bool
    recipients: dict[str, str]
    reason: str | None = None
    note: str | None = None


class Runtime(Protocol):
    """Runs an app: has a loop, sends its emits and answers its questions."""

    loop: asyncio.AbstractEventLoop

    async def emit(self, type_: str, commands: list[Command], id_: str | None, timeout_s: float) -> Outcome:
        """Have commands carried out as a message of one of the app's types; return the outcome."""
        ...

    async def ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """Ask the broker; return the answer."""
        ...


def on_its_loop(runtime: Runtime) -> Runtime:
    """Return a runtime. Raises RuntimeError in any other loop than its own, where an answer would never be awaited."""
    if asyncio.get_running_loop() is not runtime.loop:
        raise RuntimeError("emit and ask are for the loop that runs the app; in a thread use app.blocking")
    return runtime


class Holder(Protocol):
    """An app, as this module sees it: with a runtime while it runs."""

    @property
    def runtime(self) -> Runtime:
        """The runtime. Raises RuntimeError while the app is not running."""
        ...

    async def emit(
        self,
        type_: str,
        commands: Command | Sequence[Command],
        id: str | None = None,  # noqa: A002 (the name users know from `message.id`)
        timeout_s: float = PATIENCE_S,
    ) -> Outcome:
        """Emit as App.emit does."""
        ...


class Ask:
    """Questions to the server: `await app.ask.is_client("g")`. Raises BesterError where there is no answer."""

    def __init__(self, app: Holder) -> None:
        self._app = app

    async def is_client(self, name: str, timeout_s: float = PATIENCE_S) -> bool:
        """Return whether this user has a connection to the server now."""
        if not isinstance(name, str):
            raise ValueError(f"is_client takes a user's name, a string, not a {type(name).__name__}")
        check_wait("timeout_s", timeout_s)
        return bool(await on_its_loop(self._app.runtime).ask("isClient", name, timeout_s))

    async def list_clients(self, timeout_s: float = PATIENCE_S) -> list[str]:
        """Return the users connected now."""
        check_wait("timeout_s", timeout_s)
        return list(await on_its_loop(self._app.runtime).ask("listClients", None, timeout_s))

    async def server_info(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Return the server's description of itself."""
        check_wait("timeout_s", timeout_s)
        return dict(await on_its_loop(self._app.runtime).ask("serverInfo", None, timeout_s))


class Blocking:
    """Emits and questions for threads (handlers that are a plain def): `app.blocking.emit(…)`, `.is_client("g")`."""

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
        """Emit as `App.emit` does."""
        return self._wait(self._app.emit(type_, commands, id, timeout_s))

    def is_client(self, name: str, timeout_s: float = PATIENCE_S) -> bool:
        """Ask as `Ask.is_client` does."""
        return self._wait(self._ask.is_client(name, timeout_s))

    def list_clients(self, timeout_s: float = PATIENCE_S) -> list[str]:
        """Ask as `Ask.list_clients` does."""
        return self._wait(self._ask.list_clients(timeout_s))

    def server_info(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Ask as `Ask.server_info` does."""
        return self._wait(self._ask.server_info(timeout_s))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            work.close()
            raise RuntimeError("app.blocking would block the loop; in async code await app.emit and app.ask")
        try:
            loop = self._app.runtime.loop
        except RuntimeError:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, loop).result()
