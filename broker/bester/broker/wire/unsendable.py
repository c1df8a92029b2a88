"""What follows where a message cannot be sent: what goes in its place, and what its receiver would have answered. Pure.

A message may hold what MessagePack cannot say (half a surrogate pair, a number beyond 64 bits), or more than a frame
may. It must hold up nothing behind it, and whoever waits for it, on either side, must hear of it at once.
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
)
from bester.broker.wire.outcomes import failed

ANSWERED_BY_ERROR = (Submit, Login, Ask, Emit, Relay)
"""Messages that a broker answers with an ERROR naming their token, where it cannot take them."""


def instead(message: Message, error: WireError) -> Message | None:
    """Return what is sent in place of an answer that cannot be: its asker waits for one. None for all else."""
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
        case Error():
            return Error("malformed", error.text, message.op, message.token)
    return None


def as_if(message: Message, error: WireError) -> Message | None:
    """Return what the receiver of a message that cannot be sent would have answered. None where nobody waits for it."""
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
