"""The names of message types: their spelling, wherever a type is named, and the types of Bester itself."""

from __future__ import annotations

from bester.broker.wire.messages import MAX_TYPE

RESERVED_TYPES = frozenset({"dummy", "builtin"})
RESERVED_PREFIX = "bester."
AUTH_TYPE = "bester.auth"
"""Requests of this type ask a handler whether a login is good; they hold passwords."""


def is_reserved(type_: str) -> bool:
    """Return whether a message type belongs to Bester itself."""
    return type_ in RESERVED_TYPES or type_.startswith(RESERVED_PREFIX)


def spelling_fault(type_: str) -> str | None:
    """Return the fault in the spelling of a message type, or None.

    This rule holds wherever a handler's type is named: in the configuration, a HELLO, the command line and the
    environment, a handler's code, and a command. A list of types, separated by commas, could not hold any other name.
    """
    if 0 < len(type_) <= MAX_TYPE and type_.isprintable() and "," not in type_ and type_ == type_.strip():
        return None
    shown = type_ if len(type_) <= MAX_TYPE else f"{type_[:40]}…"
    return f"{shown!r}: a type is 1 to {MAX_TYPE} printable characters without commas or blanks at its ends"


def type_fault(type_: str) -> str | None:
    """Return the reason why no handler can serve a message type, or None."""
    if is_reserved(type_):
        return f"{type_!r} is reserved for Bester itself; choose another type"
    return spelling_fault(type_)
