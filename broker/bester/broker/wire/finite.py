"""Check for numbers that JSON cannot express: nan and the infinities, which msgspec writes as null."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

NOT_FINITE = "JSON has no way to write nan or an infinite number (which may have been read from one like 1e999)"


def see_finite(value: Any, text: bytes, to_builtins: Callable[..., Any]) -> None:
    """Check a value that msgspec has encoded as `text`; cheap if the text has no null.

    `to_builtins` is msgspec's. Raises ValueError if a null stands for a number.
    """
    if b"null" not in text:
        return
    try:
        json.dumps(to_builtins(value, str_keys=True), allow_nan=False)
    except TypeError:  # a msgspec.Raw, which is JSON text already
        return
    except ValueError:
        raise ValueError(NOT_FINITE) from None
