"""Where a program's log goes and what a record of it looks like: standard error, as text for people or as JSON.

Only programs set this up; modules ask the standard library for their logger, name the event and its facts with `facts`,
and never hand over a body or a secret. Every record has `at`, `level`, `from` and `event`; `text` is the sentence for
people where there is one; facts are fields beside them; `error` is a traceback. A record of a logger that is not
Bester's has its message as `event`, and what it was given as `extra` as facts.

Needs the standard library alone: handlers use it where nothing else of the server is installed.
"""

from __future__ import annotations

import atexit
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from bester.broker.log_writer import LogWriter
from bester.broker.pace import LogPace
from bester.broker.wire.notes import class_name, describe

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
VALUE_CHARACTERS = 300
"""Of one fact: names and types in it may be a stranger's, and as long as the stranger likes."""
TEXT_CHARACTERS = 8 * 1024
"""Of a sentence; what a program prints may be longer, and is no sentence."""
ERROR_CHARACTERS = 16 * 1024
"""Of a traceback; its beginning and its end tell most."""
FINISH_S = 1.0
"""How long the end of a program waits for its last lines to be written: a reader that has stopped reads them never."""

_RESERVED = frozenset({"at", "level", "from", "event", "error"})
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "paced", "passed_over"}
_OURS = frozenset({"event", "facts", "sentence", "traceback"})
"""What is read of a record besides its message; `sentence` and `traceback` are of one that came from a child."""
_writer: LogWriter | None = None


def facts(event: str, /, **known: Any) -> dict[str, Any]:
    """Return the `extra` of a record: the name of what happened, and its facts."""
    return {"event": event, "facts": known}


def bare_facts(event: str, /, **known: Any) -> dict[str, Any]:
    """Return the same for an event without a sentence, whose message is `with_facts(event, known)`."""
    return facts(event, **known) | {"sentence": ""}


def with_facts(event: str, known: Mapping[str, Any]) -> str:
    """Return an event and its facts as people read them: `joined role='handler' name='chat'`."""
    return " ".join([event, *(f"{key}={_shown(value)}" for key, value in known.items())])


class _Formatter(logging.Formatter):
    """What both forms have in common: they read a record, and never raise on its account."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one entry of the log."""
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 (arguments that do not fit, or a `__str__` that raises)
            message = f"{record.msg!s:.200} (its arguments cannot be written: {class_name(error)})"
        return self.entry(record, _clipped(message, TEXT_CHARACTERS), _known(record), self._traceback(record))

    def entry(self, record: logging.LogRecord, message: str, known: Mapping[str, Any], traceback: str) -> str:
        """Return the entry."""
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
    """`2026-01-31T12:00:00.123Z info    broker: text`; what would start a new line is spelled out.

    The lines of a traceback follow, each after two blanks and a bar, so that none can be taken for a record.
    """

    def entry(self, record: logging.LogRecord, message: str, known: Mapping[str, Any], traceback: str) -> str:
        """Return the record as a line, and below it the traceback."""
        passed_over = getattr(record, "passed_over", 0)
        more = f" ({passed_over} like it passed over)" if passed_over else ""
        lines = [f"{_at(record)} {record.levelname.lower():<7} {_origin(record)}: {message}{more}"]
        lines += [f"  | {line}" for line in traceback.splitlines()]
        return "\n".join(map(_one_line, lines))


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def entry(self, record: logging.LogRecord, message: str, known: Mapping[str, Any], traceback: str) -> str:
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
        for key, value in known.items():
            row[f"{key}_" if key in _RESERVED or (key == "text" and "text" in row) else key] = _plain(value)
        if passed_over := getattr(record, "passed_over", 0):
            row["passed_over"] = passed_over
        if traceback:
            row["error"] = traceback
        return json.dumps(row)


class _Handler(logging.Handler):
    """Hands entries to a writer, which neither blocks nor raises."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Have the record written soon."""
        try:
            self._writer.put(self.format(record))
        except Exception:  # noqa: BLE001 (nothing that is logged may end, or fill the log of, what logs it)
            self._writer.lose("it could not be put into words")


def configure(format_: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Log every record at or above a level to standard error, or at once to a stream; replaces what was set before.

    What standard error does not take is dropped and counted; nothing that logs waits for it.
    """
    global _writer  # noqa: PLW0603 (a process has one standard error)
    finish()
    form: _Formatter = JsonFormatter() if format_ == "json" else LineFormatter()
    handler: logging.Handler
    if stream is not None:
        handler = logging.StreamHandler(stream)
    else:
        _writer = LogWriter(2, sys.stderr.encoding or "utf-8", lost=lambda count, why: _lost(form, count, why))
        handler = _Handler(_writer)
    handler.addFilter(LogPace())
    handler.setFormatter(form)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a log that cannot be written is no reason to fail
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def say(lines: Sequence[str]) -> None:
    """Write lines for people to standard error, behind what was logged before; never waits, never raises."""
    for line in lines:
        if _writer is not None:
            _writer.put(line)
        else:
            sys.stderr.write(f"{line}\n")


def fail(text: str) -> None:
    """Write why a program ends, as its last word: a record where the log is JSON, else one line for people."""
    if is_json():
        logging.getLogger("bester").error(text, extra=facts("failed"))
    else:
        say([f"bester: {text}"])
    finish()


def is_json() -> bool:
    """Return whether the log is JSON: then nothing but records belongs into it."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def finish(timeout_s: float = FINISH_S) -> None:
    """Wait until what was logged is written, at most so long."""
    if _writer is not None:
        _writer.flush(timeout_s)


atexit.register(finish)


def _lost(form: _Formatter, count: int, why: str) -> str:
    text = f"{count} lines of the log are missing here: {why}"
    record = logging.LogRecord("bester.log", logging.WARNING, __file__, 0, text, (), None)
    for key, value in facts("log-lines-lost", count=count, why=why).items():
        setattr(record, key, value)
    return form.format(record)


def _known(record: logging.LogRecord) -> dict[str, Any]:
    """Return the facts of a record, and what else it was given as `extra`."""
    more = {key: value for key, value in vars(record).items() if key not in _STANDARD and key not in _OURS}
    return {**more, **getattr(record, "facts", {})}


def _at(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _origin(record: logging.LogRecord) -> str:
    return record.name.removeprefix("bester.")


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _clipped(text: str, limit: int) -> str:
    """Return a text of about so many characters, without its middle where it was longer."""
    half, left_out = limit // 2, len(text) - limit
    return text if left_out <= 0 else f"{text[:half]} … ({left_out} characters left out) … {text[-half:]}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (a user's object may raise anything)
        text = f"<{type(value).__name__}>"
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"


def _plain(value: object) -> object:
    """Return a fact as JSON can have it: numbers, texts and short lists as they are, else as `repr` has it."""
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has neither infinity nor nan
    if isinstance(value, str):
        return value if len(value) <= VALUE_CHARACTERS else value[: VALUE_CHARACTERS - 1] + "…"
    if isinstance(value, list | tuple | set | frozenset) and len(_shown(value)) < VALUE_CHARACTERS:
        return [_plain(each) if each is None or isinstance(each, bool | int | str) else _shown(each) for each in value]
    return _shown(value)
