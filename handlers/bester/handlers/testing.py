"""Tests an App without a broker: send a message, look at its commands, emits and questions.

tester = Tester(app, clients=["g"])
result = await tester.send("english", {"text": "hello"}, user="t")
assert result.commands == [Sent("sendClients", ["g"], {"text": "hello"})]
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

from bester.broker.wire.arguments import check_kind, check_text
from bester.broker.wire.batches import fault
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import (
    DONE,
    FAILED,
    MAX_BODY_BYTES,
    Ask,
    Command,
    Emit,
    Reply,
    Request,
    reply_code,
)
from bester.broker.wire.messages import Message as WireMessage
from bester.handlers.app import App, Route, Runs
from bester.handlers.message import Message
from bester.handlers.payload import text_of, value_of
from bester.handlers.reply import MISSING, ReplyError, body_of, commands_of, verdict_on
from bester.handlers.runtime import Outcome
from bester.handlers.threads import outcome_of

TOO_LONG = "the handler was cancelled at its time limit"


class Sent(NamedTuple):
    """A command with its body decoded."""

    command: str
    targets: list[str]
    data: Any
    type: str | None = None


class Result(NamedTuple):
    """End of a message: `status` 0 is done; else `reason` is the reason in the sender's report.

    `note`: the explanation, in the sender's report where the message was refused (status 2), otherwise in the log
    alone. `error`: the exception raised.
    """

    status: int
    commands: list[Sent]
    note: str | None = None
    error: BaseException | None = None
    reason: str | None = None


class Emitted(NamedTuple):
    """An emit of the app."""

    type: str
    commands: list[Sent]
    id: str | None


class Tester:
    """Runs an app's handlers in the test itself. `emitted` and `asked` list its emits and questions.

    Start hooks run before the first message, stop hooks at the end of `async with Tester(app) as tester`, or of each
    `run` outside of it; `app.states.provide(value)` puts a stand-in before the state that they make.

    `clients`: users that questions find connected. `outcome`: the outcome of each emit. `answers` overrides answers:
    question → value, or a function of the argument (which may raise BesterError).
    """

    __test__ = False  # pytest: not a test case

    def __init__(self, app: App, *, clients: Iterable[str] = (), server: str = "test") -> None:
        check_kind("app", app, App, "an App of bester.handlers")
        check_text("server", server)
        if isinstance(clients, str | bytes) or not isinstance(clients, Iterable):
            raise TypeError(f'clients are names of users, as in ["g"], not {clients!r}')
        self.app = app
        self.server = server
        self.clients = list(clients)
        self.answers: dict[str, Any] = {}
        self.outcome: Outcome | BesterError = Outcome(True, {})
        self.emitted: list[Emitted] = []
        self.asked: list[tuple[str, Any]] = []
        self._counter = itertools.count(1)
        self._running = 0
        self._prepared = False

    async def send(
        self, type_: str, data: Any = None, *, user: str | None = None, raw: bytes | str | None = None, **meta: Any
    ) -> Result:
        """Send the app one message and wait for its result. `raw`: JSON text instead of `data`. `meta` may hold id,
        root, origin, peer, scope, attempt, path. Raises KeyError where the app has no handler of the type."""
        route = self.app.route(type_)
        id_ = f"{self.server}/test/{next(self._counter)}"
        scope = "server" if user is None else "client"
        meta = {"id": id_, "root": id_, "origin": self.server, "scope": scope, "attempt": 1, "path": []} | meta
        if user is not None:
            check_text("user", user)
        body = text_of(data) if raw is None else body_of(MISSING, raw)
        message = Message(Request(1, type_, body, user, meta))
        await self._prepare()
        with self._attached():
            reply, error = await self._carry_out(route, message)
        reason = None if reply.status == DONE else reply_code(reply.status, reply.code)
        return Result(reply.status, [_sent(command) for command in reply.commands], reply.note, error, reason)

    async def reply(self, request: Request) -> Reply:
        """Run the handler of a REQUEST; return the REPLY that a worker would send. Raises ValueError where the app has
        no handler of the type."""
        route = self.app.serving([request.type])[request.type]
        await self._prepare()
        with self._attached():
            reply, _ = await self._carry_out(route, Message(request))
        return reply._replace(token=request.token)

    async def _carry_out(self, route: Route, message: Message) -> tuple[Reply, BaseException | None]:
        limit: asyncio.Timeout | None = None
        try:
            if route.runs is Runs.THREAD:
                result, failure = await asyncio.to_thread(outcome_of, route.call, message)
                if failure is not None:
                    return _failed(failure)
            else:
                result = route.call(message)
                if route.runs is Runs.LOOP:
                    async with asyncio.timeout(route.timeout_s) as limit:
                        result = await result
            return Reply(0, DONE, _sendable(commands_of(result))), None
        except (Exception, SystemExit, GeneratorExit, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the test was cancelled, not the handler
            if limit is not None and limit.expired():
                return Reply(0, FAILED, [], TOO_LONG, "timeout"), error
            return _failed(error)  # any exception of the user's function is its failure

    def run(self, type_: str, data: Any = None, **options: Any) -> Result:
        """Send as `send` does, for tests without a loop."""

        async def once() -> Result:
            try:
                return await self.send(type_, data, **options)
            finally:
                await self._end()

        return asyncio.run(once())

    async def __aenter__(self) -> Self:
        await self._prepare()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _prepare(self) -> None:
        if not self._prepared:
            self._prepared = True
            await self.app.start()

    async def _end(self) -> None:
        if self._prepared:
            self._prepared = False
            await self.app.stop()

    async def tick(self, function: Callable[[], Any]) -> None:
        """Call the function of a timer or task once, as the app would."""
        await self._prepare()
        with self._attached():
            if inspect.iscoroutinefunction(function):
                await function()
            else:
                _, failure = await asyncio.to_thread(outcome_of, function)
                if failure is not None:
                    raise failure

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """Attach the app while any of its handlers runs; several may run at once."""
        self.loop = asyncio.get_running_loop()
        if not self._running:
            self.app.attach(self)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self.app.detach()

    async def emit(self, type_: str, commands: list[Command], id_: str | None, timeout_s: float) -> Outcome:
        """Record an emit of the app; return `outcome`."""
        _check(Emit(0, type_, commands, {"id": id_}))
        self.emitted.append(Emitted(type_, [_sent(command) for command in commands], id_))
        if isinstance(self.outcome, BesterError):
            raise self.outcome
        return self.outcome

    async def ask(self, question: str, argument: Any, timeout_s: float) -> Any:
        """Record a question of the app; return the answer."""
        _check(Ask(0, question, argument))
        self.asked.append((question, argument))
        if question in self.answers:
            answer = self.answers[question]
            return answer(argument) if callable(answer) else answer
        if question == "isClient":
            return argument in self.clients
        if question == "listClients":
            return list(self.clients)
        return {"adminInfo": None, "clientCount": str(len(self.clients)), "listeners": {}}


def _check(message: WireMessage) -> None:
    """Raise ValueError for a message that a worker could not send."""
    wrong = fault(message, MAX_BODY_BYTES)
    if wrong is not None:
        raise ValueError(wrong.text)


def _sendable(commands: list[Command]) -> list[Command]:
    """Return the commands of a reply. Raises ReplyError where the worker or the broker would refuse them."""
    try:
        _check(Reply(0, DONE, commands))
        for command in commands:
            value_of(command.body)
    except ValueError as error:
        raise ReplyError(str(error)) from None
    return commands


def _failed(error: BaseException) -> tuple[Reply, BaseException]:
    status, note, code, _ = verdict_on(error)
    return Reply(0, status, [], note, code), error


def _sent(command: Command) -> Sent:
    return Sent(command.command, command.targets, value_of(command.body), command.type)
