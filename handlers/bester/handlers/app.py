"""The App: functions registered as handlers of message types, timers, emits and questions.

Nothing runs here. A worker (or a test) takes the table of routes and runs them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal, NamedTuple, TypeVar

from bester.broker.wire.arguments import (
    check_flag,
    check_function,
    check_seconds,
    check_text,
    check_wait,
    check_whole,
)
from bester.broker.wire.messages import (
    MAX_CREDIT,
    MAX_ID,
    MAX_LEASE_MS,
    MAX_NAME,
    Command,
)
from bester.broker.wire.type_names import RESERVED_TYPES, spelling_fault
from bester.handlers.message import Message
from bester.handlers.middleware import Hooks, Middleware
from bester.handlers.payload import typed
from bester.handlers.reply import ReplyError, commands_of
from bester.handlers.retrying import MAX_RETRIES, retried
from bester.handlers.runtime import PATIENCE_S, Ask, Blocking, Outcome, Runtime, on_its_loop
from bester.handlers.states import States

DEFAULT_CREDIT = 256
"""Requests held at once. Enough to fill batches both ways; each costs the memory of its body."""
DEFAULT_THREADS = 16
"""Plain functions running at once."""
MAX_TIMEOUT_S = MAX_LEASE_MS / 1000
"""Longest time limit of a handler: the broker lets no message take longer."""

S = TypeVar("S")
Function = TypeVar("Function", bound=Callable[..., Any])


class Runs(Enum):
    """Way in which a handler's function runs."""

    LOOP = "loop"  # an async def, beside others
    THREAD = "thread"  # a plain def
    INLINE = "inline"  # a plain def that takes microseconds: called as the request is read


class Route(NamedTuple):
    """Handling of one message type. `call` takes the Message; its result is awaited where `runs` is LOOP. `function` is
    the app author's function, `name` its name in the log, `by_user` whether a user's messages are handled in order.
    `timeout_s`: seconds that a message may take (None: what the broker allows); `retries`: further calls after a
    failure; `contract`: the schema is sent to the broker."""

    call: Callable[[Message], Any]
    function: Callable[..., Any]
    name: str
    runs: Runs
    by_user: bool
    schema: dict[str, Any] | None
    timeout_s: float | None = None
    retries: int = 0
    contract: bool = True


class Timer(NamedTuple):
    """A function called every `period_s` seconds; with None once, when the link is first up."""

    function: Callable[[], Any]
    period_s: float | None


