"""Start and stop hooks of an app, and the typed state that start hooks make: `app.state(Shop)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from bester.broker.wire.arguments import check_function
from bester.handlers import forks

S = TypeVar("S")


class States:
    """State objects of one running app, by type, and the hooks that make and end them."""

    def __init__(self) -> None:
        self._starts: list[Callable[[], Any]] = []
        self._stops: list[Callable[..., Any]] = []
        self._values: list[Any] = []
        self._started = False

    def add_start(self, function: Callable[..., Any]) -> None:
        """Add a start hook. Raises TypeError for a function that takes parameters, or yields."""
        check_function("a start hook", function)
        name = getattr(function, "__qualname__", repr(function))
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{name} yields; a start hook returns the state, and @app.on_stop ends it")
        if _needed(function):
            raise TypeError(f"{name} takes parameters; a start hook takes none")
        self._starts.append(function)

    def add_stop(self, function: Callable[..., Any]) -> None:
        """Add a stop hook. Raises TypeError for a function that takes more than one parameter."""
        check_function("a stop hook", function)
        if len(_needed(function)) > 1:
            name = getattr(function, "__qualname__", repr(function))
            raise TypeError(f"{name} takes several parameters; a stop hook takes none, or the state of one type")
        self._stops.append(function)

    def __bool__(self) -> bool:
        return bool(self._starts or self._stops)

    def provide(self, value: Any) -> None:
        """Add a state object, before those of start hooks: a test's stand-in."""
        self._values.insert(0, value)

    def get(self, kind: type[S]) -> S:
        """Return the state of a type. Raises LookupError where no start hook has returned one."""
        for value in self._values:
            if isinstance(value, kind):
                return value
        known = ", ".join(sorted({type(value).__name__ for value in self._values})) or "none"
        raise LookupError(f"no start hook has returned a {kind.__name__} (there is {known}); see @app.on_start")

    async def start(self) -> None:
        """Run the start hooks in order, and keep what they return. An exception of a hook passes through. A copy of the
        process that a hook has forked ends with the hook: it would serve like the first one."""
        if self._started:
            return
        self._started = True
        origin = forks.process
        for function in self._starts:
            try:
                value = function()
                if inspect.isawaitable(value):
                    value = await value
            except BaseException as error:
                forks.end_copy(origin, error)
                raise
            forks.end_copy(origin)
            if value is not None:
                self._values.append(value)

    async def stop(self) -> None:
        """Run the stop hooks, the last first. All are run; the first exception is raised then."""
        if not self._started:
            return
        self._started = False
        failure: Exception | None = None
        for function in reversed(self._stops):
            try:
                ended = self._stop_with(function)
                if inspect.isawaitable(ended):
                    await ended
            except Exception as error:  # noqa: BLE001 (raised below, after the other hooks)
                failure = failure or error
        self._values.clear()
        if failure is not None:
            raise failure

    def _stop_with(self, function: Callable[..., Any]) -> Any:
        needed = _needed(function)
        if not needed:
            return function()
        kind = inspect.get_annotations(inspect.unwrap(function), eval_str=True).get(needed[0].name, object)
        fitting = [value for value in self._values if not isinstance(kind, type) or isinstance(value, kind)]
        return function(fitting[0]) if fitting else None  # without one the start hook has failed: nothing to end


def _needed(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
