"""The ledger of chaos runs finds faults: each rule, broken once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_requests import Enqueue, Entry, lane, mailbox
from tests.chaos.entries import NOT_KEPT
from tests.chaos.happened import CLUSTER_BROKERS, DATABASE, Happened
from tests.chaos.journal import Closed, Died, GivenUp, Got, Journal, Journals, Later, Record, Sent, Told
from tests.chaos.ledger import Ledger, Verdict
from tests.chaos.letters import DeadLetter
from tests.chaos.remains import crashes, waiting
from tests.chaos.traffic import SENDERS

SENT = Sent(1, "both", {"ann": ["ann"], "s2": ["bob", "bea"]}, 1.0)
GOOD = Told(1, True, None, {}, "s1/e/1", 2.0)


def got(user: str, id_: str = "id", *, marked: bool = False, sound: bool = True, at_s: float = 3.0) -> Got:
    return Got(1, user, f"{id_}-{user}", marked, sound, f"{user}#1", at_s)


THRICE = ((1.5, 1.6), (1.7, 1.8), (1.9, 2.0))
TOLD_LATER = Later("s1/e/1", "s2", "delivered", 8.0)
ALL = (got("ann"), got("bob"), got("bea"))


EPOCH_S = 1_000_000.0
"""Reading of the true clock at 0.0 of the journals."""


def judged(*records: Record, happened: Happened | None = None, letters: Sequence[DeadLetter] = ()) -> Verdict:
    ledger = Ledger(happened)
    for record in records:
        ledger.take("sender" if not isinstance(record, Got) else "receiver", record)
    return ledger.verdict(letters)


def killed(where: str, *times: tuple[float, float], kills: bool = True) -> Happened:
    """Return the kills (or freezes) of a process at `where`, each from one time until another."""
    happened = Happened(EPOCH_S)
    for from_s, until_s in times:
        happened.ends(happened.begins(where, kills=kills, at_s=from_s), until_s)
    return happened


def letter(number: int = 1, reason: str = "handler-lost", at_s: float = 2.0, server: str = "s1") -> DeadLetter:
    return DeadLetter(server, number, reason, EPOCH_S + at_s, None)


def one_wrong(verdict: Verdict) -> str:
    (wrong,) = verdict.wrong
    return wrong


def test_messages_received_once_are_clean() -> None:
    verdict = judged(SENT, GOOD, *ALL, Closed(9.0))
    assert verdict.clean
    assert (verdict.promises, verdict.marked, verdict.good, verdict.unclaimed) == (3, 0, 1, 0)


def test_a_receipt_that_is_read_before_its_message_is_known_counts() -> None:
    assert judged(*ALL, GOOD, SENT).clean


def test_message_with_a_good_report_and_no_receipt_is_lost() -> None:
    verdict = judged(SENT, GOOD, got("ann"), got("bea"))
    assert not verdict.clean
    assert verdict.lost == [(1, "bob")]


@pytest.mark.parametrize("outcome", ["delivered", "queued", "sent"])
def test_bad_report_promises_the_recipients_that_did_not_fail(outcome: str) -> None:
    report = Told(1, False, "not-connected", {"ann": "failed:not-connected", "s2": outcome}, "s1/e/1", 2.0)
    assert judged(SENT, report, TOLD_LATER).lost == [(1, "bob"), (1, "bea")]


def test_bad_report_without_recipients_promises_nothing() -> None:
    verdict = judged(SENT, Told(1, False, "no-handler", {}, "s1/e/1", 2.0), got("ann"))
    assert verdict.clean
    assert (verdict.promises, verdict.bad) == (0, {"no-handler": 1})


@pytest.mark.parametrize("reason", ["expired", "mailbox-full", "unknown-user", "timeout", "not-connected"])
def test_late_failure_without_a_fault_is_wrong_and_ends_no_promise(reason: str) -> None:
    report = Told(1, True, None, {"ann": "delivered", "s2": "queued"}, "s1/e/1", 2.0)
    verdict = judged(SENT, report, Later("s1/e/1", "s2", f"failed:{reason}", 3.0), got("ann"))
    assert verdict.lost == [(1, "bob"), (1, "bea")]
    (wrong,) = verdict.wrong
    assert "of s2 failed later, which no fault explains" in wrong


def test_late_failure_by_a_fault_ends_the_promise() -> None:
    report = Told(1, True, None, {"ann": "delivered", "s2": "queued"}, "s1/e/1", 2.0)
    later = Later("s1/e/1", "s2", "failed:handler-lost", 3.0)
    happened = killed("s2", *THRICE)
    letters = [letter(server="s2", at_s=3.0)]
    for records in ((SENT, report, later), (SENT, later, report)):
        assert judged(*records, got("ann"), happened=happened, letters=letters).clean
        assert judged(*records, happened=happened, letters=letters).lost == [(1, "ann")]
    assert judged(SENT, report, TOLD_LATER, got("ann")).lost == [(1, "bob"), (1, "bea")]


@pytest.mark.parametrize("reason", sorted(NOT_KEPT))
def test_what_a_database_could_not_keep_is_no_loss_while_it_was_away(reason: str) -> None:
    report = Told(1, True, None, {"ann": "delivered", "s2": "queued"}, "s1/e/1", 2.0)
    later = Later("s1/e/1", "s2", f"failed:{reason}", 3.0)
    refused = Told(
        1, False, "storage-unavailable", dict.fromkeys(("ann", "s2"), "failed:storage-unavailable"), "m", 2.0
    )
    for at_s, is_clean in ((2.0, True), (90.0, False)):
        happened = killed(DATABASE, (at_s, at_s + 0.5))
        assert judged(SENT, report, later, got("ann"), happened=happened).clean is is_clean
        assert judged(SENT, refused, happened=happened).clean is is_clean


@pytest.mark.parametrize(("frozen_s", "is_clean"), [(2.8, True), (0.2, False)])
def test_brokers_that_were_frozen_connect_later_to_a_database_that_is_back(frozen_s: float, is_clean: bool) -> None:
    happened = Happened()
    happened.ends(happened.begins(DATABASE, kills=True, at_s=6.0), 6.1)
    happened.ends(happened.begins(CLUSTER_BROKERS, kills=False, at_s=6.6), 6.6 + frozen_s)
    sent = Sent(1, "far", {"s2": ["bob"]}, 10.0)
    report = Told(1, False, "storage-unavailable", {"s2": "failed:storage-unavailable"}, "s1/x/1", 10.2)
    assert judged(sent, report, happened=happened).clean is is_clean


def test_requested_late_outcome_must_come() -> None:
    report = Told(1, True, None, {"ann": "delivered", "s2": "queued"}, "s1/e/1", 2.0)
    assert judged(SENT, report, TOLD_LATER, *ALL).clean
    assert "never told what became of s2" in judged(SENT, report, *ALL).wrong[0]


def test_two_reports_are_wrong() -> None:
    assert "reported 2 times" in judged(SENT, GOOD, GOOD, *ALL).wrong[0]


def test_a_message_without_a_report_is_wrong_where_its_sender_ended_well() -> None:
    assert "never reported" in judged(SENT, Closed(9.0)).wrong[0]
    assert judged(SENT).clean  # the sender was killed
    assert judged(SENT, GivenUp(1, "connection lost", 4.0), Closed(9.0)).clean


def test_message_that_was_not_sent_is_wrong() -> None:
    assert "never sent" in judged(got("ann")).wrong[0]


def test_receipt_of_another_user_is_wrong() -> None:
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


def test_repeat_may_overtake_the_first_under_another_id_alone() -> None:
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


# --- blame ----------------------------------------------------------------------------------------------------------

BLAMED = Told(1, False, "handler-lost", {}, "s1/e/1", 2.0)
POISON = Sent(1, "talk", {}, 1.0, kills=True)


@pytest.mark.parametrize("times", [(), THRICE[:1], THRICE[:2], ((20.0, 21.0),) * 3])
def test_an_innocent_is_blamed_unless_its_handlers_were_killed_from_outside_thrice(
    times: tuple[tuple[float, float], ...],
) -> None:
    verdict = judged(SENT, BLAMED, happened=killed("s1", *times), letters=[letter()])
    assert [wrong.split(":")[0] for wrong in verdict.wrong] == [
        "reported bad, handler-lost, which no fault explains",
        "an innocent is blamed at s1",
    ]
    assert judged(SENT, BLAMED, happened=killed("s1", *THRICE), letters=[letter()]).clean


def test_a_short_freeze_kills_no_handler_and_a_long_one_may() -> None:
    for times, clean in (((1.0, 2.0),) * 3, False), (((0.0, 5.0),) * 3, True):
        verdict = judged(SENT, BLAMED, happened=killed("s1", *times, kills=False), letters=[letter()])
        assert verdict.clean is clean


def test_kills_at_one_server_forgive_no_blame_at_another() -> None:
    verdict = judged(SENT, BLAMED, happened=killed("s2", *THRICE), letters=[letter()])
    assert "an innocent is blamed at s1" in one_wrong(verdict)


def deaths(count: int) -> list[Died]:
    return [Died(1, "s1", 1.0 + n / 100) for n in range(count)]


def test_poison_is_given_up_after_three_deaths_and_not_many_more() -> None:
    for count in (3, 6):
        verdict = judged(POISON, BLAMED, *deaths(count), happened=killed("s1"), letters=[letter()])
        assert verdict.clean
        assert (verdict.poison, verdict.deaths) == (1, count)
    early = judged(POISON, BLAMED, *deaths(2), happened=killed("s1"), letters=[letter()])
    assert "poison is given up after 2 deaths" in one_wrong(early)
    late = judged(POISON, BLAMED, *deaths(7), happened=killed("s1"), letters=[letter()])
    assert "poison kills 7 handlers" in one_wrong(late)


def test_given_up_message_is_a_dead_letter_and_poison_is_not_good() -> None:
    assert "there is no dead letter" in one_wrong(judged(POISON, BLAMED, *deaths(3), happened=killed("s1")))
    assert "reported good, and it kills" in one_wrong(judged(POISON, GOOD))
    assert "never sent" in one_wrong(judged(happened=killed("s1"), letters=[letter()]))


# --- clocks and time to live ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [0.0, 86_400.0, -86_400.0, 60.0])
def test_dead_letter_has_the_date_of_its_servers_clock(ahead_s: float) -> None:
    def dated(at_s: float) -> Verdict:
        happened = killed("s1", *THRICE)
        happened.clock_set("s1", ahead_s, 1.0)
        return judged(SENT, BLAMED, happened=happened, letters=[letter(at_s=at_s)])

    assert dated(2.0 + ahead_s).clean
    for wrong_s in (-20.0, 20.0):
        assert "with the date of" in one_wrong(dated(2.0 + ahead_s + wrong_s))


def test_dead_letter_of_another_brokers_copy_has_the_date_at_which_that_copy_ended() -> None:
    letters, last = [letter(), letter(at_s=8.5)], Died(1, "s1", 8.0)
    assert "with the date of 7.5 s" in one_wrong(
        judged(POISON, BLAMED, *deaths(3), happened=killed("s1"), letters=letters)
    )
    assert judged(POISON, BLAMED, *deaths(3), last, happened=killed("s1"), letters=letters).clean


BRIEF = Sent(1, "talk", {"ann": ["ann"]}, 1.0, ttl_s=5.0)
WAITS = Told(1, True, None, {"ann": "queued"}, "s1/e/1", 2.0)


def test_nothing_expires_before_its_time() -> None:
    for at_s, clean in ((3.0, False), (4.5, False), (5.5, True), (60.0, True)):
        verdict = judged(BRIEF, WAITS, Later("s1/e/1", "ann", "failed:expired", at_s))
        assert verdict.clean is clean
    endless = Sent(1, "talk", {"ann": ["ann"]}, 1.0)
    assert not judged(endless, WAITS, Later("s1/e/1", "ann", "failed:expired", 60.0)).clean
    assert "that has expired, and had time" in one_wrong(
        judged(endless, happened=killed("s1"), letters=[letter(reason="expired", at_s=1.0)])
    )


def test_nothing_is_received_long_after_its_time_but_over_a_boot() -> None:
    delivered = Later("s1/e/1", "ann", "delivered", 50.0)
    assert judged(BRIEF, WAITS, delivered, got("ann", at_s=36.0)).clean
    assert "after its time was over" in one_wrong(judged(BRIEF, WAITS, delivered, got("ann", at_s=40.0)))
    happened = Happened(EPOCH_S)
    happened.booted(20.0)
    assert judged(BRIEF, WAITS, delivered, got("ann", at_s=40.0), happened=happened).clean


# --- servers of the native protocol ---------------------------------------------------------------------------------


def out(native: str) -> Sent:
    return Sent(1, "out", {native: [native]}, 1.0)


def test_native_server_with_reports_is_never_sent_and_a_mute_one_never_delivered() -> None:
    for native, good, bad in (("n1", "delivered", "sent"), ("n2", "sent", "delivered")):
        for outcome, clean in ((good, True), (bad, False)):
            report = Told(1, True, None, {native: outcome}, "s1/e/1", 2.0)
            assert judged(out(native), report, got(native)).clean is clean
            queued = Told(1, True, None, {native: "queued"}, "s1/e/1", 2.0)
            assert judged(out(native), queued, Later("s1/e/1", native, outcome, 3.0), got(native)).clean is clean
    assert "n1 is said to be sent" in one_wrong(
        judged(out("n1"), Told(1, True, None, {"n1": "sent"}, "s1/e/1", 2.0), got("n1"))
    )


def test_message_sent_to_a_mute_server_without_a_receipt_is_lost_unless_the_server_was_killed() -> None:
    report = Told(1, True, None, {"n2": "sent"}, "s1/e/1", 2.0)
    assert judged(out("n2"), report).lost == [(1, "n2")]
    assert judged(out("n2"), report, happened=killed("n2", (1.5, 3.0))).clean
    for where, times in (("n1", (1.5, 3.0)), ("s1", (1.5, 3.0)), ("n2", (10.0, 11.0))):
        assert judged(out("n2"), report, happened=killed(where, times)).lost == [(1, "n2")]
    reporting = Told(1, True, None, {"n1": "delivered"}, "s1/e/1", 2.0)
    assert judged(out("n1"), reporting, happened=killed("n1", (1.5, 3.0))).lost == [(1, "n1")]


def test_repeat_to_a_native_server_needs_the_mark() -> None:
    report = Told(1, True, None, {"n1": "delivered"}, "s1/e/1", 2.0)
    again = got("n1", "id", marked=True, at_s=4.0)
    assert judged(out("n1"), report, got("n1"), again).clean
    assert "received again by n1 without the mark" in one_wrong(
        judged(out("n1"), report, got("n1"), got("n1", at_s=4.0))
    )


# --- order ----------------------------------------------------------------------------------------------------------


def placed(number: int, at_s: float, place: int, *, marked: bool = False, epoch: str = "e", type_: str = "out") -> Got:
    return Got(number, "n1", f"id-{number}", marked, True, "n1#1", at_s, ("s1", type_, epoch, place))


def test_a_lane_whose_order_is_by_type_comes_in_order() -> None:
    sent = [Sent(number, "out", {"n1": ["n1"]}, 1.0) for number in (1, 2)]
    assert judged(*sent, placed(1, 3.0, 7), placed(2, 4.0, 8)).clean
    assert "received by n1 after what came later" in one_wrong(judged(*sent, placed(1, 4.0, 7), placed(2, 3.0, 8)))
    for free in ({"marked": True}, {"epoch": "f"}, {"type_": "talk"}):
        assert judged(*sent, placed(1, 4.0, 7, **free), placed(2, 3.0, 8)).clean


def test_ordered_messages_of_one_user_come_in_order() -> None:
    sent = [Sent(number, "line", {"ann": ["ann"]}, float(number)) for number in (1, 2)]
    first, second = (Got(number, "ann", f"id-{number}", False, True, "ann#1", 0.0) for number in (1, 2))
    assert judged(*sent, replace(first, at_s=3.0), replace(second, at_s=4.0)).clean
    overtaken = judged(*sent, replace(first, at_s=4.0), replace(second, at_s=3.0))
    assert "received by ann after what came later" in one_wrong(overtaken)
    talk = [Sent(number, "talk", {"ann": ["ann"]}, float(number)) for number in (1, 2)]
    assert judged(*talk, replace(first, at_s=4.0), replace(second, at_s=3.0)).clean


def test_messages_that_two_brokers_of_a_cluster_took_may_come_in_any_order() -> None:
    """A sender moves when a broker ends or is taken for dead, and moves back a while later."""
    for hit_s, kills, lasts_s, is_fault in (
        (12.0, True, 0.5, False), (5.0, True, 0.5, False), (30.0, True, 0.5, True), (-20.0, True, 0.5, True),
        (12.0, False, 7.0, False), (12.0, False, 2.0, True),
    ):  # fmt: skip
        happened = Happened()
        happened.ends(happened.begins(CLUSTER_BROKERS, kills=kills, at_s=hit_s), hit_s + lasts_s)
        ledger = Ledger(happened)
        for number, at_s in ((1, 10.0), (2, 15.0)):
            ledger.take("sender", Sent(number, "line", {"ann": ["ann"]}, at_s))
            ledger.take("receiver", Got(number, "ann", f"id-{number}", False, True, "ann#1", 40.0 - number))
        overtaken = [wrong for wrong in ledger.verdict().wrong if "after what came later" in wrong]
        assert bool(overtaken) is is_fault, (hit_s, kills, lasts_s)


@pytest.mark.parametrize(("hit_s", "kills", "lasts_s", "marks", "is_fault"), [
    (10.0, False, 7.0, (True, False), False), (10.0, False, 7.0, (False, False), True),
    (10.0, False, 7.0, (True, False, False), True), (-90.0, False, 7.0, (True, False), True),
    (10.0, False, 2.0, (True, False), True), (10.0, True, 7.0, (True, False), True),
])  # fmt: skip
def test_a_copy_of_a_broker_that_stood_still_may_come_behind_the_marked_one(
    hit_s: float, kills: bool, lasts_s: float, marks: tuple[bool, ...], is_fault: bool
) -> None:
    happened = Happened()
    happened.ends(happened.begins(CLUSTER_BROKERS, kills=kills, at_s=hit_s), hit_s + lasts_s)
    ledger = Ledger(happened)
    ledger.take("sender", Sent(1, "talk", {"ann": ["ann"]}, 9.0))
    for at_s, marked in enumerate(marks, 18):
        ledger.take("receiver", Got(1, "ann", "id-1", marked, True, "ann#1", float(at_s)))
    assert any("without the mark" in wrong for wrong in ledger.verdict().wrong) is is_fault


@pytest.mark.parametrize("reason", sorted(NOT_KEPT))
@pytest.mark.parametrize(
    ("away_s", "kills", "lasts_s", "is_fault"),
    [(12.0, True, 3.0, False), (12.0, False, 3.0, False), (12.0, False, 1.0, True), (200.0, True, 3.0, True)],
)
def test_a_dead_letter_for_a_store_that_was_away_is_explained(
    away_s: float, kills: bool, lasts_s: float, is_fault: bool, reason: str
) -> None:
    happened = Happened()
    happened.ends(happened.begins(DATABASE, kills=kills, at_s=away_s), away_s + lasts_s)
    ledger = Ledger(happened)
    ledger.take("sender", Sent(1, "far", {"s2": ["bob"]}, 10.0))
    ledger.take("sender", Told(1, True, None, {"s2": "queued"}, "s1/x/1", 11.0))
    ledger.take("sender", Later("s1/x/1", "s2", f"failed:{reason}", 20.0))
    wrong = ledger.verdict([DeadLetter("s1", 1, reason, 10.0, "s2")]).wrong
    assert any("dead letter" in each for each in wrong) is is_fault


# --- messages left on disk ---


def test_messages_left_in_a_store_are_listed_except_those_to_senders(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with closing(SqliteStore(tmp_path / "data" / "store.db")) as store:
        store.open()
        assert waiting(tmp_path, "s1") == []
        users = [SENDERS["s1"], "ann"]
        store.commit([
            Enqueue(Entry(number, mailbox(user), f"s1/e/{number}.0.0", user, "talk", b"1", None, 2e9, {}))
            for number, user in enumerate(users)
        ] + [
            Enqueue(Entry(10 + number, lane("s2", type_), f"s1/e/{number}.1", "s2", type_, b"1", None, 2e9, {}))
            for number, type_ in enumerate(["talk", "bester.outcome"])
        ])  # fmt: skip
    assert sorted(waiting(tmp_path, "s1")) == [
        "still waits at s1: 1 in 'lane/s2/talk'",
        "still waits at s1: 1 in 'user/ann'",
    ]


def test_a_crash_is_found_in_the_logs(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    (tmp_path / "up.log").write_text("s1 serves\n")
    assert crashes(tmp_path) == []
    (tmp_path / "s1" / "up.log").write_text("broken:\nTraceback (most recent call last):\n  File x\nKeyError: 1\n")
    (crash,) = crashes(tmp_path)
    assert crash.startswith("a crash in up.log:\nbroken:\n") and "KeyError: 1" in crash
