"""Middleware: hooks around every message of an app, and at the start and the end of its process.

A middleware is a subclass of Middleware that overrides the hooks it needs; the others do nothing. `App(middleware=[…])`
registers it. Hooks are plain functions, called where the handler's function runs (on the loop, or in its thread), so
they must be quick.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bester.broker.logs import facts
from bester.broker.wire.arguments import check_kind
from bester.broker.wire.notes import class_name
from bester.handlers.message import Message

if TYPE_CHECKING:
    from bester.handlers.app import App

log = logging.getLogger("bester.handlers")


class Middleware:
    """Base of all middleware: hooks that do nothing.

    The hooks of several middlewares run in their order before a message, and in reverse after it. An exception in
    `before_message` is the handler's own failure (a HandlerError refuses the message); an exception in a later hook of
    a message, or in `on_stop`, is logged and changes nothing.
    """

    def on_start(self, app: App) -> None:
        """Run before the app takes messages, after its start hooks."""

    def on_stop(self, app: App) -> None:
        """Run after the app's last message, before its stop hooks."""

    def before_message(self, message: Message) -> None:
        """Run before the handler."""

    def after_message(self, message: Message, result: Any) -> None:
        """Run after a handler that has returned `result`, its commands."""

    def on_error(self, message: Message, error: BaseException) -> None:
        """Run after a handler that has raised, the last of its retries included."""

    def on_retry(self, message: Message, error: BaseException, retry: int, delay_s: float) -> None:
        """Run when a handler has raised and is called again in `delay_s` seconds, as retry number `retry` (1, 2, …)."""


class Hooks:
    """Hooks of all middlewares of one app."""

    def __init__(self, middleware: Sequence[Middleware]) -> None:
        if not isinstance(middleware, list | tuple):
            raise TypeError(f"middleware is a list of Middleware objects, not a {class_name(middleware)}")
        for each in middleware:
            check_kind("a middleware", each, Middleware, "an object of a subclass of Middleware")
        self._all = tuple(middleware)
        self._reversed = self._all[::-1]

    def __bool__(self) -> bool:
        return bool(self._all)

    def on_start(self, app: App) -> None:
        """Call every `on_start`; an exception ends the start."""
        for each in self._all:
            each.on_start(app)

    def on_stop(self, app: App) -> None:
        """Call every `on_stop`."""
        for each in self._reversed:
            _call(each, "on_stop", app)

    def before(self, message: Message) -> None:
        """Call every `before_message`; an exception is the handler's own failure."""
        for each in self._all:
            each.before_message(message)

    def after(self, message: Message, result: Any) -> None:
        """Call every `after_message`."""
        for each in self._reversed:
            _call(each, "after_message", message, result)

    def on_error(self, message: Message, error: BaseException) -> None:
        """Call every `on_error`."""
        for each in self._reversed:
            _call(each, "on_error", message, error)

    def on_retry(self, message: Message, error: BaseException, retry: int, delay_s: float) -> None:
        """Call every `on_retry`."""
        for each in self._reversed:
            _call(each, "on_retry", message, error, retry, delay_s)

    def around(self, call: Callable[[Message], Any], *, awaited: bool) -> Callable[[Message], Any]:
        """Return `call` with the hooks around it; `awaited`: its result is a coroutine."""

        async def call_async(message: Message) -> Any:
            """Await the handler's function between the hooks."""
            try:
                self.before(message)
                result = await call(message)
            except BaseException as error:
                self.on_error(message, error)
                raise
            self.after(message, result)
            return result

        def call_plain(message: Message) -> Any:
            """Call the handler's function between the hooks."""
            try:
                self.before(message)
                result = call(message)
            except BaseException as error:
                self.on_error(message, error)
                raise
            self.after(message, result)
            return result

        return call_async if awaited else call_plain


def _call(middleware: Middleware, hook: str, *arguments: Any) -> None:
    try:
        getattr(middleware, hook)(*arguments)
    except Exception:
        name = class_name(middleware)
        fields = facts("middleware-failed", middleware=name, hook=hook)
        log.exception("%s.%s failed; the message goes on", name, hook, extra=fields)
