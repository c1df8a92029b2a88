"""Why a link cannot be had: every finding has a sentence, and events after the last word change nothing."""

from __future__ import annotations

import pytest

from bester.broker.wire.trouble import FINAL, FINDINGS, MOST_TOLD, Attempt, Event, Found, Told


def attempt(*events: Event, keys: bool = True) -> Attempt:
    tried = Attempt("tcp://h:1", "s2", *(("OWN", "OTHER") if keys else ()))
    for event in events:
        tried.take(event)
    return tried


@pytest.mark.parametrize(
    ("events", "found", "says"),
    [
        ((), Found.SILENT, "no answer from tcp://h:1"),
        (("refused", "refused"), Found.REFUSED, "nothing listens at tcp://h:1"),
        (("refused", "forbidden"), Found.FORBIDDEN, "may not open tcp://h:1; run as the user whom s2 runs as"),
        (("forbidden", "refused"), Found.REFUSED, "nothing listens at tcp://h:1"),
        (("forbidden", "connected"), Found.OPEN, "does not answer"),
        (("refused", "connected"), Found.OPEN, "does not answer"),
        (("connected", "auth"), Found.UNKNOWN_KEY, "does not know our key OWN"),
        (("connected", "held off"), Found.HELD_OFF, "lets us in later"),
        (("connected", "cut", "connected", "cut", "curve"), Found.OTHER_KEY, "not the key of s2"),
        (("connected", "cut", "connected", "cut", "foreign"), Found.FOREIGN, "not a Bester fabric"),
        (("connected", "cut", "refused"), Found.REFUSED, "nothing listens"),
        (("connected", "cut"), Found.CUT, "ended in the handshake"),
        (("connected", "mechanism"), Found.OTHER_SECURITY, "does not encrypt"),
        (("connected", "ended"), Found.FOREIGN, "not a Bester fabric"),
        (("connected", "secured"), Found.SECURED, "no message from tcp://h:1"),
        (("connected", "secured", "ended", "refused"), Found.REFUSED, "nothing listens"),
        (("connected", "auth", "connected", "secured"), Found.UNKNOWN_KEY, "does not know our key"),
    ],
)
def test_events_end_in_a_sentence(events: tuple[Event, ...], found: Found, says: str) -> None:
    tried = attempt(*events)
    assert tried.found is found and says in tried.why()


def test_a_plain_link_is_told_of_the_keys_it_lacks() -> None:
    assert "this side has no keys" in attempt("connected", "mechanism", keys=False).why()


@pytest.mark.parametrize("keys", [True, False])
def test_the_greeting_is_asked_for_once_a_handshake_was_cut_twice(keys: bool) -> None:
    assert not attempt("connected", "cut", keys=keys).in_doubt
    assert attempt("connected", "cut", "connected", "cut", keys=keys).in_doubt


def test_a_greeting_tells_a_plain_link_that_the_other_side_encrypts() -> None:
    plain = attempt("connected", "cut", "connected", "cut", keys=False)
    assert not plain.take_greeting("mechanism") and plain.found is Found.CUT
    assert plain.take_greeting("curve") and "this side has no keys" in plain.why()
    keyed = attempt("connected", "cut", "connected", "cut")
    assert keyed.take_greeting("mechanism") and "does not encrypt" in keyed.why()


def test_only_news_of_a_final_finding_end_the_wait() -> None:
    tried = attempt("connected")
    assert tried.take("auth") and not tried.take("auth")
    assert not any(before in FINAL for before, _ in FINDINGS)


def test_reason_is_told_once_in_its_time_though_others_come_in_between() -> None:
    told = Told(60.0)
    assert [told.is_due("no answer" if at % 2 else "failure", at * 10.0) for at in range(8)] == [
        True, True, False, False, False, False, True, True,
    ]  # fmt: skip
    told.clear()
    assert told.is_due("failure", 80.0)


def test_reasons_that_are_remembered_have_a_bound() -> None:
    told = Told()
    assert all(told.is_due(str(number)) for number in range(MOST_TOLD + 1))
    assert told.is_due("0")
