"""Commands of a client to the server itself (messages of type `builtin`): close, ack, outcome, passwd. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bester.bridge import native
from bester.bridge.steps import Acknowledged, NewPassword, Step, guesser
from bester.bridge.window import OVERHEAD_BYTES, Question, Window

CLOSE: Final = "close"
"""Returned for the command that ends the stream, which is the session's to do."""


def carry_out(
    sent: native.Sent, step: Step, window: Window, tokens: Iterator[int], number: int, host: str, unacked: int
) -> str | None:
    """Carry out the command in a frame: its questions are pending in the window. Return the code of its fault, or
    CLOSE, or None.

    `number` and `host` are the session's; it may acknowledge `unacked` messages at once.
    """
    command = native.builtin(sent.data)
    match command.type if command is not None else None:
        case "close":
            return CLOSE
        case "ack":
            assert command is not None
            ids = native.texts(command.data)
            if ids is None or len(ids) > unacked:  # more than can be unacknowledged
                return "malformed"
            step.send.append(Acknowledged(ids))
        case "outcome":
            assert command is not None
            message = native.text(command.data)
            if message is None:
                return "malformed"
            question = Question(next(tokens), number, message)
            window.ask(question, sent.id, len(sent.data) + len(sent.id) + OVERHEAD_BYTES)
            step.send.append(question)
        case "passwd":
            assert command is not None
            passwords = native.passwords(command.data)
            if passwords is None:
                return "malformed"
            question = Question(next(tokens), number, "")
            window.ask(question, sent.id, len(sent.data) + len(sent.id) + OVERHEAD_BYTES)
            step.send.append(NewPassword(question, *passwords, guesser(host)))
        case _:
            return "unknown-command"
    return None
