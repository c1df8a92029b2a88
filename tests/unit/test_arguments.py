"""Every argument of the client and of the kit of handlers: a wrong one fails at the call, and the error names it."""

import asyncio
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from bester.broker.core.settings import Limits as BrokerLimits
from bester.broker.wire.arguments import check_flag, check_seconds, check_text, check_wait, check_whole
from bester.broker.wire.messages import MAX_LEASE_MS
from bester.client import Client, Limits, blocking
from bester.client.core import Core
from bester.client.frames import Terms, text_of
from bester.handlers import App, Message, Middleware, send_clients, send_handler, send_servers
from bester.handlers.testing import Tester

ME: dict[str, Any] = {"address": "127.0.0.1:1", "user": "alice", "password": "secret"}


def app_of() -> App:
    """Return an app with one handler."""
    app = App()
    app.handler("letters")(plain)
    return app


def plain(message: Message) -> None:
    """Consume a message."""


async def waiting(message: Message) -> None:
    """Consume a message."""


def core_of() -> Core:
    """Return the core of a client."""
    return Core(server="s", user="alice", password="secret", dedup_prefix="d", random=lambda: 0.5)


def submit(type_: Any = "letters", data: Any = None, raw: Any = None, **terms: Any) -> None:
    """Submit as the client does."""
    core_of().submit(type_, text_of(data, raw), Terms(**terms))


def use(call: Callable[[App], Any]) -> None:
    """Await a call inside of a handler."""
    app = App()

    @app.handler("letters")
    async def letters(message: Message) -> None:
        await call(app)

    error = Tester(app).run("letters").error
    if error is not None:
        raise error


def emit(**given: Any) -> None:
    """Emit inside of a handler."""
    use(lambda app: app.emit(**({"type_": "letters", "commands": []} | given)))


CALLS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "App": (App, App),
    "App.handler": (App.handler, lambda **given: App().handler(given.pop("types", "letters"), **given)(waiting)),
    "App.every": (App.every, lambda **given: App().every(**given)(plain)),
    "App.task": (App.task, lambda **given: App().task(**given)),
    "App.on_start": (App.on_start, lambda **given: App().on_start(**given)),
    "App.on_stop": (App.on_stop, lambda **given: App().on_stop(**given)),
    "App.state": (App.state, lambda **given: App().state(**given)),
    "App.emit": (App.emit, emit),
    "is_client": (App().ask.is_client, lambda **given: use(lambda app: app.ask.is_client(**({"name": "g"} | given)))),
    "list_clients": (App().ask.list_clients, lambda **given: use(lambda app: app.ask.list_clients(**given))),
    "server_info": (App().ask.server_info, lambda **given: use(lambda app: app.ask.server_info(**given))),
    "send_clients": (send_clients, lambda **given: send_clients(**_command("users", given))),
    "send_servers": (send_servers, lambda **given: send_servers(**_command("servers", given))),
    "send_handler": (send_handler, lambda **given: send_handler(**_command("type_", given))),
    "Client": (Client, lambda **given: Client(**(ME | given))),
    "Client.submit": (Client.submit, submit),
    "Client.outcome": (Client.outcome, lambda **given: core_of().outcome(**given)),
    "Client.ack": (Client.ack, lambda **given: asyncio.run(Client(**ME, ack=True).ack(**given))),
    "Client.close": (Client.close, lambda **given: asyncio.run(Client(**ME).close(**given))),
    "blocking.Client": (blocking.Client, lambda **given: blocking.Client(**(ME | given))),
    "blocking.receive": (blocking.Client.receive, lambda **given: blocking.Client(**ME).receive(**given)),
    "blocking.ping": (blocking.Client.ping, lambda **given: blocking.Client(**ME).ping(**given)),
    "Limits": (Limits, lambda **given: Client(**ME, limits=Limits(**given))),
    "Tester": (Tester, lambda **given: Tester(**({"app": app_of()} | given))),
}
"""Each function of the public API, and a call of it that is right but for the arguments given."""

