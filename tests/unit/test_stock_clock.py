"""The stock handlers where the wall clock was wrong, and is set back by a year."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bester.handlers import Outcome
from bester.handlers.stock import kitchen, mail, presence, subjects
from bester.handlers.stock.kitchen import Kitchen
from bester.handlers.stock.mail import Mail
from bester.handlers.stock.presence import Presence
from bester.handlers.stock.store import Store
from tests.unit.test_stock import Post, settle_all

YEAR_S, DAY_S = 365 * 86_400, 86_400


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store("stock", subjects.SCHEMA + mail.SCHEMA + kitchen.SCHEMA + presence.SCHEMA, tmp_path)) as store:
        yield store


def test_server_that_was_away_is_told_soon_after_the_clock_was_set_back(store: Store) -> None:
    now = [1e9]
    place = Kitchen(store, clock=lambda: now[0])
    post = Post("kitchen", place.handle)
    post.send({"user": "g", "ask": {"subscribe": "oven"}}, peer="s2")
    settle_all(store, place.outbox)
    with store.turn() as db:
        place.devices.notices.on_outcome(db, {"server": "s2", "subject": "oven"}, Outcome(True, {"s2": "queued"}))
    post.send({"state": {"n": 1}}, user="oven")
    now[0] -= YEAR_S
    place.look([])
    assert [each["state"] for each in settle_all(store, place.outbox)] == [{"n": 1}]


def test_presence_ends_within_a_day_after_the_clock_was_set_back(store: Store) -> None:
    now = [1e9]
    people = Presence(store, clock=lambda: now[0])
    post = Post("presence", people.handle)
    post.send({"here": "desk", "ttl_s": 60}, user="a")
    now[0] -= YEAR_S
    for passed_s, here in ((0, True), (DAY_S, False)):
        now[0] += passed_s
        people.look(["a", "b"])
        assert post.send({"who": "a"}, user="b").commands[0].data["state"]["here"] is here


def test_letters_of_a_clock_that_was_ahead_do_not_count_for_today(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "MAX_A_DAY", 2)
    now = [1e9]
    post = Post("mail", Mail(store, clock=lambda: now[0]).handle)
    letter = {"to": "b", "text": "x"}
    for _ in range(2):
        post.send(letter, user="a")
    now[0] -= YEAR_S
    for _ in range(2):
        assert post.send(letter, user="a").status == 0
    assert "takes 2 letters a day" in post.note(letter, user="a")
