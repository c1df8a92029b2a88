"""The answer that a case gives its asker, from the outcomes recorded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bester.broker.core.cases import MAX_NAMED, Case, Kind
from bester.broker.core.effects import Link
from bester.broker.wire.messages import Outcome, Relayed, Report
from bester.broker.wire.outcomes import failed, reason_of, severity

HERE = Link("ipc", b"b")
OUTCOMES = st.sampled_from(["delivered", "queued", "sent", "failed:timeout", "failed:unreachable"])


def case(kind: Kind = Kind.SUBMIT) -> Case:
    return Case(kind, HERE, 7, "m", "m")


def test_report_of_full_delivery_has_no_recipients() -> None:
    one = case()
    one.record("alice", "delivered")
    assert one.answer(7) == Report(7, 0, None, "m", {})


def test_outcome_other_than_delivered_names_every_recipient() -> None:
    one = case()
    one.record("alice", "delivered")
    one.record("s2", "sent")
    assert one.answer(7) == Report(7, 0, None, "m", {"alice": "delivered", "s2": "sent"})


def test_the_first_failure_is_the_reason() -> None:
    one = case()
    for name, outcome in (("a", "queued"), ("b", "failed:unreachable"), ("c", "failed:timeout")):
        one.record(name, outcome)
    report = one.answer(7)
    assert isinstance(report, Report)
    assert (report.status, report.reason) == (1, "unreachable")
    assert report.recipients == {"a": "queued", "b": "failed:unreachable", "c": "failed:timeout"}


def test_failed_message_itself_has_no_recipients() -> None:
    one = case()
    one.record(None, failed("unknown-type"))
    assert one.answer(7) == Report(7, 1, "unknown-type", "m", {})


def test_an_emission_gets_an_outcome_and_a_relay_its_worst() -> None:
    for outcome, status, reason in (("delivered", 0, None), ("failed:timeout", 1, "timeout")):
        emit, relay = case(Kind.EMIT), case(Kind.RELAY)
        for one in (emit, relay):
            one.record("a", outcome)
        assert emit.answer(7) == Outcome(7, status, {} if status == 0 else {"a": outcome}, reason)
        assert relay.answer(7) == Relayed(7, outcome, {"carried": True} if status else {})


def test_relayed_counts_queued_results_and_has_the_carried_mark() -> None:
    """A server may send the message again where nothing was carried out; otherwise the work would be done twice."""
    refused, waits, mixed = case(Kind.RELAY), case(Kind.RELAY), case(Kind.RELAY)
    refused.record(None, failed("no-handler"))
    assert refused.answer(1) == Relayed(1, "failed:no-handler", {})
    for name in "ab":
        waits.record(name, "queued")
    assert waits.answer(2) == Relayed(2, "queued", {"queued": 2})
    for name, outcome in (("a", "queued"), ("b", failed("mailbox-full"))):
        mixed.record(name, outcome)
    assert mixed.answer(3) == Relayed(3, "failed:mailbox-full", {"queued": 1, "carried": True})


def test_relayed_repeat_that_has_led_to_anything_is_not_called_refused() -> None:
    refused, carried, final = case(Kind.RELAY), case(Kind.RELAY), case(Kind.RELAY)
    for one in (refused, carried, final):
        one.resubmitted = True
    refused.record(None, failed("no-handler"))
    assert refused.answer(1) == Relayed(1, "failed:no-handler", {}), "the server tries again"
    carried.record("a", failed("mailbox-full"))
    assert carried.answer(2) == Relayed(2, "failed:unreachable", {"carried": True})
    final.record("a", failed("unknown-user"))
    assert final.answer(3) == Relayed(3, "failed:unknown-user", {"carried": True})


@given(
    st.lists(st.tuples(st.sampled_from("abc"), OUTCOMES), max_size=4),
    st.lists(st.sampled_from(["a", "b", "d", "x" * (MAX_NAMED // 2)]), max_size=6),
    st.sampled_from(["failed:unknown-user", "failed:not-connected"]),
)
def test_failures_of_many_are_those_of_each(before: list[tuple[str, str]], names: list[str], outcome: str) -> None:
    one, many = case(), case()
    for name, earlier in before:
        one.record(name, earlier)
        many.record(name, earlier)
    for name in names:
        one.record(name, outcome)
    if names:
        many.record_failures(names, outcome)
    assert many.answer(7) == one.answer(7)
    assert (many.worst, many.reason, many.names_size) == (one.worst, one.reason, one.names_size)


@given(st.lists(st.tuples(st.sampled_from("abc"), OUTCOMES), max_size=8))
def test_each_name_has_its_worst_and_the_report_is_bad_when_anything_failed(outcomes: list[tuple[str, str]]) -> None:
    one = case()
    for name, outcome in outcomes:
        one.record(name, outcome)
    worst = {name: max((o for n, o in outcomes if n == name), key=severity) for name, _ in outcomes}
    failures = [reason_of(outcome) for _, outcome in outcomes if outcome.startswith("failed:")]
    report = one.answer(7)
    assert isinstance(report, Report)
    assert report.status == bool(failures)
    assert report.reason == (failures[0] if failures else None)
    if report.recipients:
        assert {n: severity(o) for n, o in report.recipients.items()} == {n: severity(o) for n, o in worst.items()}
    else:
        assert set(worst.values()) <= {"delivered"}


def test_a_report_of_too_many_names_leaves_some_out_and_none_of_the_outcomes() -> None:
    one = case()
    for number in range(5):
        one.record(f"{number}" + "n" * (MAX_NAMED // 4), "delivered" if number < 4 else "failed:not-connected")
    report = one.answer(7)
    assert isinstance(report, Report)
    assert (report.status, report.reason) == (1, "not-connected")
    assert [name[0] for name in report.recipients] == ["0", "1", "2"]
