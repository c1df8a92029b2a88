"""The output of a child: each line goes into the log, and the last lines are kept for the cause of the child's end.

A line that is a log record in JSON, as Bester's own handlers write them, keeps its level, event, facts and traceback in
the log. Any other line is logged as text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import deque
from typing import Any, BinaryIO

from bester.broker.log_limits import PACED
from bester.broker.logs import facts, with_facts

LINE_LIMIT = 4096
"""Characters of one line of a child's output that are logged together."""
RECORD_LIMIT = 256 * 1024
"""Bytes of a line that may be a record, with its traceback. A longer one is cut into lines like any other."""
READ_BYTES = 16 * 1024
LAST_LINES = 20
"""Last lines of a child, in which the cause is looked for."""
ENDINGS = ("failed", "uncaught")
"""Events after which Bester's own handler program ends."""
CAUSE_CHARACTERS = 300
"""Characters of the cause that are repeated in the log."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR,
           "critical": logging.CRITICAL}  # fmt: skip
_OURS = frozenset({"at", "level", "from", "event", "text", "error"})
_COMPLAINT = re.compile(r"error|exception|fatal|panic|cannot|not found", re.IGNORECASE)

_log = logging.getLogger("bester.bridge.children")


class Output:
    """Output of one life of a child; `cause` is the line that gives the reason of its end, and `is_silent` says that
    there was no line."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.is_silent = True
        self._failure = ""
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def cause(self) -> str:
        """Return the line that best explains the end of the child: the failure that its program logged, else the last
        line that reads like a complaint, else the last line; empty where there is none."""
        complaint = next((line for line in reversed(self._last) if _COMPLAINT.search(line)), "")
        last = self._last[-1] if self._last else ""
        return " ".join((self._failure or complaint or last).split())[:CAUSE_CHARACTERS]

    async def log(self, stream: BinaryIO) -> None:
        """Log the stream until its end, a line of any length in pieces; closes `stream`."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, stream)
        rest = b""
        try:
            while data := await reader.read(READ_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._log(line)
                if len(rest) > (RECORD_LIMIT if rest.startswith(b"{") else LINE_LIMIT):
                    self._log(rest)
                    rest = b""
            if rest:
                self._log(rest)
        finally:
            transport.close()

    def _log(self, line: bytes) -> None:
        record = _record(line)
        if record is not None:
            self.is_silent = False
            self._log_record(record)
            return
        text = line.decode(errors="replace").rstrip()
        for start in range(0, len(text), LINE_LIMIT):
            piece = text[start : start + LINE_LIMIT]
            fields = facts("output", handler=self._name) | {"sentence": piece} | PACED
            _log.info("%s | %s", self._name, piece, extra=fields)
        if text:
            self.is_silent = False
            self._last.append(text[-LINE_LIMIT:])

    def _log_record(self, record: dict[str, Any]) -> None:
        event, text, error = record["event"], record.get("text"), record.get("error")
        fields = {f"{key}_" if key == "handler" else key: value for key, value in record.items() if key not in _OURS}
        if record.get("from") not in (None, "bester", "handlers"):  # a logger of the user's own
            fields["logger"] = record["from"]
        sentence = text if isinstance(text, str) else ""
        traceback = error if isinstance(error, str) else ""
        if event in ENDINGS:
            self._failure = traceback.rstrip().rpartition("\n")[2] or sentence
        level = _LEVELS[record["level"]]
        extra = facts(event, handler=self._name, **fields) | {"sentence": sentence, "traceback": traceback} | PACED
        _log.log(level, "%s | %s", self._name, sentence or with_facts(event, fields), extra=extra)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line; None where the line is no record."""
    if not line.startswith(b"{"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(row, dict) and isinstance(row.get("event"), str) and row.get("level") in list(_LEVELS)
    return row if is_record else None
