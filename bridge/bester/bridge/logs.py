"""Where the log goes and what a line of it looks like: standard error, one line a record, as text or as JSON.

Only the programs set this up; modules ask the standard library for their logger
and never hand it a body or a secret.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

from bester.broker.pace import Pace

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info  broker: text`; what would start a new line is spelled out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        text = f"{_at(record)} {record.levelname.lower():<7} {_origin(record)}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `at`, `level`, `from`, `text`, and `error` where there was one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        row = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "from": _origin(record),
            "text": record.getMessage(),
        }
        if record.exc_info:
            row["error"] = self.formatException(record.exc_info)
        return json.dumps(row)


def configure(format_: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send every record at or above a level to a stream, standard error by default; replaces what was set before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(Pace())
    handler.setFormatter(JsonFormatter() if format_ == "json" else LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a closed terminal is no reason to fail
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _at(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _origin(record: logging.LogRecord) -> str:
    return record.name.removeprefix("bester.")
