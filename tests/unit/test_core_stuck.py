"""Useless handlers that live: settled messages hold their credit, or they fell silent. No message waits for them."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.effects import Link, Restart
from bester.broker.core.restarts import STUCK_WHY
from bester.broker.core.settings import Budget, Limits, Settings
from bester.broker.store_requests import Bury
from bester.broker.wire.messages import Command, Error, Goodbye, Heartbeat, Hello, Report, Request, Welcome
from tests.unit.core_stand import Stand, clients

QUICK_S = 3.0


def stand_of(**budgets: Budget) -> Stand:
    """A server on which messages of type `job` have three seconds."""
    budgets = {"job": Budget(QUICK_S, 3), **budgets}
    return Stand(Settings("s1", open_accounts=True, budgets=budgets, limits=Limits()))


class Ward:
    """A server with a client, and a handler of `job` that can be made to hang."""

    def __init__(self, *types: str, credit: int = 2, **options: Any) -> None:
        self.stand = stand_of()
        self.bridge = self.stand.bridge("alice", "bob")
        self.types = types or ("job",)
        self.handler = self.stand.handler(*self.types, credit=credit, name="h", **options)

    def hang(self, number: int) -> list[int]:
        """Let so many messages time out at the handler; return the tokens of the unanswered requests."""
        for _ in range(number):
            self.stand.submit(self.bridge, "job")
        tokens = [request.token for request in self.stand.heard_of(self.handler, Request)]
        self.stand.wait(QUICK_S)
        assert [report.reason for report in self.stand.heard_of(self.bridge, Report)] == ["timeout"] * number
        return tokens

    def notices(self, event: str) -> list[dict[str, Any]]:
        return [notice.fields for notice in self.stand.notices if notice.event == event]


def report_after(stand: Stand, bridge: Link, seconds: float) -> tuple[str | None, float]:
    """Wait for one report, so long at most; return its reason, and the time it took."""
    start = stand.now
    while stand.now < start + seconds:
        reports = stand.heard_of(bridge, Report)
        if reports:
            assert len(reports) == 1
            return reports[0].reason, stand.now - start
        stand.wait(0.5)
    raise AssertionError("no report")


# --- stuck ----------------------------------------------------------------------------------------------------------


def test_handler_full_of_settled_messages_is_logged_and_to_be_restarted() -> None:
    ward = Ward("job", "other")
    ward.stand.processes[ward.handler] = 77
    ward.stand.say(ward.handler, Hello(1, "handler", "h", {"types": ["job", "other"], "credit": 2}))
    ward.hang(2)
    ward.stand.wait(4.5)
    assert ward.notices("handler-stuck") == []
    ward.stand.wait(1.0)
    (logged,) = ward.notices("handler-stuck")
    assert logged == {"name": "h", "types": ["job", "other"], "places": 2, "oldest_s": 8.0, "why": STUCK_WHY}
    assert ward.stand.restarts == [Restart(77, "h", STUCK_WHY)]
    ward.stand.wait(60.0)
    assert len(ward.notices("handler-stuck")) == len(ward.stand.restarts) == 1


@pytest.mark.parametrize(("credit", "hanging"), [(3, 2), (256, 200)])
def test_handler_with_credit_left_goes_on(credit: int, hanging: int) -> None:
    ward = Ward(credit=credit)
    ward.hang(hanging)
    ward.stand.wait(30.0)
    ward.stand.submit(ward.bridge, "job")
    ward.stand.answer(ward.handler, clients("alice"))
    ward.stand.deliver(ward.bridge)
    assert ward.notices("handler-stuck") == []


def test_handler_that_frees_credit_in_time_is_not_stuck() -> None:
    ward = Ward()
    first, _ = ward.hang(2)
    ward.stand.wait(4.5)
    ward.stand.reply(ward.handler, first)
    ward.stand.wait(30.0)
    assert ward.notices("handler-stuck") == []
    assert ward.stand.restarts == []


def test_message_waiting_for_a_stuck_handler_alone_fails_soon() -> None:
    ward = Ward()
    ward.hang(2)
    ward.stand.submit(ward.bridge, "job")
    assert report_after(ward.stand, ward.bridge, 30.0) == ("no-handler", 10.0)
    ward.stand.submit(ward.bridge, "job")
    assert report_after(ward.stand, ward.bridge, 30.0) == ("no-handler", 5.0)


def test_message_waiting_for_a_stuck_handler_goes_to_a_newcomer() -> None:
    ward = Ward()
    ward.hang(2)
    ward.stand.submit(ward.bridge, "job")
    ward.stand.wait(6.0)
    other = ward.stand.handler("job", name="other")
    ward.stand.answer(other)
    assert ward.stand.report(ward.bridge).status == 0


def test_stuck_handler_among_others_is_passed_over() -> None:
    ward = Ward()
    other = ward.stand.handler("job", name="other", credit=1)
    for _ in range(3):
        ward.stand.submit(ward.bridge, "job")
    ward.stand.answer(other)
    ward.stand.report(ward.bridge)
    ward.stand.wait(QUICK_S + 6.0)
    assert len(ward.notices("handler-stuck")) == 1
    ward.stand.heard_of(ward.bridge, Report)
    for _ in range(5):
        ward.stand.submit(ward.bridge, "job")
        ward.stand.answer(other)
        assert ward.stand.report(ward.bridge).status == 0


def test_stuck_handler_that_answers_is_used_again() -> None:
    ward = Ward()
    first, second = ward.hang(2)
    ward.stand.submit(ward.bridge, "job")
    ward.stand.wait(6.0)
    ward.stand.heard_of(ward.handler, Request)
    ward.stand.reply(ward.handler, first, clients("alice"))
    assert ward.stand.heard_of(ward.handler, Error) == []
    request = ward.stand.request(ward.handler)
    ward.stand.reply(ward.handler, request.token)
    assert ward.stand.report(ward.bridge).status == 0
    ward.stand.wait(0.5)
    assert ward.notices("handler-unstuck") == [{"name": "h", "types": ["job"]}]
    ward.stand.reply(ward.handler, second)
    for _ in range(2):
        ward.stand.submit(ward.bridge, "job")
    assert len(ward.stand.heard_of(ward.handler, Request)) == 2


def test_handler_stuck_twice_is_logged_twice() -> None:
    ward = Ward(credit=1)
    for _ in range(2):
        (token,) = ward.hang(1)
        ward.stand.wait(6.0)
        ward.stand.reply(ward.handler, token)
        ward.stand.wait(1.0)
    assert len(ward.notices("handler-stuck")) == len(ward.notices("handler-unstuck")) == 2


def test_stuck_handler_that_sends_hello_with_more_credit_is_used_again() -> None:
    ward = Ward()
    ward.hang(2)
    ward.stand.wait(6.0)
    ward.stand.say(ward.handler, Hello(1, "handler", "h", {"types": ["job"], "credit": 3}))
    ward.stand.submit(ward.bridge, "job")
    ward.stand.answer(ward.handler)
    assert ward.stand.report(ward.bridge).status == 0


def test_stuck_handler_that_leaves_does_not_come_back_by_an_answer() -> None:
    ward = Ward()
    first, second = ward.hang(2)
    ward.stand.wait(6.0)
    ward.stand.say(ward.handler, Goodbye(None))
    ward.stand.reply(ward.handler, first)
    ward.stand.submit(ward.bridge, "job")
    assert ward.stand.heard_of(ward.handler, Request) == []
    ward.stand.reply(ward.handler, second)
    assert [notice.event for notice in ward.stand.notices][-1] == "left"
    assert report_after(ward.stand, ward.bridge, 30.0)[0] == "no-handler"


def test_message_group_does_not_wait_for_a_stuck_handler() -> None:
    ward = Ward(credit=1, order={"job": "user"})
    ward.hang(1)
    ward.stand.submit(ward.bridge, "job", b"2")
    ward.stand.submit(ward.bridge, "job", b"3")
    other = ward.stand.handler("job", name="other", credit=1, order={"job": "user"})
    ward.stand.wait(2.0)
    assert ward.stand.heard_of(other, Request) == []  # bound to the stuck handler
    ward.stand.wait(4.0)
    assert [ward.stand.answer(other).body for _ in range(2)] == [b"2", b"3"]


def test_drain_does_not_wait_for_a_stuck_handler() -> None:
    ward = Ward()
    ward.hang(2)
    ward.stand.submit(ward.bridge, "job")
    ward.stand.wait(1.0)
    ward.stand.router.drain()
    ward.stand.wait(1.0)
    assert ward.stand.report(ward.bridge).reason == "no-handler"
    assert ward.stand.router.idle
    assert ward.stand.restarts == []


def test_drain_waits_for_a_handler_that_has_just_died() -> None:
    ward = Ward()
    ward.stand.submit(ward.bridge, "job")
    ward.stand.router.drain()
    ward.stand.take(ward.stand.router.on_undeliverable(ward.handler, Heartbeat(), ward.stand.now))
    ward.stand.wait(3.0)  # for the program that started the process
    ward.stand.answer(ward.stand.handler("job"))
    assert ward.stand.report(ward.bridge).status == 0


# --- too late -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after_s", "reason"), [(2.9, "handler-failed"), (3.0, "timeout"), (3.4, "timeout")])
def test_a_failure_after_the_messages_time_is_a_timeout(after_s: float, reason: str) -> None:
    """A handler that knows its deadline gives up in time, and may be quicker than the broker's next tick."""
    ward = Ward()
    ward.stand.submit(ward.bridge, "job")
    request = ward.stand.request(ward.handler)
    ward.stand.now += after_s
    ward.stand.commits = False
    ward.stand.reply(ward.handler, request.token, status=1)
    buried = [write.letter.reason for write in ward.stand.writes if isinstance(write, Bury)]
    assert buried == ([reason] if reason == "timeout" else [])
    ward.stand.commits = True
    ward.stand.commit()
    assert ward.stand.report(ward.bridge).reason == reason
    assert bool(ward.notices("handler-failed")) == (reason == "handler-failed")


