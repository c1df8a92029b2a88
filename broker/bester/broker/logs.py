"""Log of a program on standard error: one record a line, as text for people or as JSON.

Programs call `configure` once. Modules log through the standard library and name the event and its facts with `facts`;
a body or a secret is never logged. A JSON record has the fields `at`, `level`, `from` (the logger) and `event`, `text`
(the sentence for people, if any), `error` (the traceback, if any), and one field for each fact. A record of a logger
outside `bester` has its message as `event` and its `extra` as facts.

Where standard error leads to systemd's journal, each line begins with its priority, as in `<4>`, which the journal
takes off again; text has neither time nor level then, for the journal shows both.

This module needs the standard library alone: handlers log by it where nothing else of the server is installed.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from bester.broker.log_limits import LogRateLimit
from bester.broker.log_writer import LogWriter
from bester.broker.streams import plain
from bester.broker.systemd import is_journal
from bester.broker.wire.notes import class_name, describe

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
VALUE_CHARACTERS = 300
"""Longest fact: names and types in a fact may be a stranger's, and of any length."""
TEXT_CHARACTERS = 8 * 1024
"""Longest sentence; above it is output of a program, not a sentence."""
ERROR_CHARACTERS = 16 * 1024
"""Longest traceback; the middle is left out, as beginning and end tell most."""
FINISH_S = 1.0
"""Time that the end of a program allows for writing its last lines: a reader that has stopped never reads them."""

PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Priority in the journal of each level and above; 7 (debug) below."""

_RESERVED = frozenset({"at", "level", "from", "event", "error"})
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "paced", "passed_over"}
_OURS = frozenset({"event", "facts", "sentence", "traceback"})
"""Attributes of a record that are no facts; `sentence` and `traceback` belong to a record that came from a child."""
_writer: LogWriter | None = None


def facts(event: str, /, **fields: Any) -> dict[str, Any]:
    """Return the `extra` of a record: the name of the event and its facts."""
    return {"event": event, "facts": fields}


def bare_facts(event: str, /, **fields: Any) -> dict[str, Any]:
    """Return the `extra` of an event without a sentence, whose message is `with_facts(event, fields)`."""
    return facts(event, **fields) | {"sentence": ""}


def with_facts(event: str, fields: Mapping[str, Any]) -> str:
    """Return an event and its facts as people read them: `joined role='handler' name='chat'`."""
    return " ".join([event, *(f"{key}={_shown(value)}" for key, value in fields.items())])


class _Formatter(logging.Formatter):
    """Base of both renderers: reads a record, and never raises whatever the record holds.

    `journal`: the entries are for systemd's journal.
    """

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one entry of the log, without its line feed."""
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 (arguments that do not fit, or a `__str__` that raises)
            message = f"{record.msg!s:.200} (its arguments cannot be written: {class_name(error)})"
        entry = self.entry(record, _clipped(message, TEXT_CHARACTERS), _fields(record), self._traceback(record))
        if not self.journal:
            return entry
        mark = f"<{priority(record.levelno)}>"
        return mark + entry.replace("\n", f"\n{mark}")

    def entry(self, record: logging.LogRecord, message: str, fields: Mapping[str, Any], traceback: str) -> str:
        """Return the entry of a record whose message, facts and traceback were read."""
        raise NotImplementedError

    def _traceback(self, record: logging.LogRecord) -> str:
        text = getattr(record, "traceback", "")
        if record.exc_info and record.exc_info[0] is not None:
            try:
                text = self.formatException(record.exc_info)
            except Exception:  # noqa: BLE001 (its class or attributes are somebody's code, and raise as well)
                text = describe(record.exc_info[1])
        return _clipped(text, ERROR_CHARACTERS)


class LineFormatter(_Formatter):
    """Renderer of text: `2026-01-31T12:00:00.123Z info    broker: text`, with control characters escaped.

    Each line of a traceback follows behind two blanks and a bar, so that none can be taken for a record.
    """

    def entry(self, record: logging.LogRecord, message: str, fields: Mapping[str, Any], traceback: str) -> str:
        """Return the record as a line, followed by the lines of the traceback."""
        passed_over = getattr(record, "passed_over", 0)
        more = f" ({passed_over} similar lines left out)" if passed_over else ""
        head = "" if self.journal else f"{_at(record)} {record.levelname.lower():<7} "
        lines = [f"{head}{_origin(record)}: {message}{more}"]
        lines += [f"  | {line}" for line in traceback.splitlines()]
        return "\n".join(map(_one_line, lines))


