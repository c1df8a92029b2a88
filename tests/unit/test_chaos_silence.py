"""A chaos run finds handlers that were taken for dead and were not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bester.broker.logs import with_facts
from tests.chaos.processes import Parts
from tests.chaos.silence import LOST, Silences

BY_ITSELF = 1.0
"""When a run begins; the watch looks from then on."""


def seen(silences: Silences, until_s: float) -> None:
    """Let the watch look some times a second."""
    at_s = BY_ITSELF
    while at_s < until_s:
        silences.look(at_s)
        at_s += 0.25


@pytest.mark.parametrize("state", ["S", "R", "D"])
def test_handler_that_lives_was_taken_for_dead_wrongly(state: str) -> None:
    silences = Silences()
    seen(silences, 20.0)
    silences.lost("up", "quick", 7, state, 20.0)
    assert silences.count == 1
    assert len(silences.wrong) == 1
    assert "'quick'" in silences.wrong[0]


@pytest.mark.parametrize("state", [None, "Z", "X", "T", "t"])
def test_handler_that_is_dead_or_stopped_was_taken_for_dead_rightly(state: str | None) -> None:
    silences = Silences()
    seen(silences, 20.0)
    silences.lost("up", "quick", 7, state, 20.0)
    assert (silences.count, silences.wrong) == (1, [])


@pytest.mark.parametrize(("since_s", "wrong"), [(1.0, 0), (8.0, 0), (10.0, 1), (60.0, 1)])
def test_stop_that_has_ended_excuses_for_a_while(since_s: float, wrong: int) -> None:
    silences = Silences()
    silences.stops(7)
    silences.goes_on(7, 100.0)
    seen(silences, 100.0 + since_s)
    silences.lost("up", "quick", 7, "S", 100.0 + since_s)
    silences.lost("up", "quick", 8, "S", 100.0 + since_s)
    assert len(silences.wrong) == wrong + 1


def test_stop_that_has_not_ended_excuses() -> None:
    silences = Silences()
    silences.stops(7)
    seen(silences, 90.0)
    silences.lost("up", "quick", 7, "S", 90.0)  # it was woken between the two looks
    assert not silences.wrong


@pytest.mark.parametrize(("since_s", "wrong"), [(1.0, 0), (8.0, 0), (10.0, 1)])
def test_handler_that_was_cut_off_is_excused_for_a_while(since_s: float, wrong: int) -> None:
    silences = Silences()
    silences.is_cut_off(7, 90.0)
    silences.is_cut_off(7, 100.0)
    seen(silences, 100.0 + since_s)
    silences.lost("broker-b1", "quick.0", 7, "S", 100.0 + since_s)
    assert len(silences.wrong) == wrong


def test_stop_goes_on_while_the_handler_is_cut_off_too() -> None:
    silences = Silences()
    silences.stops(7)
    silences.is_cut_off(7, 50.0)
    seen(silences, 90.0)
    silences.lost("broker-b1", "quick.0", 7, "S", 90.0)
    assert not silences.wrong


@pytest.mark.parametrize(("pause_s", "wrong"), [(1.0, 1), (3.0, 0), (20.0, 0)])
def test_machine_on_which_the_watch_starves_excuses(pause_s: float, wrong: int) -> None:
    silences = Silences()
    seen(silences, 50.0)
    silences.look(50.0 + pause_s)
    silences.lost("up", "quick", 7, "S", 50.5 + pause_s)
    assert len(silences.wrong) == wrong


def test_line_of_the_log_is_the_brokers() -> None:
    facts = {"role": "handler", "name": "quick", "why": "fallen silent", "process": 12}
    assert LOST.findall(with_facts("lost", facts)) == [("quick", "12")]


def test_lines_of_the_log_are_read_once_and_whole(tmp_path: Path) -> None:
    line = "WARNING: lost role='handler' name='quick' why='fallen silent' process=%d"
    part = Parts().part("up", tmp_path)
    log = tmp_path / "up.log"
    assert part.news(0) == ("", 0)
    log.write_text(line % 12 + "\n" + (line % 3)[:-1])
    news, place = part.news(0)
    assert LOST.findall(news) == [("quick", "12")]
    with log.open("a") as more:
        more.write("345\n" + "lost role='bridge' name='b' why='fallen silent' process=9\n")
    news, place = part.news(place)
    assert LOST.findall(news) == [("quick", "345")]
    assert part.news(place) == ("", place)
