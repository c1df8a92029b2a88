"""Relays to other servers: back-off after failures, and expired messages."""

from __future__ import annotations

import pytest

from bester.broker.store_requests import lane
from tests.unit.core_office import Office, bodies_of, numbered
from tests.unit.core_stand import servers

# --- back-off -------------------------------------------------------------------------------------------------------


def tries(office: Office, seconds: float, outcome: str = "failed:no-handler") -> list[float]:
    """Let time pass and refuse every message; return the times of the tries."""
    start, times = office.stand.now, []
    while office.stand.now < start + seconds:
        office.stand.wait(0.5)
        for relay in office.relays():
            times.append(office.stand.now - start)
            office.answers(relay, outcome)
    return times


def test_back_off_doubles_from_one_second_to_ten_minutes() -> None:
    office = Office(ttl_s=10_000.0)
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:no-handler")
    times = tries(office, 2300.0)
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert gaps == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 600.0, 600.0]


def test_jitter_takes_up_to_half_of_the_back_off() -> None:
    office = Office(chance=0.0)
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:no-handler")
    assert tries(office, 16.0) == [0.5, 1.5, 3.5, 7.5, 15.5]


def test_failures_at_once_are_one_failure() -> None:
    office = Office()
    office.queues(*numbered(40))
    for relay in office.up():
        office.answers(relay, "failed:no-handler")
    assert tries(office, 7.0) == [1.0, 3.0, 7.0]


def test_one_message_is_tried_alone_after_a_failure() -> None:
    office = Office()
    office.queues(*numbered(5))
    for relay in office.up():
        office.answers(relay, "failed:no-handler")
    office.stand.wait(1.0)
    first = office.relay()
    assert first.body == b"0"
    office.stand.wait(2.0)
    assert office.relays() == []
    office.answers(first)
    assert bodies_of(office.relays()) == numbered(4, 1)


def test_success_ends_the_back_off() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:no-handler")
    assert tries(office, 7.0) == [1.0, 3.0, 7.0]
    office.stand.wait(8.0)
    office.answers(office.relay())
    office.sends("s2", body=b"2")
    office.answers(office.relay(), "failed:no-handler")
    assert tries(office, 3.0) == [1.0, 3.0]


def test_new_message_is_queued_during_the_back_off() -> None:
    office = Office()
    office.up()
    office.sends("s2", body=b"0")
    office.answers(office.relay(), "failed:no-handler")
    office.outcomes()
    office.queues(b"1")
    assert office.waiting() == [b"0", b"1"]


def test_new_message_is_queued_during_the_try_after_a_failure() -> None:
    office = Office()
    office.up()
    office.sends("s2", body=b"0")
    office.answers(office.relay(), "failed:no-handler")
    office.outcomes()
    office.stand.wait(1.0)
    tried = office.relay()
    office.queues(b"1")
    assert office.relays() == []
    office.answers(tried)
    assert bodies_of(office.relays()) == [b"1"]


def slow(office: Office) -> None:
    """Queue a message for s2 whose back-off is long."""
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:no-handler")
    assert len(tries(office, 260.0)) == 8


def test_open_link_ends_the_back_off() -> None:
    office = Office()
    slow(office)
    office.down()
    assert len(office.up()) == 1


def test_any_message_from_the_server_shortens_the_back_off() -> None:
    office = Office()
    slow(office)
    peer = office.stand.server("s2")
    office.stand.relay(peer, "nonsense")
    office.stand.wait(0.5)
    assert office.relays() == []
    office.stand.wait(0.5)
    office.answers(office.relay(), "failed:no-handler")
    assert tries(office, 3.0) == [2.0]


def test_message_from_another_server_does_not_shorten_the_back_off() -> None:
    office = Office()
    slow(office)
    office.stand.submit(office.bridge, "nonsense", session=None, scope="server", address="10.0.0.3")
    assert tries(office, 60.0) == []


@pytest.mark.parametrize(("outcome", "soon"), [("delivered", True), ("failed:no-handler", False)])
def test_success_on_one_lane_shortens_the_back_off_of_others(outcome: str, soon: bool) -> None:
    office = Office()
    office.up()
    office.sends("s2", type_="two")
    while (queue := office.stand.state.queues.table.get(lane("s2", "two"))) is None or queue.delay_s < 500.0:
        for relay in office.relays():
            office.answers(relay, "failed:no-handler")
        office.stand.wait(1.0)
    office.sends("s2", type_="one")
    office.answers(office.relay(), outcome)
    office.stand.wait(1.5)
    assert ("two" in [relay.type for relay in office.relays()]) is soon


# --- time -----------------------------------------------------------------------------------------------------------


def test_expired_message_is_a_dead_letter_with_a_late_outcome() -> None:
    office = Office(ttl_s=20.0)
    office.sends("s2", outcome=True)
    message = office.stand.report(office.bridge).message
    office.stand.wait(19.5)
    assert office.waiting() == [b'"hi"']
    office.stand.wait(0.5)
    assert office.waiting() == []
    assert [(letter.reason, letter.body, letter.meta["server"]) for letter in office.dead()] == [
        ("expired", b'"hi"', "s2")
    ]
    assert office.stand.ask(office.bridge, "outcome", [1, message]).value == {"s2": "failed:expired"}
    assert office.up() == []
    figures = office.stand.router.figures
    (letter,) = office.dead()
    assert figures.of(letter.type).dead == 1, "every dead letter is counted, whoever has given the message up"
    assert figures.recent_dead.as_map(office.stand.now)["count"] == 1


def test_relay_carries_its_time_to_live() -> None:
    office = Office(ttl_s=100.0)
    office.up()
    office.sends("s2")
    assert "ttl_s" not in office.relay().meta
    office.sends("s2", ttl_s=30)
    assert office.relay().meta["ttl_s"] == pytest.approx(30.0)
    office.stand.heard(office.bridge)
    office.down()
    office.stand.heard(office.bridge)
    office.stand.wait(10.0)
    assert [relay.meta["ttl_s"] for relay in office.up()] == pytest.approx([90.0, 20.0])


def test_expired_message_is_not_sent() -> None:
    office = Office(ttl_s=10.0)
    office.queues(b"1")
    office.stand.now += 11.0
    assert office.up() == []


def test_message_that_expires_with_its_handler_has_no_time_to_live_at_the_server() -> None:
    office = Office()
    office.up()
    office.stand.submit(office.bridge, "one", ttl_s=1)
    request = office.stand.request(office.one)
    office.stand.wait(3.0)
    office.stand.reply(office.one, request.token, servers("s2"))
    assert office.relay().meta["ttl_s"] == 0.0
