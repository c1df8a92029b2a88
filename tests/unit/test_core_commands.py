"""Sound and unsound replies, and the ids of their results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.core.commands import fault
from bester.broker.wire.messages import MAX_BODY_BYTES, MAX_REPLY_BYTES, MAX_TARGETS, Command, Report
from tests.unit.core_stand import Stand

LONG = b'"' + b"x" * (MAX_BODY_BYTES - 2) + b'"'


@pytest.mark.parametrize(
    "commands",
    [
        [],
        [Command("sendClients", ["a", "a"], b"null")],
        [Command("sendClients", [], b"1")],
        [Command("sendServers", ["s2", "127.0.0.1:1"], b'{"a":[1]}', "other")],
        [Command("sendHandler", ["t"], b"[]"), Command("sendClients", ["a"], b"1e400")],
        [Command("sendClients", ["a"], LONG)] * 4,
    ],
)
def test_sound(commands: list[Command]) -> None:
    assert fault(commands) is None


@pytest.mark.parametrize(
    ("commands", "code", "says"),
    [
        ([Command("sendAll", ["a"], b"1")], "unknown-command", "sendAll"),
        ([Command("", [], b"1")], "unknown-command", "sendClients"),
        ([Command("sendHandler", [], b"1")], "bad-reply", "exactly one"),
        ([Command("sendHandler", ["a", "b"], b"1")], "bad-reply", "exactly one"),
        ([Command("sendClients", ["a"], b"")], "bad-reply", "JSON"),
        ([Command("sendClients", ["a"], b"{")], "bad-reply", "JSON"),
        ([Command("sendClients", ["a"], b"01")], "bad-reply", "JSON"),
        ([Command("sendClients", ["a"], b'"\xff"')], "bad-reply", "UTF-8"),
        ([Command("sendClients", ["a"], b"[" * 65 + b"]" * 65)], "bad-reply", "deeper"),
        ([Command("sendClients", ["a"], b"1" * (MAX_BODY_BYTES + 1))], "bad-reply", str(MAX_BODY_BYTES)),
        ([Command("sendClients", ["a"] * (MAX_TARGETS + 1), b"1")], "bad-reply", str(MAX_TARGETS)),
        ([Command("sendClients", ["a"], b"1"), Command("sendClients", ["a"], b"x")], "bad-reply", "JSON"),
        ([Command("sendClients", ["a"], LONG)] * 5, "bad-reply", str(MAX_REPLY_BYTES)),
        (
            [Command("sendClients", [], LONG), Command("sendClients", [], LONG.replace(b"x", b"y"))] * 3,
            "bad-reply",
            "together",
        ),
        ([Command("sendServers", ["s2"], b"1", "t" * 129)], "bad-reply", "128"),
        ([Command("sendServers", ["s2"], b"1", "a,b")], "bad-reply", "without commas"),
        ([Command("sendServers", ["s2"], b"1", "a\n")], "bad-reply", "printable"),
        ([Command("sendServers", ["s2"], b"1", " a")], "bad-reply", "blanks"),
    ],
)
def test_unsound(commands: list[Command], code: str, says: str) -> None:
    wrong = fault(commands)
    assert wrong is not None
    assert wrong[0] == code
    assert says in wrong[1]


@given(st.text(max_size=200), st.binary(max_size=50), st.sampled_from([None, ""]))
def test_an_answer_with_the_messages_own_body_to_one_user_is_sound(name: str, body: bytes, type_: str | None) -> None:
    """The dispatcher does not ask for such a reply."""
    assert fault([Command("sendClients", [name], body, type_)], body) is None


@pytest.mark.parametrize(
    "unsound",
    [
        Command("sendClients", ["ann"], b"{"),
        Command("sendClients", ["ann"], b"1", "a,b"),
        Command("sendClients", ["ann"] * (MAX_TARGETS + 1), b"1"),
    ],
)
def test_an_unsound_answer_ends_its_message(unsound: Command) -> None:
    stand = Stand()
    bridge, echo = stand.bridge("ann"), stand.handler("echo")
    token = stand.submit(bridge, "echo", b"1")
    stand.answer(echo, unsound)
    report = stand.one(bridge, Report)
    assert (report.token, report.reason) == (token, "bad-reply")
