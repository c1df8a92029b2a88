"""Every reason Bester can give, and the one error tree that carries them.

The table below is the only list of codes: the documentation is checked against
it, and a code that is not in it cannot be raised.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """One row of the table: may trying again help, and what happened."""

    temporary: bool
    meaning: str


T, P = True, False

CODES: dict[str, Code] = {
    "malformed": Code(P, "not the JSON or MessagePack that the protocol asks for"),
    "frame-too-large": Code(P, "longer than the limit of this listener or fabric"),
    "authentication-failed": Code(P, "wrong user name or password, or none given"),
    "try-later": Code(T, "too many wrong passwords; wait so many seconds as the answer says (retry_s)"),
    "not-allowed": Code(P, "policy forbids this party to do that"),
    "unknown-type": Code(P, "no handler of this message type is declared or was ever seen"),
    "unknown-command": Code(P, "no such command"),
    "unknown-user": Code(P, "no account of this name on the server"),
    "not-connected": Code(P, "the user has no connection to the server"),
    "no-handler": Code(T, "the type is known, but none of its handlers is here now"),
    "handler-failed": Code(P, "the handler answered that it failed"),
    "refused": Code(P, "the handler refused the message"),
    "handler-lost": Code(T, "every handler that was given the message died with it"),
    "bad-reply": Code(P, "the handler answered something that cannot be carried out"),
    "timeout": Code(T, "no answer within the time allowed"),
    "too-many-hops": Code(P, "the message passed more handlers than the hop limit allows"),
    "too-many-results": Code(P, "one message was turned into more results than are sent on"),
    "overloaded": Code(T, "a queue is full; send less, or later"),
    "mailbox-full": Code(T, "too much is waiting for that user already"),
    "storage-full": Code(T, "the server cannot store more now"),
    "unreachable": Code(T, "the server it is for cannot be reached"),
    "expired": Code(P, "it was not delivered within its time to live"),
    "schema": Code(P, "the data does not fit the schema of its type"),
    "hello-first": Code(T, "this link is not known; say HELLO"),
    "unknown-op": Code(P, "no such operation, or not one for this role"),
    "unknown-token": Code(P, "no request with this token waits on this link"),
    "reserved": Code(P, "a message type of this name belongs to Bester itself"),
    "version": Code(P, "a protocol version that is not spoken here"),
}


def is_temporary(code: str) -> bool:
    """Say whether trying again later may help; an unknown code is permanent."""
    row = CODES.get(code)
    return row is not None and row.temporary


class BesterError(Exception):
    """The root of Bester's errors; `code` is one of CODES and safe to send, `text` is for people."""

    def __init__(self, code: str, text: str = "") -> None:
        meaning = CODES[code].meaning
        self.code = code
        self.text = text or meaning
        super().__init__(f"{code}: {self.text}")


class WireError(BesterError):
    """What came from the other side breaks the protocol."""


class ConfigError(BesterError):
    """What the operator wrote cannot be used; `text` names the place and the remedy."""

    def __init__(self, text: str) -> None:
        super().__init__("malformed", text)

    def __str__(self) -> str:
        return self.text
