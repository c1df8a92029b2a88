"""The table of operations: one row a message, in the order of the wire."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from bester.broker.wire.messages import INT, OP_OF, OPERATIONS, Command, Malformed, Message, Operation

rows = pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.message.__name__)


def test_every_message_has_one_row() -> None:
    assert sorted(OP_OF.values()) == [row.op for row in OPERATIONS]
    assert set(OP_OF) == set(get_args(Message))


@rows
def test_row_describes_every_field(row: Operation) -> None:
    assert len(row.fields) == len(row.message.__annotations__)


@rows
def test_optional_field_has_a_default_or_is_always_sent(row: Operation) -> None:
    message: Any = row.message
    optional = list(message._fields)[row.required :]
    assert set(optional) <= set(message._field_defaults)


@rows
def test_bodies_and_commands_are_at_the_index_of_the_row(row: Operation) -> None:
    fields = list(row.message.__annotations__)
    assert row.body == (fields.index("body") if "body" in fields else None)
    assert row.commands == (fields.index("commands") if "commands" in fields else None)


@rows
def test_answer_starts_with_the_token_of_its_request(row: Operation) -> None:
    if row.op >= 10:
        assert row.fields[0] is INT


def test_messages_are_frozen() -> None:
    command = Command("sendClients", ["a"], b"1")
    with pytest.raises(AttributeError):
        command.body = b"2"  # type: ignore[misc]  # the point of the test
    assert Malformed("malformed", "x").token is None


def test_the_published_tables_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fabric-protocol.md").read_text(encoding="utf-8")
    published = re.findall(r"^\| (\d+) \| ([A-Z]+) \| (.*?) \|", page, re.MULTILINE)
    ours = []
    for row in OPERATIONS:
        names = [f"{name}?" if at >= row.required else name for at, name in enumerate(row.message.__annotations__)]
        ours.append((str(row.op), row.message.__name__.upper(), ", ".join(f"`{name}`" for name in names) or "–"))
    assert published == ours