NAMED = {"types": "message types", "seconds": "period", "kind": "class of a state", "commands": "an emit takes",
         "type_": "type", "function": "hook|for an async def", "users": "targets", "servers": "targets",
         "name": "name", "id": "id", "data": "not JSON", "message": "message"}  # fmt: skip
"""The words for an argument where its error does not use its name."""


def _command(target: str, given: dict[str, Any]) -> dict[str, Any]:
    return {target: "g"} | ({} if "raw" in given else {"data": 1}) | given


def parameters() -> list[tuple[str, str]]:
    """Return each function with each of its arguments."""
    return [
        (name, parameter)
        for name, (function, _) in CALLS.items()
        for parameter in inspect.signature(function).parameters
        if parameter != "self"
    ]


@pytest.mark.parametrize(("name", "parameter"), parameters())
def test_an_argument_of_another_type_is_named(name: str, parameter: str) -> None:
    call = CALLS[name][1]
    for wrong in (object(), ["x"], 3 + 4j):
        if (name, parameter, type(wrong)) in FITTING:
            continue
        with pytest.raises((TypeError, ValueError), match=NAMED.get(parameter, parameter)):
            call(**{parameter: wrong})


FITTING = {
    ("send_clients", "users", list),
    ("send_servers", "servers", list),
    ("send_clients", "data", list),
    ("send_servers", "data", list),
    ("send_handler", "data", list),
    ("Client.submit", "data", list),
    ("Tester", "clients", list),
}
"""Values that are right for an argument after all."""


@pytest.mark.parametrize("middleware", ["Audit", [Middleware], [None], None, {"audit": Middleware()}])
def test_middleware_is_a_list_of_objects(middleware: Any) -> None:
    with pytest.raises(TypeError, match="middleware"):
        App(middleware=middleware)


def test_a_handler_is_a_function() -> None:
    for wrong in (None, "letters", 5):
        with pytest.raises(TypeError, match="a handler is a function, not"):
            App().handler("letters")(wrong)  # type: ignore[type-var]  # the fault that is tested
        with pytest.raises(TypeError, match="a timer is a function, not"):
            App().every(1)(wrong)  # type: ignore[type-var]  # as above


def test_a_name_is_one_that_a_broker_takes() -> None:
    for wrong in ("", "a\nb", "n" * 129):
        with pytest.raises(ValueError, match="name has 1 to 128 printable characters"):
            App(wrong)
    with pytest.raises(ValueError, match="lease_ms is 1 to 600000, not 600001"):
        App(lease_ms=MAX_LEASE_MS + 1)
    assert BrokerLimits().max_lease_s * 1000 == MAX_LEASE_MS


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Client(**ME, ack="no"), "ack is True or False, not a str"),  # type: ignore[arg-type]  # tested here
        (lambda: Client(**ME, give_up_s=math.nan), "give_up_s is a number of seconds, not nan"),
        (lambda: Client(**ME, limits=Limits(window=0)), "limits.window is at least 1, not 0"),
        (lambda: Client(**ME | {"user": "\ud800"}), "user has half a surrogate pair"),
        (lambda: submit(type_=5), "a message's type is a string, not an int"),
        (lambda: submit(raw='"\ud800"'), "raw has half a surrogate pair"),
        (lambda: submit(data="\ud800"), "a text of it has half a surrogate pair"),
        (lambda: submit(dedup=b"key"), "dedup is a string, not a bytes"),
        (lambda: submit(ttl_s=math.nan), "ttl_s is a number of seconds, not nan"),
        (lambda: send_clients("g", "\ud800"), "a text of the data has half a surrogate pair"),
        (lambda: App(credit=True), "credit is a whole number, not a bool"),
        (lambda: emit(commands=["hello"]), "an emit takes one command or a list of them"),
        (lambda: Tester(app_of(), clients="g"), "clients are names of users"),
    ],
)
def test_the_sentence_says_what_is_right(call: Callable[[], Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call()


def test_what_is_right_passes() -> None:
    check_text("name", "äpfel\U0001f600", 6)
    check_whole("credit", 5, 1, 5)
    check_seconds("ttl_s", math.inf)
    assert check_wait("timeout_s", -1.5) == -1.5, "a time that is over is none that is wrong"
    check_flag("ack", False)
