"""The words of outcomes: read, ordered, and judged for another try."""

from __future__ import annotations

import pytest

from bester.broker.wire.codes import CODES
from bester.broker.wire.outcomes import (
    AGAIN,
    DELIVERED,
    QUEUED,
    SENT,
    failed,
    is_final,
    reason_of,
    result_id,
    severity,
    try_again,
    worst,
)


@pytest.mark.parametrize("code", sorted(CODES))
def test_failed_outcome_is_final_and_carries_its_reason(code: str) -> None:
    assert reason_of(failed(code)) == code
    assert is_final(failed(code))


@pytest.mark.parametrize("word", [DELIVERED, QUEUED, SENT, "", "failed", "failure:timeout", "FAILED:timeout"])
def test_other_words_have_no_reason(word: str) -> None:
    assert reason_of(word) is None
    assert is_final(word) == (word in (DELIVERED, SENT))


@pytest.mark.parametrize("outcome", ["failed:", "failed:no-such-code", "failed:timeout "])
def test_failure_with_an_unknown_reason_is_not_final(outcome: str) -> None:
    assert not is_final(outcome)


def test_worst_outcome_is_the_first_of_the_highest_severity() -> None:
    order = [failed("timeout"), SENT, QUEUED, DELIVERED]
    assert sorted(order, key=severity) == order[::-1]
    assert worst(DELIVERED, SENT, QUEUED) == SENT
    assert worst(failed("timeout"), failed("expired")) == failed("timeout")
    assert worst(SENT, "no outcome") == "no outcome"


@pytest.mark.parametrize("code", sorted(CODES))
def test_only_a_refusal_that_may_pass_is_worth_another_try(code: str) -> None:
    assert set(CODES) >= AGAIN
    later = {
        "no-handler",
        "overloaded",
        "unreachable",
        "mailbox-full",
        "storage-full",
        "hello-first",
        "storage-unavailable",
        "tls-required",
    }
    assert try_again(failed(code), {}) == (code in later)
    assert not try_again(failed(code), {"carried": True})
    for outcome in (DELIVERED, QUEUED, SENT):
        assert not try_again(outcome, {})


def test_result_ids_differ_by_command_and_by_target() -> None:
    ids = {result_id("s/b-1/7", command, target) for command in range(3) for target in range(3)}
    assert len(ids) == 9
    assert result_id("s/b-1/7", 1, 2) == "s/b-1/7.1.2"
