"""Replies: commands with complete bodies, or an error at the faulty line."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, cast

import pytest

from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import Command, Request
from bester.handlers import HandlerError, Message, SchemaError, send_clients, send_handler, send_servers
from bester.handlers.payload import QuietError
from bester.handlers.reply import ReplyError, commands_of, verdict_on


def message(user: str | None = "t", body: bytes = b"1", **meta: Any) -> Message:
    return Message(Request(1, "english", body, user, meta))


class Name(StrEnum):
    BOB = "bob"


def test_name_of_an_enum_is_refused_and_never_taken_for_names_of_one_letter() -> None:
    for send in (send_clients, send_servers):
        with pytest.raises(TypeError, match="targets are strings, not Name"):
            send(Name.BOB, None)


def test_commands_are_compact_json_for_their_targets() -> None:
    assert send_clients(["g", "t"], {"a": [1, None]}) == Command("sendClients", ["g", "t"], b'{"a":[1,null]}')
    assert send_clients("bob", None) == Command("sendClients", ["bob"], b"null")
    assert send_clients((name for name in ("a", "b")), "é") == Command("sendClients", ["a", "b"], '"é"'.encode())
    assert send_servers(["s2", "h:1"], 1, as_type="M1") == Command("sendServers", ["s2", "h:1"], b"1", "M1")
    assert send_servers(["s2"], 1).type is None
    assert send_handler("english", 1) == Command("sendHandler", ["english"], b"1")


def test_raw_is_passed_unchanged() -> None:
    assert send_clients(["g"], raw=b' { "a" : 1e400 } ').body == b' { "a" : 1e400 } '
    assert send_handler("x", raw='"é"').body == '"é"'.encode()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: send_clients(["g"]), "no data: give data"),
        (lambda: send_clients(["g"], 1, raw=b"1"), "not both"),
        (lambda: send_clients(cast("list[str]", ["g", 7]), 1), "targets are strings, not int"),
        (lambda: send_clients(cast("list[str]", None), 1), "targets are strings, one or several, not a NoneType"),
        (lambda: send_handler(cast("str", ["x"]), 1), "takes one type, a string, not a list"),
        (lambda: send_clients(["g"], object()), "object"),
        (lambda: send_clients(["g"], raw=cast("bytes", 7)), "raw is JSON text"),
    ],
)
def test_wrong_command_raises_where_it_is_made(wrong: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        wrong()


def test_accepted_results_of_a_handler() -> None:
    one, two = send_clients(["g"], 1), send_handler("x", 2)
    assert commands_of(None) == []
    assert commands_of([]) == []
    assert commands_of(one) == [one]
    assert commands_of((one, two)) == [one, two]
    for wrong in (5, "g", {"to": "g"}, [one, None], (one, "x"), object()):
        with pytest.raises(ReplyError, match="the handler returned a"):
            commands_of(wrong)


def test_message_holds_the_meta_of_its_request() -> None:
    received = message(
        body=b'{"text":"hi"}',
        id="s1/a/1.0.0",
        root="s1/a/1",
        origin="s0",
        peer="s2",
        scope="server",
        attempt=2,
        path=["s1/x"],
    )
    assert received.data == {"text": "hi"}
    assert received.data is received.data
    assert (received.type, received.user, received.raw) == ("english", "t", b'{"text":"hi"}')
    assert (received.id, received.root, received.origin, received.peer) == ("s1/a/1.0.0", "s1/a/1", "s0", "s2")
    assert (received.scope, received.attempt, received.path) == ("server", 2, ["s1/x"])
    assert "hi" not in repr(received)
    bare = message()
    assert (bare.id, bare.peer, bare.scope, bare.attempt, bare.path) == ("", None, "client", 1, [])


def test_number_beyond_msgspec_is_decoded() -> None:
    assert message(body=b"1e400").data == float("inf")
    assert message(body=b"[-1%s]" % (b"0" * 5000)).data == [-float("inf")], "more digits than Python reads"
    assert message(body=b"123456789012345678901234567890").data == 123456789012345678901234567890


def test_reply_goes_to_the_sender_or_raises_without_one() -> None:
    assert message("t").reply({"a": 1}) == Command("sendClients", ["t"], b'{"a":1}')
    assert message("t").reply(raw=b"[ ]").body == b"[ ]"
    with pytest.raises(HandlerError, match="no user to reply to"):
        message(None).reply(1)


class SilentError(HandlerError):
    """A subclass that skips the constructor of HandlerError."""

    def __init__(self) -> None:
        pass


class ReasonedError(HandlerError):
    """A subclass with an attribute `reason` of its own."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"no, for {reason}")


class TextlessError(HandlerError):
    """A subclass whose text raises."""

    text: Any = property(lambda self: 1 / 0)

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (HandlerError("not today"), (2, "not today", None, True)),
        (HandlerError(cast("str", 7)), (2, "7", None, True)),
        (HandlerError("no \udcff\nhere"), (2, "no \ufffd here", None, True)),
        (HandlerError(""), (2, "the handler refused the message", None, True)),
        (SilentError(), (2, None, None, True)),
        (ReasonedError("a reason"), (2, "no, for a reason", None, True)),
        (TextlessError(), (2, None, None, True)),
        (SchemaError("data.to: expected an array"), (2, "data.to: expected an array", "schema", True)),
        (ReplyError("the handler returned a dict"), (1, "the handler returned a dict", "bad-reply", True)),
        (QuietError("no handler there"), (1, "no handler there", None, True)),
        (ValueError("bad"), (1, "ValueError: bad", None, False)),
        (BesterError("unreachable", "no broker"), (1, "BesterError: unreachable: no broker", None, False)),
        (SystemExit(3), (1, "SystemExit: 3", None, False)),
        (TimeoutError(), (1, "TimeoutError", None, False)),
    ],
    ids=repr,
)
def test_exception_sets_the_verdict(error: BaseException, verdict: tuple[Any, ...]) -> None:
    assert verdict_on(error) == verdict


def test_refusals_are_bester_errors_with_their_code() -> None:
    assert (HandlerError("x").code, SchemaError("x").code) == ("refused", "schema")
    assert isinstance(SchemaError("x"), HandlerError)
    assert isinstance(HandlerError("x"), BesterError)
