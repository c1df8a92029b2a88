"""How the log shows what a handler raised: whole where it is of use, and never without end."""

from __future__ import annotations

import logging
from types import TracebackType

from bester.broker.wire.notes import describe

HEAD_CHARACTERS = 4_000
TAIL_CHARACTERS = 12_000
"""Of one traceback: an exception's text may be a megabyte long, and a group may hold thousands."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Formatter(logging.Formatter):
    """Formats tracebacks within bounds. What cannot be formatted (an exception is anybody's code) is named."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 (the standard library's name)
        """Return the traceback; of a long one its beginning and its end."""
        try:
            text = super().formatException(ei)
        except BaseException as broken:  # noqa: BLE001 (raised by somebody's __str__, __notes__ …)
            what = "an exception" if ei[1] is None else describe(ei[1])
            return f"{what} (its traceback cannot be shown: {describe(broken)})"
        left_out = len(text) - HEAD_CHARACTERS - TAIL_CHARACTERS
        if left_out <= 0:
            return text
        return f"{text[:HEAD_CHARACTERS]}\n[… {left_out} characters left out …]\n{text[-TAIL_CHARACTERS:]}"
