"""What a handler's reply asks for: is it sound, and what results does it have."""

from __future__ import annotations

from bester.broker.wire import json_text
from bester.broker.wire.messages import COMMANDS, MAX_BODY_BYTES, Command

MAX_TARGETS = 10_000
"""Targets of one reply; as many as a bridge is made to hold users, and few enough to be carried out in one turn."""


def fault(commands: list[Command], checked: bytes | None = None) -> tuple[str, str] | None:
    """Return (code, text) where a reply cannot be carried out, None where it can. All or nothing is carried out.

    `checked` is a body that was checked before: that of the message, which many handlers pass on as it came.
    """
    targets = 0
    for command in commands:
        if command.command not in COMMANDS:
            return "unknown-command", f"no command {command.command!r}; there are {', '.join(COMMANDS)}"
        if command.command == "sendHandler" and len(command.targets) != 1:
            return "bad-reply", "sendHandler has exactly one target"
        targets += len(command.targets)
        if targets > MAX_TARGETS:
            return "bad-reply", f"more than {MAX_TARGETS} targets"
        body = command.body
        if body == checked:
            continue
        if len(body) > MAX_BODY_BYTES:
            return "bad-reply", f"a body of {len(body)} bytes; {MAX_BODY_BYTES} are allowed"
        wrong = json_text.fault(body)
        if wrong is not None:
            return "bad-reply", f"the body is not JSON text: {wrong}"
        checked = body
    return None


def result_id(parent: str, command: int, target: int) -> str:
    """Return the id of a result: the same at every redelivery of the parent, different between results."""
    return f"{parent}.{command}.{target}"
