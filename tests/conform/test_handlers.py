"""Python handlers pass every case; a handler with one fault fails the case for that fault."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from bester.conform.cases import load
from bester.conform.handler_side import conform
from bester.conform.handler_steps import Sample
from tests.conform.programs import BROKEN, CAUGHT_WITHIN_S, WITHIN_S, broken, failures, published, tried

SHOUT = """
from bester.handlers import App

app = App()


@app.handler("shout")
{kind} shout(message):
    return message.reply(message.data.upper())
"""


async def test_the_program_of_the_page_passes(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(published())
    results = await tried([sys.executable, str(tmp_path / "shout.py")])
    assert not failures(results)
    assert sum(result.state == "pass" for result in results) >= 60
    assert [result.case.number for result in results if result.state == "skip"] == [801]  # no CURVE in this program


async def test_an_app_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conform_shout.py").write_text(SHOUT.format(kind="def"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = await tried([sys.executable, "-m", "bester.handlers", "conform_shout:app"])
    assert not failures(results)
    assert sum(result.state == "pass" for result in results) >= 60


async def test_faulty_handler_fails_the_case_for_its_fault(tmp_path: Path) -> None:
    async def found(how: str) -> dict[int, str]:
        program = tmp_path / f"{how.replace(' ', '-')}.py"
        program.write_text(broken(how))
        cases = [case for case in load("handler") if case.number in (101, 302, BROKEN[how][0])]
        results = await tried([sys.executable, str(program)], cases, CAUGHT_WITHIN_S)
        assert all(result.detail for result in results if result.state == "fail")
        return {result.case.number: result.state for result in results}

    # Side by side: each waits in vain for a message that its program never sends.
    states = dict(zip(BROKEN, await asyncio.gather(*map(found, BROKEN)), strict=True))
    assert states == {how: {101: "pass", 302: "pass", number: "fail"} for how, (number, _) in BROKEN.items()}


@pytest.mark.parametrize(
    ("last_words", "times", "state"),
    [
        ("socket.linger = 1000", 1, "pass"),  # gone before the WELCOME is sent
        ("socket.poll()", 1, "pass"),  # gone while the WELCOME is on its way
        ("socket.poll()", 9, "fail"),  # this is a habit
    ],
)
async def test_a_link_given_up_when_the_broker_returns_may_be_greeted_again(
    tmp_path: Path, last_words: str, times: int, state: str
) -> None:
    program, greeting = published(), "        socket, quiet = connect(), 0"
    assert greeting in program
    program = program.replace(
        greeting,
        f"""\
        for _ in range({times}):
            socket = connect()
            {last_words}
            socket.close()
        socket, quiet = connect(), 0""",
    )
    (tmp_path / "hasty.py").write_text(program)
    cases = [case for case in load("handler") if case.number == 609]
    results = await tried([sys.executable, str(tmp_path / "hasty.py")], cases, CAUGHT_WITHIN_S)
    assert [result.state for result in results] == [state], failures(results)


async def test_any_other_handler_is_tried_with_its_own_data() -> None:
    numbers = (105, 201, 303, 308, 411, 412, 413, 704)
    cases = [case for case in load("handler") if case.number in numbers]
    argv = [sys.executable, "-m", "bester.handlers", "bester.handlers.stock.chat:app"]
    for sample, skipped in (
        (Sample('{"to": ["bob"], "text": "hi"}', "{}"), {308, 412}),
        (Sample('{"to": ["bob"], "text": "hi"}'), {308, 411, 412, 413}),
    ):
        results = await conform(argv, cases, lambda result: None, within_s=WITHIN_S, served="chat", sample=sample)
        assert not failures(results)
        assert {result.case.number for result in results if result.state == "skip"} == skipped
    wrong = await conform(
        argv, cases[1:2], lambda result: None, within_s=CAUGHT_WITHIN_S, served="chat", sample=Sample("[]")
    )
    assert [result.state for result in wrong] == ["fail"]


async def test_emit_and_ask_of_a_handler_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatty = """
from bester.handlers import send_clients


@app.every(0.05)
async def tick():
    if await app.ask.is_client("alice"):
        outcome = await app.emit("shout", send_clients(["alice"], "tick"))
        print("emitted", outcome.good, flush=True)
"""
    (tmp_path / "conform_chatty.py").write_text(SHOUT.format(kind="async def") + chatty)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cases = [case for case in load("handler") if case.number in (201, 501, 504, 608, 613, 702)]
    results = await tried([sys.executable, "-m", "bester.handlers", "conform_chatty:app"], cases)
    assert not failures(results)