def test_a_failure_after_the_senders_time_is_expired() -> None:
    ward = Ward()
    ward.stand.submit(ward.bridge, "job", ttl_s=1)
    request = ward.stand.request(ward.handler)
    assert request.meta["deadline_ms"] == 1000
    ward.stand.now += 1.2
    ward.stand.reply(ward.handler, request.token, status=1)
    assert ward.stand.report(ward.bridge).reason == "expired"


def test_late_success_before_the_tick_still_counts() -> None:
    ward = Ward()
    ward.stand.submit(ward.bridge, "job")
    request = ward.stand.request(ward.handler)
    ward.stand.now += 3.05
    ward.stand.reply(ward.handler, request.token)
    assert ward.stand.report(ward.bridge).status == 0


def test_a_deadline_is_never_later_than_the_broker_waits() -> None:
    stand = stand_of()
    bridge = stand.bridge("alice")
    plain, patient = stand.handler("plain"), stand.handler("patient", lease_ms=60_000)
    for type_, worker, ttl_s, deadline_ms in (
        ("plain", plain, 9, 9_000),
        ("plain", plain, 600, 30_000),
        ("patient", patient, 45, 45_000),
        ("patient", patient, 600, 60_000),
    ):
        stand.submit(bridge, type_, ttl_s=ttl_s)
        assert stand.answer(worker).meta["deadline_ms"] == deadline_ms


