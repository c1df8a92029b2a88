"""Outcomes: the words for the fate of one result of a message, and the rules that order, read and name them.

An outcome is `delivered`, `queued`, `sent` or `failed:CODE`, CODE being one of `codes.CODES`. The broker, bridges and
clients write and read outcomes by this module alone. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bester.broker.wire.codes import CODES

DELIVERED = "delivered"
"""The bytes were written to a connection of the recipient, or acknowledged where the recipient acknowledges."""
QUEUED = "queued"
"""The message is on disk, here or at another server; a later outcome follows."""
SENT = "sent"
"""A server that reports nothing has read the message."""
FAILED = "failed:"
"""Prefix of every other outcome; the reason, a code, follows."""
UNREACHABLE = FAILED + "unreachable"
"""A server has not answered. The meta of a bridge's answer says whether a connection was made."""
OUTCOME_TYPE = "bester.outcome"
"""Type of the messages that carry a later outcome, to a client or to a server."""

AGAIN = frozenset(
    {
        "no-handler",
        "overloaded",
        "unreachable",
        "mailbox-full",
        "storage-full",
        "storage-unavailable",
        "hello-first",
        "tls-required",
    }
)
"""Reasons for which another server refuses a message that it may take later, or once its operator has seen to it. A
message that failed with a handler there is among that server's dead letters: sending it again would process it
twice."""
MAX_MESSAGE_ID = 1024
"""Characters of a message's id in a question for its outcomes: several times as many as servers give."""

_PREFIX = len(FAILED)
_SEVERITY = {DELIVERED: 0, QUEUED: 1, SENT: 2}
_WORST = 3


def failed(code: str) -> str:
    """Return the outcome of a failure with this code."""
    return FAILED + code


def reason_of(outcome: str) -> str | None:
    """Return the code of a failed outcome, None for any other."""
    return outcome[_PREFIX:] if outcome.startswith(FAILED) else None


def is_final(outcome: str) -> bool:
    """Return whether an outcome is one that this version knows and that no other follows."""
    return outcome in (DELIVERED, SENT) or reason_of(outcome) in CODES


def severity(outcome: str) -> int:
    """Return the rank of an outcome: the higher, the worse. An unknown word ranks with the failures."""
    return _SEVERITY.get(outcome, _WORST)


def worst(*outcomes: str) -> str:
    """Return the outcome of the highest severity; the first of several. Raises ValueError where none is given."""
    return max(outcomes, key=severity)


def try_again(outcome: str, meta: Mapping[str, Any]) -> bool:
    """Return whether a message with this outcome at another server is worth sending again.

    `meta` is that of the server's answer: a message whose commands were carried out there is not sent again.
    """
    return reason_of(outcome) in AGAIN and meta.get("carried") is not True


def result_id(parent: str, command: int, target: int) -> str:
    """Return the id of a message's result: the same at every redelivery of the parent, unlike that of other results.

    `command` and `target` count from 0: the command in the reply, the target in the command.
    """
    return f"{parent}.{command}.{target}"