class App:
    """Handlers of a program. `name`: label at the broker. `credit`: requests held at once.

    `lease_ms`: how long the process may be silent while it holds a request; needed only for C code that holds the
    interpreter for seconds (30 s by default over ipc). `threads`: plain functions running at once. `version`: free text
    that the broker shows. `middleware`: hooks around every message.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        credit: int = DEFAULT_CREDIT,
        lease_ms: int | None = None,
        threads: int = DEFAULT_THREADS,
        version: str | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        if name is not None:
            check_text("name", name)
            if not 0 < len(name) <= MAX_NAME or not name.isprintable():
                raise ValueError(f"name has 1 to {MAX_NAME} printable characters")
        check_whole("credit", credit, 1, MAX_CREDIT)
        if lease_ms is not None:
            check_whole("lease_ms", lease_ms, 1, MAX_LEASE_MS)
        check_whole("threads", threads, 1)
        if version is not None:
            check_text("version", version)
        self.name = name
        self.credit = credit
        self.lease_ms = lease_ms
        self.threads = threads
        self.version = version
        self.routes: dict[str, Route] = {}
        self.timers: list[Timer] = []
        self.hooks = Hooks(middleware)
        self.states = States()
        self.ask = Ask(self)
        self.blocking = Blocking(self, self.ask)
        self._runtime: Runtime | None = None
        self._process: int | None = None

    # --- registration ---

    def handler(
        self,
        *types: str,
        order: Literal["user"] | None = None,
        inline: bool = False,
        timeout_s: float | None = None,
        retries: int = 0,
        contract: bool = True,
    ) -> Callable[[Function], Function]:
        """Register the function below as the handler of these message types.

        The function takes the message, and may take its data as a second parameter, checked against the annotation. An
        async def runs on the loop beside others; a plain def in a thread, or, with `inline=True`, on the loop at once
        (for functions of microseconds: every other handler waits). `order="user"`: a user's messages one at a time.

        `timeout_s`: seconds that one message may take, all retries together; an async handler is cancelled then, and
        the sender's report is `timeout`. `retries`: further calls where the function raises anything but HandlerError,
        after 0.1 s, 0.2 s, … up to 5 s. `contract=False`: the schema of a declared payload type stays here, and the
        broker lets every payload pass.
        """
        if not types or not all(type(type_) is str and type_ for type_ in types):
            raise TypeError('say which message types: @app.handler("english")')
        if order not in (None, "user"):
            raise ValueError(f'order is "user" or None, not {order!r}')
        check_flag("inline", inline)
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s, MAX_TIMEOUT_S)
        check_whole("retries", retries, 0, MAX_RETRIES)
        check_flag("contract", contract)
        for type_ in types:
            fault = spelling_fault(type_)
            if fault is not None:
                raise ValueError(fault)
            if type_ in RESERVED_TYPES:
                raise ValueError(f"messages of type {type_!r} belong to Bester itself; choose another name")
            if type_ in self.routes:
                raise ValueError(f"there is a handler of {type_!r} already")

        def register(function: Function) -> Function:
            """Make the function the handler of the types, and return it unchanged."""
            route = _route(function, inline, order == "user")._replace(
                timeout_s=timeout_s, retries=retries, contract=contract
            )
            if route.runs is Runs.INLINE and (retries or timeout_s is not None):
                raise TypeError(f"{route.name} is inline: it cannot wait for a retry, or be cancelled at a time limit")
            for type_ in types:
                self.routes[type_] = route
            return function

        return register

    on = handler
    """The same as `handler`, for short."""

    def every(self, seconds: float) -> Callable[[Function], Function]:
        """Call the function below every `seconds` seconds while the app runs; a slow call delays the next one."""
        check_seconds("a timer's period", seconds)

        def register(function: Function) -> Function:
            """Make the function a timer, and return it unchanged."""
            check_function("a timer", function)
            self.timers.append(Timer(function, float(seconds)))
            return function

        return register

    def task(self, function: Function) -> Function:
        """Run the async function below once, from the first link to the broker until the app ends."""
        if not inspect.iscoroutinefunction(function):
            raise TypeError("@app.task is for an async def; for a plain def see @app.every")
        self.timers.append(Timer(function, None))
        return function

    def on_start(self, function: Function) -> Function:
        """Run the function below before the app takes messages; the object that it returns is the state of its type.

        An async def is awaited; a plain def runs on the loop, as nothing else does yet.
        """
        self.states.add_start(function)
        return function

    def on_stop(self, function: Function) -> Function:
        """Run the function below after the app's last message. A parameter gets the state of its annotated type."""
        self.states.add_stop(function)
        return function

    def state(self, kind: type[S]) -> S:
        """Return the state of a type, made by a start hook. Raises LookupError where there is none."""
        if not isinstance(kind, type):
            raise TypeError(f"app.state takes the class of a state, not {kind!r}")
        return self.states.get(kind)

    async def start(self) -> None:
        """Run the start hooks, then those of the middleware; a second call does nothing until `stop`."""
        await self.states.start()
        self.hooks.on_start(self)

    async def stop(self) -> None:
        """Run the stop hooks of the middleware, then the app's own."""
        self.hooks.on_stop(self)
        await self.states.stop()

    def route(self, type_: str) -> Route:
        """Return the route of a type, with retries and middleware around its call. Raises KeyError."""
        route = self.routes[type_]
        call, awaited = route.call, route.runs is Runs.LOOP
        if route.retries:
            call = retried(call, route.retries, route.timeout_s, self.hooks.on_retry, awaited=awaited)
        if self.hooks:
            call = self.hooks.around(call, awaited=awaited)
        return route if call is route.call else route._replace(call=call)

    def serving(self, types: Sequence[str] | None) -> dict[str, Route]:
        """Return the routes for these types, all where it is None. Raises ValueError that names a missing type.

        An app with a single handler serves any type: the type in its decorator is then a default.
        """
        if not self.routes:
            raise ValueError('the app has no handlers: put @app.handler("TYPE") above a function')
        known = list(self.routes)
        only = known[0] if all(self.routes[type_] is self.routes[known[0]] for type_ in known) else None
        found: dict[str, Route] = {}
        for type_ in known if types is None else types:
            own = type_ if type_ in self.routes else only
            if own is None:
                raise ValueError(f"the app has no handler of {type_!r}, only of {', '.join(sorted(self.routes))}")
            found[type_] = self.route(own)
        return found

    # --- running ---

    @property
    def runtime(self) -> Runtime:
        """Runtime of the app. Raises RuntimeError while the app is not running."""
        if self._process not in (None, os.getpid()):
            raise RuntimeError("this process is a fork of the one that runs the app, which alone may emit and ask")
        if self._runtime is None:
            raise RuntimeError("the app is not running: emit and ask work inside handlers, timers and tasks")
        return self._runtime

    def attach(self, runtime: Runtime) -> None:
        """Set the runtime; an app runs once at a time."""
        if self._runtime is not None:
            raise RuntimeError("the app is running already")
        self._runtime = runtime
        self._process = os.getpid()

    def detach(self) -> None:
        """Clear the runtime."""
        self._runtime = None

    async def emit(
        self,
        type_: str,
        commands: Command | Sequence[Command],
        id: str | None = None,  # noqa: A002 (the name users know from `message.id`)
        timeout_s: float = PATIENCE_S,
    ) -> Outcome:
        """Have commands carried out on the app's own initiative, as one of its types, and wait for their outcome.

        `id` makes a retry after an error safe: one id is carried out once. Raises BesterError where the broker is away,
        refuses, or does not answer in time; ValueError for a message that cannot be sent, and for an invalid id.
        """
        if id is not None and not isinstance(id, str):
            raise ValueError(f"an emit's id is a string, not a {type(id).__name__}")
        if id is not None and not 0 < len(id) <= MAX_ID:
            raise ValueError(f"an emit's id has 1 to {MAX_ID} characters, not {len(id)}")
        if not isinstance(type_, str):
            raise ValueError(f"an emit's type is a string, not a {type(type_).__name__}")
        check_wait("timeout_s", timeout_s)
        try:
            effects = commands_of(commands)
        except ReplyError:
            kind = type(commands).__name__
            raise ValueError(
                f"an emit takes one command or a list of them, as of send_clients(…), not a {kind}"
            ) from None
        return await on_its_loop(self.runtime).emit(type_, effects, id, timeout_s)


