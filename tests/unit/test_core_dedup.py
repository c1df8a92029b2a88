"""Messages that come again: by a client's own key, and from a bridge that has lost its broker. Each is done once, and
each time it is sent it has one report."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.wire.messages import (
    Command,
    Confirm,
    Deliver,
    Goodbye,
    Hello,
    Message,
    Open,
    Outcome,
    Reply,
    Report,
    Request,
    Submit,
    Welcome,
)
from tests.unit.core_stand import START, Stand, clients

SWEEP_AT = Limits().sweep_at


class Edge:
    """A bridge that may lose its link and come back on another in the same life, with alice's and bob's sessions."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.comes()

    def comes(self) -> None:
        self.link = self.stand.join("bridge", "b", {"epoch": "life"})
        self.stand.say(self.link, Open(1, "alice"))
        self.stand.say(self.link, Open(2, "bob"))

    def goes(self) -> None:
        """The link breaks: what was said on it and not heard is lost."""
        self.stand.say(self.link, Goodbye(None))
        del self.stand.alive[self.link]
        self.stand.heard(self.link)

    def relinks(self) -> None:
        self.goes()
        self.comes()

    def submits(self, token: int, *, session: int = 1, **meta: Any) -> None:
        self.stand.say(self.link, Submit(token, session, "chat", b"%d" % token, meta))

    def reports(self) -> list[Report]:
        return self.stand.heard_of(self.link, Report)

    def confirms(self, reports: int) -> None:
        self.stand.say(self.link, Confirm(0, reports=reports))


def town(limits: Limits | None = None) -> tuple[Stand, Edge, Link]:
    """A stand, the bridge, and a handler."""
    routes = {"s2": Route("s2", native="10.0.0.2:2223")}
    settings = Settings(
        "s1", routes=routes, hosts={"10.0.0.2": ("s2",)}, limits=limits or Limits(), declared_types=frozenset({"late"})
    )
    stand = Stand(settings, accounts=frozenset({"alice", "bob", "carol"}), now=START - 5.0)
    stand.wait(5.0)
    return stand, Edge(stand), stand.handler("chat")


def good(token: int, message: int | None = None, **recipients: str) -> Report:
    return Report(token, 0, None, f"s1/b-life/{message or token}", recipients)


# --- a bridge comes back --------------------------------------------------------------------------------------------


def test_what_still_runs_is_reported_on_the_new_link_and_given_to_no_handler_again() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    request = stand.request(chat)
    resume.relinks()
    resume.submits(7, attempt=2)
    assert stand.heard_of(chat, Request) == []
    stand.reply(chat, request.token)
    assert resume.reports() == [good(7)]


def test_a_report_that_was_lost_is_told_again() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat, clients("carol"))
    resume.relinks()
    resume.submits(7, attempt=2)
    assert resume.reports() == [good(7, carol="queued")]
    assert stand.heard_of(chat, Request) == []
    assert len(stand.mail("carol")) == 1


def test_a_report_that_is_lost_twice_is_told_a_third_time() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat)
    for attempt in (2, 3, 4):
        resume.relinks()
        resume.submits(7, attempt=attempt)
    assert resume.reports() == [good(7)]
    assert stand.heard_of(chat, Request) == []


def test_a_broker_that_ends_refuses_what_is_new_and_leaves_to_the_next_one_what_may_not_be() -> None:
    stand, resume, chat = town()
    stand.router.drain()
    resume.submits(7)
    resume.submits(8, attempt=2)  # an earlier life had it, and may have given it to a handler
    assert [(report.token, report.status, report.reason) for report in resume.reports()] == [(7, 1, "overloaded")]
    assert stand.heard_of(chat, Request) == []
    stand.restart()
    chat = stand.handler("chat")
    resume.comes()
    resume.submits(8, attempt=3)
    assert stand.request(chat).meta["attempt"] == 3