class JsonFormatter(_Formatter):
    """Renderer of JSON: one object a record, without line feeds."""

    def entry(self, record: logging.LogRecord, message: str, fields: Mapping[str, Any], traceback: str) -> str:
        """Return the record as one line of JSON."""
        event = getattr(record, "event", None)
        row: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "from": _origin(record),
            "event": message if event is None else str(event),
        }
        sentence = getattr(record, "sentence", message)
        if event is not None and sentence not in ("", event):
            row["text"] = sentence
        for key, value in fields.items():
            row[f"{key}_" if key in _RESERVED or (key == "text" and "text" in row) else key] = _plain(value)
        if passed_over := getattr(record, "passed_over", 0):
            row["passed_over"] = passed_over
        if traceback:
            row["error"] = traceback
        return json.dumps(row)


class _Handler(logging.Handler):
    """Handler that passes entries to a LogWriter, which neither blocks nor raises."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record for writing."""
        try:
            self._writer.put(self.format(record))
        except Exception:  # noqa: BLE001 (no record may end the program that logs it, or fill its log)
            self._writer.lose("no text could be made of a record")


def configure(format_: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Log every record at or above `level` to standard error; replaces an earlier configuration.

    `format_` is one of FORMATS, `level` one of LEVELS. Records that standard error does not take are dropped and
    counted, and no caller waits. With `stream`, records are written there at once instead.
    """
    global _writer  # noqa: PLW0603 (a process has one standard error)
    finish()
    journal = stream is None and is_journal(2, os.environ.get("JOURNAL_STREAM"))
    form: _Formatter = JsonFormatter(journal=journal) if format_ == "json" else LineFormatter(journal=journal)
    handler: logging.Handler
    if stream is not None:
        handler = logging.StreamHandler(stream)
    else:
        _writer = LogWriter(2, sys.stderr.encoding or "utf-8", lost=lambda count, why: _lost(form, count, why))
        handler = _Handler(_writer)
    handler.addFilter(LogRateLimit(time.monotonic))
    handler.setFormatter(form)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fail
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def say(lines: Sequence[str]) -> None:
    """Write lines for people to standard error, after the records logged before; never waits, never raises."""
    for line in map(plain, lines):
        if _writer is not None:
            _writer.put(line)
        else:
            sys.stderr.write(f"{line}\n")


def fail(text: str) -> None:
    """Write the reason why the program ends, and flush: a record where the log is JSON, else one line for people."""
    if is_json():
        logging.getLogger("bester").error(text, extra=facts("failed"))
    else:
        say([f"{_mark()}bester: {text}"])
    finish()


def is_json() -> bool:
    """Return whether the log is JSON, and thus takes records alone."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _mark() -> str:
    """Return the beginning of a line for the journal that is an error; nothing for any other log."""
    forms = [handler.formatter for handler in logging.getLogger().handlers]
    return (
        f"<{priority(logging.ERROR)}>" if any(isinstance(form, _Formatter) and form.journal for form in forms) else ""
    )


def finish(timeout_s: float = FINISH_S) -> None:
    """Wait until every record is written, at most `timeout_s` seconds."""
    if _writer is not None:
        _writer.flush(timeout_s)


atexit.register(finish)


def _lost(form: _Formatter, count: int, why: str) -> str:
    text = f"{count} lines of the log are missing here: {why}"
    record = logging.LogRecord("bester.log", logging.WARNING, __file__, 0, text, (), None)
    for key, value in facts("log-lines-lost", count=count, why=why).items():
        setattr(record, key, value)
    return form.format(record)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the facts of a record, and its other `extra`."""
    more = {key: value for key, value in vars(record).items() if key not in _STANDARD and key not in _OURS}
    return {**more, **getattr(record, "facts", {})}


def priority(level: int) -> int:
    """Return the journal's priority of a level of `logging`."""
    return next((number for least, number in PRIORITIES if level >= least), 7)


def _at(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _origin(record: logging.LogRecord) -> str:
    return record.name.removeprefix("bester.")


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _clipped(text: str, limit: int) -> str:
    """Return a text of about `limit` characters; the middle of a longer one is left out."""
    half, left_out = limit // 2, len(text) - limit
    return text if left_out <= 0 else f"{text[:half]} … ({left_out} characters left out) … {text[-half:]}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (a user's object may raise anything)
        text = f"<{type(value).__name__}>"
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"


def _plain(value: object) -> object:
    """Return a fact as a JSON value: numbers, texts and short lists as such, any other value as its `repr`."""
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has neither infinity nor nan
    if isinstance(value, str):
        return value if len(value) <= VALUE_CHARACTERS else value[: VALUE_CHARACTERS - 1] + "…"
    if isinstance(value, list | tuple | set | frozenset) and len(_shown(value)) < VALUE_CHARACTERS:
        return [_plain(each) if each is None or isinstance(each, bool | int | str) else _shown(each) for each in value]
    return _shown(value)
