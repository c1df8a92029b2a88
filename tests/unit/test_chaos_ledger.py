"""The ledger of chaos runs finds what is wrong: each rule, broken once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import Enqueue, Entry, mailbox
from tests.chaos.journal import Closed, GivenUp, Got, Journal, Journals, Later, Record, Sent, Told
from tests.chaos.ledger import Ledger, Verdict
from tests.chaos.remains import crashes, waiting
from tests.chaos.traffic import SENDERS

SENT = Sent(1, "both", {"ann": ["ann"], "s2": ["bob", "bea"]}, 1.0)
GOOD = Told(1, True, None, {}, "s1/e/1", 2.0)


def got(user: str, id_: str = "id", *, marked: bool = False, sound: bool = True, at_s: float = 3.0) -> Got:
    return Got(1, user, f"{id_}-{user}", marked, sound, f"{user}#1", at_s)


TOLD_LATER = Later("s1/e/1", "s2", "delivered", 8.0)
ALL = (got("ann"), got("bob"), got("bea"))


def judged(*records: Record) -> Verdict:
    ledger = Ledger()
    for record in records:
        ledger.take("sender" if not isinstance(record, Got) else "receiver", record)
    return ledger.verdict()


def test_what_everybody_received_once_is_in_order() -> None:
    verdict = judged(SENT, GOOD, *ALL, Closed(9.0))
    assert verdict.clean
    assert (verdict.promises, verdict.marked, verdict.good, verdict.unclaimed) == (3, 0, 1, 0)


def test_a_receipt_that_is_read_before_its_message_is_known_counts() -> None:
    assert judged(*ALL, GOOD, SENT).clean


def test_what_was_reported_good_and_did_not_come_is_lost() -> None:
    verdict = judged(SENT, GOOD, got("ann"), got("bea"))
    assert not verdict.clean
    assert verdict.lost == [(1, "bob")]


@pytest.mark.parametrize("outcome", ["delivered", "queued", "sent"])
def test_a_bad_report_promises_what_it_names(outcome: str) -> None:
    report = Told(1, False, "not-connected", {"ann": "failed:not-connected", "s2": outcome}, "s1/e/1", 2.0)
    assert judged(SENT, report, TOLD_LATER).lost == [(1, "bob"), (1, "bea")]


def test_a_bad_report_that_names_nobody_promises_nothing() -> None:
    verdict = judged(SENT, Told(1, False, "handler-lost", {}, "s1/e/1", 2.0), got("ann"))
    assert verdict.clean
    assert (verdict.promises, verdict.bad) == (0, {"handler-lost": 1})


@pytest.mark.parametrize("reason", ["expired", "mailbox-full", "unknown-user", "timeout", "not-connected"])
def test_a_later_failure_that_no_fault_explains_is_wrong_and_forgives_nothing(reason: str) -> None:
    report = Told(1, True, None, {"ann": "delivered", "s2": "queued"}, "s1/e/1", 2.0)
    verdict = judged(SENT, report, Later("s1/e/1", "s2", f"failed:{reason}", 3.0), got("ann"))
    assert verdict.lost == [(1, "bob"), (1, "bea")]
    (wrong,) = verdict.wrong
    assert "of s2 failed later, which no fault explains" in wrong


def test_what_a_later_outcome_calls_failed_by_a_fault_is_promised_no_longer() -> None:
    report = Told(1, True, None, {"ann": "delivered", "s2": "queued"}, "s1/e/1", 2.0)
    later = Later("s1/e/1", "s2", "failed:handler-lost", 3.0)
    for records in ((SENT, report, later), (SENT, later, report)):
        assert judged(*records, got("ann")).clean
        assert judged(*records).lost == [(1, "ann")]
    assert judged(SENT, report, TOLD_LATER, got("ann")).lost == [(1, "bob"), (1, "bea")]


def test_who_asked_what_became_of_the_queued_must_hear_it() -> None:
    report = Told(1, True, None, {"ann": "delivered", "s2": "queued"}, "s1/e/1", 2.0)
    assert judged(SENT, report, TOLD_LATER, *ALL).clean
    assert "never told what became of s2" in judged(SENT, report, *ALL).wrong[0]


def test_two_reports_are_wrong() -> None:
    assert "reported 2 times" in judged(SENT, GOOD, GOOD, *ALL).wrong[0]


def test_a_message_without_a_report_is_wrong_where_its_sender_ended_well() -> None:
    assert "never reported" in judged(SENT, Closed(9.0)).wrong[0]
    assert judged(SENT).clean  # it was killed
    assert judged(SENT, GivenUp(1, "connection lost", 4.0), Closed(9.0)).clean


def test_what_nobody_sent_is_wrong() -> None:
    assert "never sent" in judged(got("ann")).wrong[0]


def test_a_user_it_was_not_for_is_wrong() -> None:
    assert "whom it was not for" in judged(SENT, GOOD, *ALL, got("amy")).wrong[0]


def test_another_text_is_wrong() -> None:
    assert "another text" in judged(SENT, GOOD, got("ann"), got("bob"), got("bea", sound=False)).wrong[0]


def test_a_repetition_is_marked_whatever_its_id() -> None:
    for id_ in ("id", "new"):
        marked = judged(SENT, GOOD, *ALL, got("bob", id_, marked=True, at_s=4.0))
        assert marked.clean
        assert marked.marked == 1
        unmarked = judged(SENT, GOOD, *ALL, got("bob", id_, at_s=4.0))
        (wrong,) = unmarked.wrong
        assert "received again by bob without the mark" in wrong
        assert unmarked.marked == 0


def test_what_was_sent_again_may_overtake_the_first_under_another_id_but_not_under_its_own() -> None:
    others = got("ann"), got("bea")
    overtaking = got("bob", "new", marked=True, at_s=2.5)
    assert judged(SENT, GOOD, *others, got("bob"), overtaking).clean
    (wrong,) = judged(SENT, GOOD, *others, got("bob"), got("bob", marked=True, at_s=2.5)).wrong
    assert "received again by bob without the mark" in wrong
    assert not judged(SENT, GOOD, *others, got("bob"), got("bob", "third"), overtaking).clean


def test_the_story_of_a_message_has_all_that_happened() -> None:
    ledger = Ledger()
    for record in (SENT, GOOD, got("ann"), Later("s1/e/1", "s2", "failed:expired", 3.0)):
        ledger.take("j", record)
    story = ledger.entries[1].story()
    assert all(
        word in story
        for word in ("sent", "reported good", "received by ann on ann#1", "told later of s2: failed:expired")
    )


def test_journals_are_read_while_they_grow_and_a_torn_line_is_left(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    path = tmp_path / "one.journal"
    with Journal(path) as journal:
        journal.write(SENT)
        assert journals.news() == [("one", SENT)]
        assert journals.news() == []
        journal.write(GOOD)
        with path.open("ab") as file:
            file.write(b'{"what":"got","num')
        assert journals.news() == [("one", GOOD)]
    with path.open("ab") as file:
        file.write(b'ber":1,"user":"ann","id":null,"marked":true,"sound":true,"link":"l","at_s":1.5}\n')
    assert journals.news() == [("one", Got(1, "ann", None, True, True, "l", 1.5))]


# --- what is left on disk -------------------------------------------------------------------------------------------


def test_what_still_waits_in_a_store_is_told_but_for_a_sender(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with closing(SqliteStore(tmp_path / "data" / "store.db")) as store:
        store.open()
        assert waiting(tmp_path, "s1") == []
        users = [SENDERS["s1"], "ann"]
        store.commit([
            Enqueue(Entry(number, mailbox(user), f"s1/e/{number}.0.0", user, "talk", b"1", None, 2e9, {}))
            for number, user in enumerate(users)
        ])  # fmt: skip
    assert waiting(tmp_path, "s1") == ["still waits at s1: 1 in 'user/ann'"]


def test_a_crash_is_found_in_the_logs(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    (tmp_path / "up.log").write_text("s1 serves\n")
    assert crashes(tmp_path) == []
    (tmp_path / "s1" / "up.log").write_text("broken:\nTraceback (most recent call last):\n  File x\nKeyError: 1\n")
    (told,) = crashes(tmp_path)
    assert told.startswith("a crash in up.log:\nbroken:\n") and "KeyError: 1" in told