def test_hello_again_on_the_same_link_voids_what_was_said_on_it() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat)
    resume.submits(8)
    request = stand.request(chat)
    reply = Reply(request.token, 0, [])
    stand.heard(resume.link)
    stand.say(resume.link, Hello(1, "bridge", "b", {"epoch": "life"}))
    stand.reply(chat, reply.token)
    assert stand.one(resume.link, Welcome)
    assert resume.reports() == [good(8)]
    resume.submits(7, attempt=2)
    assert resume.reports() == [good(7)]
    assert stand.heard_of(chat, Request) == []


def test_a_report_said_in_the_very_turn_in_which_hello_voids_it_is_told_again() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat, clients("nobody", "alice"))
    delivery = stand.one(resume.link, Deliver)
    batch: list[Message] = [Confirm(delivery.serial), Hello(1, "bridge", "b", {"epoch": "life"})]
    stand.say(resume.link, *batch)
    assert [report.token for report in resume.reports()] == [7]
    resume.submits(7, attempt=2)
    assert [report.token for report in resume.reports()] == [7]
    assert stand.heard_of(chat, Request) == []


def test_what_the_bridge_has_heard_is_remembered_no_longer() -> None:
    stand, resume, chat = town()
    for token in (7, 8, 9):
        resume.submits(token)
        stand.answer(chat)
    resume.confirms(2)
    resume.relinks()
    resume.submits(9, attempt=2)
    assert resume.reports() == [good(9)]
    resume.submits(7, attempt=2)  # it would not; had it, nobody knew
    assert stand.request(chat).meta["attempt"] == 2


def test_every_report_on_a_link_counts_whatever_it_is_on() -> None:
    """Or what the bridge has heard would be taken for what it has not."""
    stand, resume, chat = town()
    resume.submits(1, dedup="k")
    stand.answer(chat)
    resume.submits(2, dedup="k")  # ended before: told at once
    resume.submits(3, dedup="l")
    resume.submits(4, dedup="l")  # under way: told with it
    stand.answer(chat)
    stand.say(resume.link, Submit(5, None, "chat", b"5", {"scope": "server", "address": "10.9.9.9"}))  # refused at once
    stand.say(resume.link, Submit(6, 1, "bester.x", b"6"))
    resume.submits(7)
    stand.answer(chat)
    assert sorted(report.token for report in resume.reports()) == [1, 2, 3, 4, 5, 6, 7]
    resume.confirms(6)
    resume.relinks()
    resume.submits(7, attempt=2)
    assert [report.token for report in resume.reports()] == [7]
    assert stand.heard_of(chat, Request) == []
    resume.submits(8)
    stand.answer(chat)
    resume.confirms(1)
    (held,) = stand.state.resume.values()
    assert held.unacknowledged == 1
    resume.relinks()
    resume.submits(8, attempt=2)
    assert [report.token for report in resume.reports()] == [8]
    assert stand.heard_of(chat, Request) == []


def test_what_the_bridge_reported_by_itself_it_does_not_submit_again_and_little_of_it_is_remembered() -> None:
    stand, resume, chat = town()
    for token in range(1, 3 * SWEEP_AT):
        resume.submits(token)
        stand.answer(chat, clients("alice"))
        delivery = stand.deliver(resume.link)
        assert delivery.token == token
        stand.say(resume.link, Confirm(delivery.serial))
        (held,) = stand.state.resume.values()
        assert (held.cases <= SWEEP_AT, held.unacknowledged) == (True, 0)


def test_the_one_that_comes_as_they_are_thrown_out_is_known_too() -> None:
    stand, resume, chat = town()
    for token in range(1, SWEEP_AT + 1):
        resume.submits(token)
        stand.answer(chat)
    resume.submits(SWEEP_AT + 1)
    request = stand.request(chat)
    resume.relinks()
    resume.submits(SWEEP_AT + 1, attempt=2)
    assert stand.heard_of(chat, Request) == []
    stand.reply(chat, request.token)
    assert resume.reports() == [good(SWEEP_AT + 1)]


def test_of_what_is_over_no_long_list_of_names_is_kept() -> None:
    stand, resume, chat = town()
    resume.submits(1)
    stand.answer(chat, clients(*(f"nobody-{number}" for number in range(10_000))))
    assert len(resume.reports()[0].recipients) == 10_000
    (held,) = stand.state.resume.values()
    assert (held.cases, held.recipients) == (1, 0)