def test_welcome_names_the_time_for_one_message() -> None:
    stand = stand_of(slow=Budget(90.0, 3), tough=Budget(None, 9))
    for options, expected in (
        ({"types": ["plain"]}, {"request_ms": 30_000}),
        ({"types": ["plain"], "lease_ms": 10_000}, {"request_ms": 30_000}),
        ({"types": ["plain"], "lease_ms": 45_000}, {"request_ms": 45_000}),
        (
            {"types": ["plain", "job", "slow", "tough"]},
            {"request_ms": 30_000, "timeouts_ms": {"job": 3_000, "slow": 90_000}},
        ),
    ):
        link = stand.link()
        stand.say(link, Hello(1, "handler", "h", options))
        welcomed = stand.one(link, Welcome).options
        assert {
            key: value for key, value in welcomed.items() if key.endswith("s_ms") or key == "request_ms"
        } == expected


# --- fallen silent --------------------------------------------------------------------------------------------------


def silenced(process: int | None = 5, **options: Any) -> Ward:
    """Return a handler of a known process that holds a message and falls silent."""
    ward = Ward(**options)
    if process is not None:
        ward.stand.processes[ward.handler] = process
        ward.stand.say(ward.handler, Hello(1, "handler", "h", {"types": ["job"], "credit": 2, **options}))
    ward.stand.submit(ward.bridge, "job")
    del ward.stand.alive[ward.handler]
    return ward


def lost(ward: Ward) -> list[str]:
    return [fields["why"] for fields in ward.notices("lost")]


