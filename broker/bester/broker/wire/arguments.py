"""Checks of arguments that a program gives to the client, or to the kit of handlers. Pure.

A wrong argument fails at the call, in a sentence that names it: TypeError for a value of another type, ValueError for
one out of range. No check converts a value.
"""

from __future__ import annotations

import math
from typing import Any

from bester.broker.wire.notes import class_name

HALF = "has half a surrogate pair in it, which UTF-8 cannot hold"


def check_text(name: str, value: object, most: int | None = None) -> None:
    """Check a string that can be sent, of `most` characters at most. An empty one passes."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a string, not {_kind(value)}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{name} {HALF}")
    if most is not None and len(value) > most:
        raise ValueError(f"{name} has {most} characters at most, not {len(value)}")


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Check a whole number from `least` to `most`; None: without an upper bound."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {_kind(value)}")
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} is {bounds}, not {value}")


def check_seconds(name: str, value: object, most: float = math.inf) -> None:
    """Check a number of seconds above 0, `most` at most."""
    if not 0 < check_wait(name, value) <= most:
        bound = "" if most == math.inf else f", {most:g} at most"
        raise ValueError(f"{name} is a number of seconds above 0{bound}, not {value}")


def check_wait(name: str, value: object) -> float:
    """Check the seconds that a call may wait, and return them; at 0 and below the time is over already."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {_kind(value)}")
    if value != value:  # nan; math.isnan takes no int of 400 digits
        raise ValueError(f"{name} is a number of seconds, not {value}")
    return value


def check_flag(name: str, value: object) -> None:
    """Check True or False: another value may well mean the opposite of its truth, as "no" does."""
    if type(value) is not bool:
        raise TypeError(f"{name} is True or False, not {_kind(value)}")


def check_function(name: str, value: object) -> None:
    """Check a value that can be called."""
    if not callable(value):
        raise TypeError(f"{name} is a function, not {_kind(value)}")


def check_kind(name: str, value: object, kind: type[Any], words: str) -> None:
    """Check a value of a class of Bester's; `words` name the class for people."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {words}, not {_kind(value)}")


def _kind(value: object) -> str:
    return "None" if value is None else f"the class {value.__name__}" if isinstance(value, type) else _article(value)


def _article(value: object) -> str:
    name = class_name(value)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