def test_what_runs_for_long_is_known_behind_many_that_are_over() -> None:
    stand, resume, chat = town()
    resume.submits(1)
    slow = stand.request(chat)
    for token in range(2, 3 * SWEEP_AT):
        resume.submits(token)
        stand.answer(chat)
    resume.relinks()
    resume.submits(1, attempt=2)
    assert stand.heard_of(chat, Request) == []
    stand.reply(chat, slow.token)
    assert resume.reports() == [good(1)]


def test_what_ends_between_hello_and_its_being_submitted_again_is_told_then() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    request = stand.request(chat)
    resume.relinks()
    stand.reply(chat, request.token)
    assert resume.reports() == []
    resume.submits(8)
    stand.answer(chat)
    assert resume.reports() == [good(8)]
    resume.confirms(1)
    resume.submits(7, attempt=2)
    assert resume.reports() == [good(7)]
    assert stand.heard_of(chat, Request) == []


def test_what_ends_between_hello_on_the_same_link_and_its_being_submitted_again_is_told_once() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    request = stand.request(chat)
    stand.say(resume.link, Hello(1, "bridge", "b", {"epoch": "life"}))
    stand.reply(chat, request.token)
    resume.submits(7, attempt=2)
    assert resume.reports() == [good(7)]
    assert stand.heard_of(chat, Request) == []


def test_what_ends_because_the_link_is_lost_is_told_on_the_next() -> None:
    """The old link is void when the bridge comes back on a new one, in the same turn."""
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat, clients("nobody", "alice"))
    stand.heard(resume.link)
    resume.comes()
    resume.submits(7, attempt=2)
    report = stand.report(resume.link)
    assert (report.reason, report.recipients) == ("unknown-user", {"nobody": "failed:unknown-user", "alice": "queued"})
    assert stand.heard_of(chat, Request) == []


def test_a_link_that_says_it_is_another_bridge_leaves_the_first_to_come_back() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat)
    resume.reports()
    stand.say(resume.link, Hello(1, "bridge", "b", {"epoch": "another"}))
    resume.comes()
    resume.submits(7, attempt=2)
    assert resume.reports() == [good(7)]
    stand.wait(905.0, step_s=1.0)
    assert len(stand.state.resume) == 2


def test_a_delivery_that_was_lost_with_the_link_is_reported_by_the_broker() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat, clients("alice"))
    assert stand.one(resume.link, Deliver).token == 7
    resume.relinks()
    resume.submits(7, attempt=2)
    assert resume.reports() == [good(7, alice="queued")]
    assert stand.one(resume.link, Deliver).meta == {"origin": "s1", "redelivered": True}


def test_after_a_restart_it_is_done_again_under_the_same_id_and_marked() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    first = stand.request(chat)
    stand.restart()
    resume, chat = Edge(stand), stand.handler("chat")
    resume.submits(7, attempt=2)
    again = stand.answer(chat, clients("bob", "carol"))
    assert (again.meta["id"], again.meta["attempt"]) == (first.meta["id"], 2)
    delivery = stand.deliver(resume.link)
    assert (delivery.id, delivery.meta["redelivered"]) == (f"{first.meta['id']}.0", True)
    assert resume.reports() == [good(7, bob="delivered", carol="queued")]
    assert stand.one(stand.bridge("carol"), Deliver).meta["redelivered"] is True


def test_what_waits_already_is_not_kept_twice_after_a_restart() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat, clients("carol"))
    stand.restart()
    resume, chat = Edge(stand), stand.handler("chat")
    resume.submits(7, attempt=2)
    stand.answer(chat, clients("carol"))
    assert resume.reports() == [good(7, carol="queued")]
    assert len(stand.mail("carol")) == 1
    assert stand.state.queues.messages == 1


def test_whose_it_is_is_what_its_session_says_however_often_it_is_submitted() -> None:
    stand, resume, chat = town()
    stand.say(resume.link, Submit(7, 3, "chat", b"7", {"attempt": 2, "user": "alice"}))
    assert [report.reason for report in resume.reports()] == ["not-allowed"]
    assert stand.heard_of(chat, Request) == []


