"""A record is one line, whatever its content."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from bester.broker import logs
from bester.broker.log_limits import PACED, PER_SECOND


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
    assert (row["level"], row["from"], row["event"]) == ("error", "bridge", "it\nfailed")
    assert "ValueError" in row["error"]


def test_storm_from_one_line_of_code_is_counted_not_written(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [5.0] * (PER_SECOND + 7) + [6.0]
    monkeypatch.setattr("bester.broker.logs.time.monotonic", iter(times).__next__)
    logs.configure("text", "info", stream)
    ours, paced, others = (logging.getLogger(name) for name in ("bester.bridge", "bester.broker", "shop"))
    for _ in times:
        ours.warning("refused %s", "100% of them")
        paced.info("bounded by itself", extra=PACED)
        others.info("not ours")
    lines = stream.getvalue().splitlines()
    assert sum("refused" in line for line in lines) == PER_SECOND + 1
    assert [line for line in lines if "refused" in line][-1].endswith("refused 100% of them (7 similar lines left out)")
    assert sum("bounded" in line for line in lines) == sum("not ours" in line for line in lines) == PER_SECOND + 8


def records(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_facts_are_fields_beside_one_schema(stream: io.StringIO) -> None:
    logs.configure("json", "info", stream)
    broker = logging.getLogger("bester.broker")
    broker.info("%s on %s", "s1", "ipc:///x", extra=logs.facts("broker-started", server="s1", ports=[1, 2]))
    fields = {"name": "n", "text": "why", "at": 3, "event": "e", "types": frozenset(["t"])}
    broker.info("%s", logs.with_facts("refused", fields), extra=logs.bare_facts("refused", **fields))
    logging.getLogger("shop").warning("late by %d", 3, extra={"order": 5, "who": {"a": 1}})
    started, refused, late = records(stream)
    assert {key: started[key] for key in list(started)[1:]} == {
        "level": "info", "from": "broker", "event": "broker-started", "text": "s1 on ipc:///x",
        "server": "s1", "ports": [1, 2],
    }  # fmt: skip
    assert {key: refused[key] for key in list(refused)[3:]} == {
        "event": "refused", "name": "n", "text": "why", "at_": 3, "event_": "e", "types": ["t"],
    }  # fmt: skip
    assert {key: late[key] for key in list(late)[1:]} == {
        "level": "warning", "from": "shop", "event": "late by 3", "order": 5, "who": "{'a': 1}",
    }  # fmt: skip


def test_text_is_a_sentence_or_the_event_with_its_facts(stream: io.StringIO) -> None:
    logs.configure("text", "info", stream)
    broker = logging.getLogger("bester.broker")
    broker.info("%s on %s", "s1", "ipc:///x", extra=logs.facts("broker-started", server="s1"))
    broker.info("%s", logs.with_facts("joined", {"name": "n\n"}), extra=logs.bare_facts("joined", name="n\n"))
    first, second = stream.getvalue().splitlines()
    assert first.endswith(" broker: s1 on ipc:///x")
    assert second.endswith(" broker: joined name='n\\n'")


class Silent:
    """Object that a user's handler may log."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_no_record_can_break_the_log(stream: io.StringIO) -> None:
    odd = [float("nan"), float("inf"), 2**80, b"\xff", "\udcff", Silent(), "x" * 5000, [1, [2]], None, True]
    looped: list[object] = []
    looped.append(looped)
    for form in logs.FORMATS:
        logs.configure(form, "info", stream)
        log = logging.getLogger("bester.bridge")
        log.info("%d of %s", "three", extra=logs.facts("misfit"))
        log.info("%s", Silent(), extra=logs.facts("silent"))
        log.info("odd", extra=logs.facts("odd", **{f"f{number}": each for number, each in enumerate([*odd, looped])}))
    lines = stream.getvalue().encode("utf-8", "backslashreplace").decode().splitlines()
    assert len(lines) == 6
    misfit, silent, row = (json.loads(line, parse_constant=pytest.fail) for line in lines[3:])
    assert "cannot be written: TypeError" in misfit["text"]
    assert "cannot be written: RuntimeError" in silent["text"]
    assert (row["f0"], row["f2"], row["f5"], len(row["f6"]), row["f8"]) == ("nan", str(2**80), "<Silent>", 300, None)


class NamelessType(type):
    def __getattribute__(cls, name: str) -> object:
        raise KeyError(name)


class NamelessError(Exception, metaclass=NamelessType):
    pass


def test_an_exception_that_no_traceback_can_name_is_logged_all_the_same(stream: io.StringIO) -> None:
    for form in logs.FORMATS:
        logs.configure(form, "info", stream)
        logging.getLogger("bester.bridge").error("failed", exc_info=NamelessError("x"))
    first, second, row = stream.getvalue().splitlines()
    assert first.endswith(" bridge: failed")
    assert second == "  | NamelessError: x"
    assert json.loads(row)["error"] == "NamelessError: x"


def test_traceback_is_one_record(stream: io.StringIO) -> None:
    for form in logs.FORMATS:
        logs.configure(form, "info", stream)
        try:
            raise ValueError("one\n2026-01-31T12:00:00.123Z error   broker: forged")
        except ValueError:
            logging.getLogger("bester.bridge").exception("failed", extra=logs.facts("failed"))
    *text, row = stream.getvalue().splitlines()
    assert text[0].endswith(" bridge: failed")
    assert all(line.startswith("  | ") for line in text[1:])
    assert text[-1] == "  | 2026-01-31T12:00:00.123Z error   broker: forged"
    assert json.loads(row)["error"].startswith("Traceback (most recent call last):\n")


def test_number_of_refused_records_is_a_field(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [5.0] * (PER_SECOND + 7) + [6.0]
    monkeypatch.setattr("bester.broker.logs.time.monotonic", iter(times).__next__)
    logs.configure("json", "info", stream)
    for _ in times:
        logging.getLogger("bester.bridge").warning("refused", extra=logs.facts("refused"))
    rows = records(stream)
    assert [row.get("passed_over") for row in rows] == [None] * PER_SECOND + [7]
    assert all(row["event"] == "refused" for row in rows)


def test_a_line_for_people_is_one_line_whatever_a_file_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    logs.say(["my\nown.toml declares its own handlers"])
    logs.fail("there is no module 'a' in /tmp/two\nlines \u202eü")
    assert capsys.readouterr().err == (
        "my\\nown.toml declares its own handlers\nbester: there is no module 'a' in /tmp/two\\nlines \\u202eü\n"
    )
