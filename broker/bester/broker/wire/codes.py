"""Codes: every reason of a failure, and the error tree that carries the codes.

`CODES` is the only list of codes: a test compares the documentation with the table, and a code outside the table cannot
be raised.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """Row of the table: whether a retry may help, and the meaning."""

    temporary: bool
    meaning: str


T, P = True, False

CODES: dict[str, Code] = {
    "malformed": Code(P, "not the JSON or MessagePack that the protocol asks for"),
    "frame-too-large": Code(P, "longer than the limit of this listener or fabric"),
    "authentication-failed": Code(P, "wrong user name or password, or none given"),
    "try-later": Code(T, "too many wrong passwords; wait as many seconds as the answer says (retry_s)"),
    "not-allowed": Code(P, "the policy does not allow this peer to do that"),
    "unknown-type": Code(P, "no handler of this message type is declared or has ever connected"),
    "unknown-command": Code(P, "no such command"),
    "unknown-user": Code(P, "no account of this name on the server"),
    "not-connected": Code(P, "the user has no connection to the server"),
    "no-handler": Code(T, "the type is known, but none of its handlers is connected"),
    "handler-failed": Code(P, "the handler answered that it failed"),
    "refused": Code(P, "the handler refused the message"),
    "handler-lost": Code(T, "every handler that was given the message died with it"),
    "bad-reply": Code(P, "the handler's answer cannot be carried out"),
    "timeout": Code(T, "no answer within the time allowed"),
    "too-many-hops": Code(P, "the message passed more handlers than the hop limit allows"),
    "too-many-results": Code(P, "one message led to more results than the limit"),
    "overloaded": Code(T, "a queue is full; send less, or later"),
    "mailbox-full": Code(T, "the queue of that user is full, or the sender's share of it"),
    "storage-full": Code(T, "the server cannot store more now"),
    "storage-unavailable": Code(T, "the server's store cannot be written now"),
    "unreachable": Code(T, "the target server cannot be reached"),
    "expired": Code(P, "not delivered within its time to live"),
    "schema": Code(P, "the data does not fit the schema of its type"),
    "hello-first": Code(T, "this link is not known; say HELLO"),
    "unknown-op": Code(P, "no such operation, or not for this role"),
    "unknown-token": Code(P, "no request with this token waits on this link"),
    "tls-required": Code(P, "the listener speaks TLS, and plain text came"),
    "reserved": Code(P, "a message type of this name belongs to Bester itself"),
    "version": Code(P, "a protocol version that this server does not speak"),
}


def is_temporary(code: str) -> bool:
    """Return whether a later retry may help; an unknown code is permanent."""
    row = CODES.get(code)
    return row is not None and row.temporary


class BesterError(Exception):
    """Root of Bester's errors; `code` is one of CODES and safe to send, `text` is for people."""

    def __init__(self, code: str, text: str = "") -> None:
        meaning = CODES[code].meaning
        self.code = code
        self.text = text or meaning
        super().__init__(f"{code}: {self.text}")


class WireError(BesterError):
    """Violation of the protocol by the other side."""


class ConfigError(BesterError):
    """Unusable configuration; `text` names the file or key and the remedy."""

    def __init__(self, text: str) -> None:
        super().__init__("malformed", text)

    def __str__(self) -> str:
        return self.text