def _route(function: Callable[..., Any], inline: bool, by_user: bool) -> Route:
    check_function("a handler", function)
    call = getattr(function, "__call__", function)  # noqa: B004 (an object with an async __call__ counts)
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{name} yields; a handler returns one command or a list of them")
    on_loop = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
    if on_loop and inline:
        raise TypeError(f"{name} is an async def; inline=True is for a plain one")
    runs = Runs.LOOP if on_loop else Runs.INLINE if inline else Runs.THREAD
    takes_data, declared = _payload_type(function, name)
    if not takes_data:
        return Route(function, function, name, runs, by_user, None)
    if declared is None:
        return Route(lambda message: function(message, message.data), function, name, runs, by_user, None)
    decode, schema = typed(declared)
    return Route(lambda message: function(message, decode(message.raw)), function, name, runs, by_user, schema)


def _payload_type(function: Callable[..., Any], name: str) -> tuple[bool, Any]:
    """Return whether the function takes data as its second parameter, and the declared type (None: any)."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not positional or len(needed) > 2 or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise TypeError(f"{name} takes {len(needed)} parameters; a handler takes (message) or (message, data)")
    if len(positional) == 1 or positional[1].default is not inspect.Parameter.empty:
        return False, None
    annotation = positional[1].annotation
    if isinstance(annotation, str):
        annotation = _evaluate(annotation, function, name)
    return True, None if annotation in (inspect.Parameter.empty, Any) else annotation


def _evaluate(annotation: str, function: Callable[..., Any], name: str) -> Any:
    """Return the type that an annotation names (`from __future__ import annotations` leaves text)."""
    plain = inspect.unwrap(function)
    try:
        return eval(annotation, getattr(plain, "__globals__", {}))  # noqa: S307 (the module's own source)
    except NameError as error:
        raise TypeError(f"{name}: {error}; define the payload's type at the top of the module") from None
