"""An outcome can be asked for until the message's time to live and seven more days are over."""

from __future__ import annotations

from bester.broker.core.settings import Settings
from bester.broker.store_requests import Bounds
from tests.unit.core_stand import Stand, clients

DAY_S = 24 * 3600.0


def test_an_outcome_is_known_for_the_time_to_live_and_seven_days_more() -> None:
    stand = Stand(Settings("s1", bounds=Bounds(ttl_s=10.0)), accounts=frozenset({"bob"}))
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, clients("bob"))
    message = stand.report(bridge).message
    stand.wait(12.0)
    assert stand.ask(bridge, "outcome", [1, message]).value == {"bob": "failed:expired"}
    stand.now += 6.9 * DAY_S  # as a server that was asleep: silent peers are not given up for that
    stand.wait(700.0, step_s=1.0)
    assert stand.ask(bridge, "outcome", [1, message]).value == {"bob": "failed:expired"}
    stand.now += 0.2 * DAY_S
    stand.wait(1300.0, step_s=1.0)
    assert stand.ask(bridge, "outcome", [1, message]).status == 1