def test_fallen_handler_that_stays_away_is_to_be_restarted() -> None:
    ward = silenced()
    ward.stand.wait(6.5)
    assert lost(ward) == ["fallen silent"]
    ward.stand.wait(29.0)
    assert ward.stand.restarts == []
    ward.stand.wait(2.0)
    (restart,) = ward.stand.restarts
    assert (restart.process, restart.name) == (5, "h")
    ward.stand.wait(90.0)
    assert len(ward.stand.restarts) == 1


def test_fallen_handler_back_on_any_link_is_not_restarted() -> None:
    ward = silenced()
    ward.stand.wait(20.0)
    link = ward.stand.link()
    ward.stand.processes[link] = 5
    ward.stand.say(link, Hello(1, "handler", "h", {"types": ["job"]}))
    ward.stand.alive[link] = None
    ward.stand.wait(60.0)
    assert ward.stand.restarts == []
    ward = silenced()
    ward.stand.wait(20.0)
    ward.stand.say(ward.handler, Hello(1, "handler", "h", {"types": ["job"]}))
    ward.stand.alive[ward.handler] = None
    ward.stand.wait(60.0)
    assert ward.stand.restarts == []


def test_fallen_handler_of_unknown_process_is_only_lost() -> None:
    ward = silenced(process=None)
    ward.stand.wait(60.0)
    assert lost(ward) == ["fallen silent"]
    assert ward.stand.restarts == []


def test_a_lease_does_not_cover_a_process_that_is_stopped() -> None:
    ward = silenced(lease_ms=30_000)
    ward.stand.wait(8.0)
    assert lost(ward) == []
    ward.stand.stopped.add(5)
    ward.stand.wait(0.5)
    assert lost(ward) == ["fallen silent"]


def test_a_stopped_process_has_its_heartbeats_all_the_same() -> None:
    ward = silenced(lease_ms=30_000)
    ward.stand.stopped.add(5)
    ward.stand.wait(5.5)
    assert lost(ward) == []
    ward.stand.wait(1.0)
    assert lost(ward) == ["fallen silent"]


def test_a_lease_shorter_than_the_heartbeats_counts_as_before() -> None:
    ward = silenced(lease_ms=1_000)
    ward.stand.wait(0.5)
    assert lost(ward) == []
    ward.stand.wait(1.0)
    assert lost(ward) == ["fallen silent"]


def test_oldest_fallen_handlers_are_forgotten() -> None:
    stand = Stand(Settings("s1", open_accounts=True, limits=Limits(max_fallen=3)))
    for number in range(5):
        link = stand.link()
        stand.processes[link] = number + 1
        stand.say(link, Hello(1, "handler", f"h{number}", {"types": ["job"]}))
    stand.wait(60.0)
    assert sorted(restart.name for restart in stand.restarts) == ["h2", "h3", "h4"]


def test_process_that_fell_silent_on_two_links_delays_no_other() -> None:
    stand = Stand()
    links = [stand.link() for _ in range(3)]
    for link, process in zip(links, (1, 2, 1), strict=True):
        stand.processes[link] = process
        stand.say(link, Hello(1, "handler", f"h{process}", {"types": ["job"]}))
    stand.alive[links[2]] = None
    stand.wait(8.0)
    stand.alive.clear()
    stand.wait(8.0)
    assert len([notice for notice in stand.notices if notice.event == "lost"]) == 3
    stand.wait(22.0)  # more than 30 s since the first two fell silent, and less since the last
    assert [restart.process for restart in stand.restarts] == [2]
    stand.wait(8.0)
    assert [restart.process for restart in stand.restarts] == [2, 1]


def test_bridges_and_operators_are_never_restarted() -> None:
    stand = Stand()
    for role in ("bridge", "operator"):
        link = stand.link()
        stand.processes[link] = 9
        stand.say(link, Hello(1, role, role, {}))
    stand.wait(90.0)
    assert stand.restarts == []
    assert "handler-stuck" not in [notice.event for notice in stand.notices]


def test_commands_of_a_late_answer_are_not_carried_out() -> None:
    ward = Ward()
    first, second = ward.hang(2)
    ward.stand.wait(6.0)
    for token in (first, second):
        ward.stand.reply(ward.handler, token, Command("sendClients", ["alice"], b'"late"'))
    assert ward.stand.heard(ward.bridge) == []