def test_attempts_of_an_earlier_life_are_no_handlers_fault() -> None:
    stand, resume, chat = town(Limits(attempts=2))
    resume.submits(7, attempt=5)
    assert stand.request(chat).meta["attempt"] == 5
    second = stand.handler("chat")
    stand.say(chat, Goodbye(None))
    stand.take(stand.router.on_undeliverable(chat, Goodbye(None), stand.now))
    assert stand.answer(second).meta["attempt"] == 6
    assert resume.reports() == [good(7)]


@pytest.mark.parametrize("attempt", [1, 0, -3, "2", None, 2.0, True, 2**70])
def test_an_attempt_that_is_none_is_the_first(attempt: object) -> None:
    stand, resume, chat = town()
    resume.submits(7, attempt=attempt)
    assert stand.answer(chat, clients("alice")).meta["attempt"] == (1_000_000 if attempt == 2**70 else 1)
    assert stand.one(resume.link, Deliver).meta.get("redelivered", False) == (attempt == 2**70)


def test_after_a_quarter_of_an_hour_a_bridge_that_is_gone_is_forgotten() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat)
    resume.goes()
    stand.wait(890.0, step_s=1.0)
    resume.comes()
    resume.submits(7, attempt=2)
    assert resume.reports() == [good(7)]
    resume.goes()
    assert stand.state.resume
    stand.wait(905.0, step_s=1.0)
    assert stand.state.resume == {}


def test_another_life_of_the_bridge_is_another_bridge() -> None:
    stand, resume, chat = town()
    resume.submits(7)
    stand.answer(chat)
    link = stand.join("bridge", "b", {"epoch": "next life"})
    stand.say(link, Open(1, "alice"))
    stand.say(link, Submit(7, 1, "chat", b"7", {"attempt": 2}))
    assert stand.answer(chat).meta["id"] == "s1/b-next life/7"


# --- a client's own key ---------------------------------------------------------------------------------------------


def test_the_same_key_of_the_same_user_is_done_once_and_reported_each_time() -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup="k")
    resume.submits(8, dedup="k")
    assert resume.reports() == []
    stand.answer(chat, clients("carol"))
    assert resume.reports() == [good(7, carol="queued"), good(8, 7, carol="queued")]
    other = stand.bridge("alice", name="other")
    stand.say(other, Submit(1, 1, "chat", b"1", {"dedup": "k"}))
    assert stand.report(other) == good(1, 7, carol="queued")
    assert stand.heard_of(chat, Request) == []
    assert len(stand.mail("carol")) == 1


def test_one_that_the_bridge_would_have_reported_is_reported_by_the_broker_to_both() -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup="k")
    resume.submits(8, dedup="k")
    stand.answer(chat, clients("alice"))
    delivery = stand.deliver(resume.link)
    assert delivery.token is None
    assert resume.reports() == [good(7), good(8, 7)]


def test_one_that_comes_again_while_its_delivery_carries_the_report_is_told_by_the_broker() -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup="k")
    stand.answer(chat, clients("alice"))
    delivery = stand.one(resume.link, Deliver)
    assert delivery.token == 7
    resume.submits(8, dedup="k")
    assert resume.reports() == []
    stand.say(resume.link, Confirm(delivery.serial))
    assert resume.reports() == [good(8, 7)]


def test_it_is_known_on_a_new_connection_while_it_still_runs() -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup="k")
    request = stand.request(chat)
    stand.say(resume.link, Goodbye(None))
    other = stand.bridge("alice", name="other")
    stand.say(other, Submit(1, 1, "chat", b"1", {"dedup": "k", "resent": True}))
    assert stand.heard_of(chat, Request) == []
    stand.reply(chat, request.token)
    assert stand.report(other) == good(1, 7)


def test_another_users_key_is_another_key() -> None:
    stand, resume, chat = town()
    resume.submits(7, session=1, dedup="k")
    resume.submits(8, session=2, dedup="k")
    assert [request.user for request in stand.heard_of(chat, Request)] == ["alice", "bob"]


