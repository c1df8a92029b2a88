"""A record is one line, whatever stands in it."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from bester.bridge import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield io.StringIO()
    root.handlers[:], logging.raiseExceptions = before, raising
    root.setLevel(level)


def test_text_is_one_readable_line(stream: io.StringIO) -> None:
    logs.configure("text", "info", stream)
    logging.getLogger("bester.broker").warning("type %s\nis \x1b[31mnew", "chat")
    logging.getLogger("bester.broker").debug("not shown")
    line = stream.getvalue()
    assert line.endswith("Z warning broker: type chat\\nis \\x1b[31mnew\n")
    assert line.count("\n") == 1


def test_json_is_one_object_a_line(stream: io.StringIO) -> None:
    logs.configure("json", "debug", stream)
    try:
        raise ValueError("no\nno")
    except ValueError:
        logging.getLogger("bester.bridge").exception("it\nfailed")
    (line,) = stream.getvalue().splitlines()
    row = json.loads(line)
    assert (row["level"], row["from"], row["text"]) == ("error", "bridge", "it\nfailed")
    assert "ValueError" in row["error"]
