"""A record is one line, whatever stands in it."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from bester.bridge import logs
from bester.broker.notices import PER_SECOND
from bester.broker.pace import PACED


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


def test_a_storm_from_one_place_is_counted_not_written(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [5.0] * (PER_SECOND + 7) + [6.0]
    monkeypatch.setattr("bester.broker.pace.time.monotonic", iter(times).__next__)
    logs.configure("text", "info", stream)
    ours, paced, others = (logging.getLogger(name) for name in ("bester.bridge", "bester.broker", "shop"))
    for _ in times:
        ours.warning("refused %s", "100% of them")
        paced.info("bounded by itself", extra=PACED)
        others.info("not ours")
    lines = stream.getvalue().splitlines()
    assert sum("refused" in line for line in lines) == PER_SECOND + 1
    assert [line for line in lines if "refused" in line][-1].endswith("refused 100% of them (7 like it passed over)")
    assert sum("bounded" in line for line in lines) == sum("not ours" in line for line in lines) == PER_SECOND + 8