def test_it_is_known_for_a_quarter_of_an_hour_and_no_longer() -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup="k")
    stand.answer(chat)
    stand.wait(899.0, step_s=1.0)
    resume.submits(8, dedup="k")
    assert stand.heard_of(chat, Request) == []
    stand.wait(1.0)
    resume.submits(9, dedup="k")
    stand.answer(chat)
    assert resume.reports() == [good(7), good(8, 7), good(9)]


def test_above_a_bound_the_oldest_key_is_forgotten() -> None:
    stand, resume, chat = town(Limits(max_remembered=2))
    for token, key in ((1, "a"), (2, "b"), (3, "c"), (4, "b"), (5, "a")):
        resume.submits(token, dedup=key)
    assert [request.body for request in stand.heard_of(chat, Request)] == [b"1", b"2", b"3", b"5"]


def test_what_ended_badly_before_anything_was_done_is_tried_again() -> None:
    stand, resume, chat = town()
    stand.say(resume.link, Submit(1, 1, "unknown", b"1", {"dedup": "k"}))
    resume.submits(2, dedup="k")
    stand.answer(chat)
    assert [report.reason for report in resume.reports()] == ["unknown-type", None]


def test_what_ended_badly_in_part_is_not() -> None:
    stand, resume, chat = town()
    resume.submits(1, dedup="k")
    stand.answer(chat, clients("carol", "nobody"))
    resume.submits(2, dedup="k")
    first, second = resume.reports()
    assert second == first._replace(token=2)
    assert (first.reason, len(stand.mail("carol"))) == ("unknown-user", 1)


@pytest.mark.parametrize("key", [None, 5, "", "x" * 65, ["k"], {"k": 1}])
def test_a_key_that_is_none_is_ignored(key: object) -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup=key)
    resume.submits(8, dedup=key)
    assert len(stand.heard_of(chat, Request)) == 2


def test_the_longest_key_counts() -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup="x" * 64)
    resume.submits(8, dedup="x" * 64)
    assert len(stand.heard_of(chat, Request)) == 1


def test_however_often_it_comes_each_has_a_report() -> None:
    stand, resume, chat = town()
    for token in range(1, 31):
        resume.submits(token, dedup="k")
    assert resume.reports() == [Report(token, 1, "overloaded", "s1/b-life/1", {}) for token in range(2, 15)]
    stand.answer(chat)
    assert resume.reports() == [good(1), *[good(token, 1) for token in range(15, 31)]]


def test_a_message_that_was_resent_and_is_not_known_any_more_is_marked() -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup="k")
    stand.restart()
    resume, chat = Edge(stand), stand.handler("chat")
    resume.submits(8, dedup="k", resent=True)
    stand.answer(chat, clients("alice", "carol"))
    assert stand.deliver(resume.link).meta == {"origin": "s1", "redelivered": True}
    assert resume.reports() == [good(8, alice="delivered", carol="queued")]
    assert stand.one(stand.bridge("carol"), Deliver).meta["redelivered"] is True


def test_a_client_that_resends_over_a_bridge_that_resubmits_has_each_reported_once() -> None:
    stand, resume, chat = town()
    resume.submits(7, dedup="k")
    resume.submits(8, dedup="k", resent=True)
    request = stand.request(chat)
    resume.relinks()
    resume.submits(7, attempt=2, dedup="k")
    resume.submits(8, attempt=2, dedup="k", resent=True)
    stand.reply(chat, request.token)
    assert resume.reports() == [good(7), good(8, 7)]
    assert stand.heard_of(chat, Request) == []


# --- emissions ------------------------------------------------------------------------------------------------------


def test_an_emission_is_known_by_its_id_for_its_type_only() -> None:
    stand, _, _ = town()
    clock = stand.handler("clock", "watch")
    commands: list[Command] = [clients("carol")]
    tokens = [stand.emit(clock, type_, *commands, id="noon") for type_ in ("clock", "watch", "clock")]
    assert stand.heard_of(clock, Outcome) == [Outcome(token, 0, {"carol": "queued"}, None) for token in tokens]
    assert len(stand.mail("carol")) == 2
