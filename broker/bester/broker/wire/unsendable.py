"""Substitutes for messages that cannot be sent, and the answers that their receivers would have given. Pure.

A message may hold a value that MessagePack cannot express (half a surrogate pair, a number beyond 64 bits), or exceed a
limit of a frame. Such a message must delay no other, and the side that waits for the message or its answer must be
informed at once.
"""

from __future__ import annotations

from bester.broker.wire.codes import WireError
from bester.broker.wire.messages import (
    FAILED,
    OP_OF,
    Answer,
    Ask,
    Confirm,
    Deliver,
    Emit,
    Error,
    Forward,
    Forwarded,
    LoggedIn,
    Login,
    Message,
    Outcome,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
    Submit,
    Trace,
    Traced,
)
from bester.broker.wire.outcomes import failed

ANSWERED_BY_ERROR = (Submit, Login, Ask, Emit, Relay, Trace)
"""Messages that a broker refuses by an ERROR with their token."""


def substitute(message: Message, error: WireError) -> Message | None:
    """Return the message to send in place of an answer that cannot be sent, as its requester waits; None for any
    other."""
    match message:
        case Reply():
            return Reply(message.token, FAILED, [], error.text, "bad-reply")
        case Report():
            return Report(message.token, 1, error.code, None, {})
        case Outcome():
            return Outcome(message.token, 1, {}, error.code)
        case Answer():
            return Answer(message.token, 1)
        case LoggedIn():
            return LoggedIn(message.session, 1, error.code)
        case Relayed():
            return Relayed(message.token, failed(error.code))
        case Forwarded():
            return Forwarded(message.token, failed(error.code))
        case Traced():
            return Traced(message.token, [], {"why": error.code})
        case Error():
            return Error("malformed", error.text, message.op, message.token)
    return None


def expected_answer(message: Message, error: WireError) -> Message | None:
    """Return the answer that the receiver would have given to a message that cannot be sent; None if no answer is
    awaited."""
    match message:
        case Request():
            return Reply(message.token, FAILED, [], error.text)
        case Forward():
            return Forwarded(message.token, failed(error.code))
        case Deliver():
            serial = message.serial
            return Confirm(0, [serial], [[serial, target[0], error.code] for target in message.targets])
    if isinstance(message, ANSWERED_BY_ERROR):
        return Error(error.code, error.text, OP_OF[type(message)], message[0])
    return None
