"""A worker dies with several messages in flight: the message that kills is found, and no other is blamed."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.cases import Case, Kind
from bester.broker.core.effects import Link
from bester.broker.core.isolation import DRAIN_S
from bester.broker.core.jobs import Job
from bester.broker.core.settings import Budget, Settings
from bester.broker.core.suspects import Suspicion
from bester.broker.core.workers import Workers
from bester.broker.store_requests import DeadLetter
from bester.broker.wire.messages import Goodbye, Heartbeat, Relayed, Report, Request
from tests.unit.core_stand import Stand, clients

POISON = b'"poison"'


class Ward:
    """A stand with handlers that die over poison at once, and answer all other messages when told to."""

    def __init__(
        self, workers: int = 1, *, credit: int = 100, types: tuple[str, ...] = ("t",), attempts: int = 3, **options: Any
    ) -> None:
        budgets = {"t": Budget(None, attempts)}
        self.stand = Stand(Settings("s1", open_accounts=True, accept="open", budgets=budgets))
        self.stand.wait(3.0)
        self.bridge = self.stand.bridge("alice", "bob")
        self.types, self.credit, self.options = types, credit, options
        self.deaths: list[list[bytes]] = []  # messages in flight by handler
        self.hands: dict[Link, list[Request]] = {}
        self.tokens: dict[int, bytes] = {}
        for _ in range(workers):
            self.join()

    def join(self) -> Link:
        link = self.stand.handler(*self.types, credit=self.credit, **self.options)
        self.hands[link] = []
        self.listen()
        return link

    def submit(self, body: bytes, type_: str = "t", session: int = 1) -> None:
        self.tokens[self.stand.submit(self.bridge, type_, body, session=session)] = body
        self.listen()

    def listen(self) -> None:
        for link in self.hands:
            self.hands[link] += self.stand.heard_of(link, Request)

    def holding(self) -> list[list[bytes]]:
        return [[request.body for request in held] for held in self.hands.values()]

    def kill(self, link: Link) -> None:
        self.deaths.append([request.body for request in self.hands.pop(link)])
        self.stand.alive.pop(link, None)
        self.stand.take(self.stand.router.on_undeliverable(link, Heartbeat(), self.stand.now))
        self.listen()

    def answer(self, link: Link, number: int = 0) -> bytes:
        request = self.hands[link].pop(number)
        self.stand.reply(link, request.token)
        self.listen()
        return request.body

    def work(self, rounds: int = 1000) -> None:
        """Let handlers that hold poison die and be restarted, and the others answer one message each, until all is
        done."""
        for _ in range(rounds):
            busy = [link for link, held in self.hands.items() if held]
            if not busy:
                return
            for link in busy:
                if any(request.body == POISON for request in self.hands[link]):
                    self.kill(link)
                    self.join()
                elif self.hands[link]:
                    self.answer(link)
        raise AssertionError("it goes on for ever")

    def reports(self) -> dict[bytes, list[str | None]]:
        reasons: dict[bytes, list[str | None]] = {}
        for report in self.stand.heard_of(self.bridge, Report):
            reasons.setdefault(self.tokens[report.token], []).append(report.reason)
        return reasons

    def letters(self) -> list[DeadLetter]:
        return self.stand.dead()[::-1]

    def is_well(self) -> None:
        """Check that every message has ended, and no state is left."""
        state = self.stand.state
        assert self.stand.router.idle
        assert (state.jobs, state.workers.waiting) == (0, {})
        assert (state.workers.suspects, state.workers.isolated) == (0, 0)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_killer_among_ten_in_flight_is_given_up_and_the_others_are_done(workers: int, place: int) -> None:
    ward = Ward(workers)
    bodies = [b"%d" % number for number in range(10)]
    bodies[place] = POISON
    for body in bodies:
        ward.submit(body)
    ward.work()
    assert ward.reports() == {body: ["handler-lost" if body == POISON else None] for body in bodies}
    assert [(letter.body, letter.reason) for letter in ward.letters()] == [(POISON, "handler-lost")]
    assert ward.deaths[-3:] == [[POISON]] * 3, "attempts are deaths that it was alone with"
    assert len(ward.deaths) <= 4
    ward.is_well()


def test_256_innocent_ones_of_several_users_types_and_servers_survive_two_that_kill() -> None:
    ward = Ward(1, credit=256, types=("t", "u", "v"))
    peer = ward.stand.server("s9")
    bodies = [b"%d" % number for number in range(254)]
    bodies.insert(100, POISON)
    bodies.insert(200, POISON)
    for number, body in enumerate(bodies):
        if number % 50 == 49:
            ward.stand.relay(peer, "t", body)
            ward.listen()
        else:
            ward.submit(body, "tuv"[number % 3], 1 + number % 2)
    ward.work(2000)
    reports = ward.reports()
    assert reports.pop(POISON) == ["handler-lost"] * 2
    assert all(reasons == [None] for reasons in reports.values())
    assert [answer.outcome for answer in ward.stand.heard_of(peer, Relayed)] == ["delivered"] * 5
    assert [letter.body for letter in ward.letters()] == [POISON] * 2
    ward.is_well()


def test_death_over_a_lone_message_uses_up_an_attempt_and_one_among_others_does_not() -> None:
    ward = Ward(1, attempts=2)
    for _ in range(3):
        ward.submit(POISON)
    (link,) = ward.hands
    ward.kill(link)
    ward.join()
    assert ward.holding() == [[POISON]]
    ward.work()
    assert ward.reports() == {POISON: ["handler-lost"] * 3}
    assert [len(held) for held in ward.deaths] == [3, 1, 1, 2, 1, 1, 1, 1]
    ward.is_well()


def test_suspect_is_alone_with_its_worker_and_new_messages_go_to_others() -> None:
    ward = Ward(3, credit=4)
    first, second, third = ward.hands
    for number in range(6):
        ward.submit(b"%d" % number)
    held = [request.body for request in ward.hands[first]]
    assert len(held) == 2
    ward.kill(first)
    aside = [link for link in (second, third) if ward.hands[link]]
    assert ward.holding() == [[b"1", b"4"], [b"2", b"5"]], "one of them finishes its messages in flight first"
    ward.submit(b"new")
    (other,) = [link for link in aside if b"new" in [request.body for request in ward.hands[link]]]
    (quiet,) = [link for link in aside if link is not other]
    while ward.hands[quiet]:
        if ward.answer(quiet) not in held:
            continue
    assert not ward.hands[quiet]


def test_first_suspect_is_given_first_and_before_waiting_messages() -> None:
    ward = Ward(1, credit=3)
    for number in range(5):
        ward.submit(b"%d" % number)
    (link,) = ward.hands
    ward.kill(link)
    link = ward.join()
    done = []
    for _ in range(3):
        assert len(ward.hands[link]) == 1
        done.append(ward.answer(link))
    assert done == [b"0", b"1", b"2"]
    assert [request.body for request in ward.hands[link]] == [b"3", b"4"], "after that it takes several again"


def test_group_of_the_killer_is_cleared_at_its_first_death_alone() -> None:
    ward = Ward(1, credit=10)
    for body in (POISON, b"1", b"2", b"3"):
        ward.submit(body)
    (link,) = ward.hands
    ward.kill(link)
    link = ward.join()
    assert ward.holding() == [[POISON]]
    ward.kill(link)
    ward.join()
    other = ward.join()
    assert [request.body for request in ward.hands[other]] == [b"1", b"2", b"3"], "together, as before"


def test_suspects_of_an_ordered_type_keep_each_users_order() -> None:
    ward = Ward(2, credit=4, order={"t": "user"})
    bodies = [b"%d" % number for number in range(12)]
    for number, body in enumerate(bodies):
        ward.submit(body, session=1 + number % 2)
    done: dict[int, list[int]] = {0: [], 1: []}
    victim = next(link for link, held in ward.hands.items() if held)
    ward.kill(victim)
    ward.join()
    for _ in range(100):
        for link in [link for link, held in ward.hands.items() if held]:
            number = int(ward.answer(link))
            done[number % 2].append(number)
    assert done == {0: [0, 2, 4, 6, 8, 10], 1: [1, 3, 5, 7, 9, 11]}
    assert set(map(tuple, ward.reports().values())) == {(None,)}
    ward.is_well()


def test_settled_message_of_a_dead_worker_leaves_the_others_suspected() -> None:
    ward = Ward(1, credit=4)
    ward.submit(b"hangs")
    ward.stand.wait(31.0)
    assert ward.reports() == {b"hangs": ["timeout"]}
    ward.submit(b"innocent")
    (link,) = ward.hands
    ward.kill(link)
    assert ward.deaths == [[b"hangs", b"innocent"]]
    link = ward.join()
    ward.kill(link)
    ward.kill(ward.join())
    assert ward.reports() == {}
    ward.kill(ward.join())
    assert ward.reports() == {b"innocent": ["handler-lost"]}


def test_stuck_worker_is_not_waited_for_by_suspects() -> None:
    ward = Ward(2, credit=2)
    ward.submit(b"hangs")
    (other,) = [link for link, held in ward.hands.items() if not held]
    ward.stand.wait(31.0)
    for body in (b"1", b"2"):
        ward.submit(body)
    assert [request.body for request in ward.hands[other]] == [b"1"]
    ward.kill(other)
    assert ward.holding() == [[b"hangs", b"2"]], "it is set aside, for there is no other"
    replacement = ward.join()
    assert [request.body for request in ward.hands[replacement]] == [b"1"]


def test_message_that_could_not_be_sent_to_a_dead_worker_uses_up_no_attempt() -> None:
    ward = Ward(3, attempts=2)
    ward.submit(b"1")
    first = next(link for link, held in ward.hands.items() if held)
    ward.kill(first)
    for _ in range(3):  # the next workers are dead, too, and their links say so when the message is sent
        link = next(link for link, held in ward.hands.items() if held)
        (request,) = ward.hands.pop(link)
        assert request.meta["attempt"] == 2
        ward.join()
        ward.stand.alive.pop(link, None)
        ward.stand.take(ward.stand.router.on_undeliverable(link, request, ward.stand.now))
        ward.listen()
    (last,) = [link for link, held in ward.hands.items() if held]
    ward.answer(last)
    assert ward.reports() == {b"1": [None]}
    ward.is_well()


def test_messages_that_could_not_be_sent_keep_their_order() -> None:
    ward = Ward(1, order={"t": "user"})
    (link,) = ward.hands
    for body in (b"1", b"2", b"3"):
        ward.submit(body)
    first, *others = ward.hands.pop(link)
    ward.stand.alive.pop(link, None)
    ward.stand.take(ward.stand.router.on_undeliverable(link, first, ward.stand.now, others))
    last = ward.join()
    assert [ward.answer(last) for _ in range(3)] == [b"1", b"2", b"3"]
    assert ward.reports() == {b"1": [None], b"2": [None], b"3": [None]}
    ward.is_well()


def test_suspect_is_given_to_the_last_worker_beside_messages_that_are_over() -> None:
    ward = Ward(1, credit=64)
    ward.submit(b"hangs")
    (last,) = ward.hands
    ward.stand.wait(31.0)
    other = ward.join()
    for body in (b"1", b"2", b"3", b"4"):
        ward.submit(body)
    held = [request.body for request in ward.hands[other]]
    while len(ward.hands[last]) > 1:
        ward.answer(last, 1)
    ward.kill(other)
    for body in held:
        assert [request.body for request in ward.hands[last]] == [b"hangs", body]
        ward.answer(last, 1)
    assert {body: said for body, said in ward.reports().items() if body in held} == {body: [None] for body in held}
    ward.submit(b"new")
    assert [request.body for request in ward.hands[last]] == [b"hangs", b"new"]


def test_last_worker_with_a_long_message_goes_on_with_new_ones_while_suspects_wait() -> None:
    ward = Ward(1, credit=64, lease_ms=600_000)
    ward.submit(b"long")
    (last,) = ward.hands
    other = ward.join()
    for body in (b"1", b"2", b"3"):
        ward.submit(body)
    while len(ward.hands[last]) > 1:
        ward.answer(last, 1)
    held = [request.body for request in ward.hands[other]]
    ward.kill(other)
    assert len(held) == 2
    for number in range(9):
        ward.submit(b"new %d" % number)
        ward.stand.wait(2 * DRAIN_S)
        ward.listen()
        assert [request.body for request in ward.hands[last]] == [b"long", b"new %d" % number]
        ward.answer(last, 1)
    ward.answer(last)
    ward.stand.wait(2 * DRAIN_S)
    ward.listen()
    for _ in held:
        ward.answer(last)
    assert set().union(*ward.reports().values()) == {None}
    ward.is_well()


def test_deaths_of_a_suspect_are_remembered_where_messages_that_are_over_die_with_it() -> None:
    ward = Ward(1, credit=3, attempts=2)
    ward.submit(POISON)
    ward.kill(next(iter(ward.hands)))
    survivor = ward.join()
    ward.stand.wait(31.0)
    assert ward.reports() == {POISON: ["timeout"]}
    ward.submit(POISON)
    ward.kill(survivor)  # beside one that is over: any of them may be the cause
    for _ in range(2):
        ward.kill(ward.join())
    assert ward.reports() == {POISON: ["handler-lost"]}
    ward.is_well()


def test_leaving_worker_finishes_its_suspect_and_the_others_go_elsewhere() -> None:
    ward = Ward(1, credit=3)
    for number in range(3):
        ward.submit(b"%d" % number)
    (link,) = ward.hands
    ward.kill(link)
    leaving = ward.join()
    ward.stand.say(leaving, Goodbye(None))
    ward.stand.heard(leaving)
    other = ward.join()
    assert [request.body for request in ward.hands[other]] == [b"1"]
    assert ward.answer(leaving) == b"0"
    assert ward.answer(other) == b"1"
    assert ward.answer(other) == b"2"
    ward.is_well()


def test_message_of_a_dead_handler_waits_longer_for_a_restart_than_a_new_one() -> None:
    ward = Ward(1)
    for body in (b"1", b"2"):
        ward.submit(body)
    (link,) = ward.hands
    ward.kill(link)
    ward.submit(b"new")
    ward.stand.wait(6.0)
    assert ward.reports() == {b"new": ["no-handler"]}
    ward.stand.wait(13.0)
    ward.join()
    ward.work()
    assert ward.reports() == {b"1": [None], b"2": [None]}


def test_suspect_that_waits_too_long_is_a_dead_letter() -> None:
    ward = Ward(1, lease_ms=600_000)
    for body in (b"1", b"2"):
        ward.submit(body)
    (link,) = ward.hands
    ward.kill(link)
    link = ward.join()
    assert ward.holding() == [[b"1"]]
    ward.stand.wait(601.0, step_s=1.0)
    assert ward.reports() == {b"1": ["timeout"], b"2": ["handler-lost"]}
    assert sorted(letter.reason for letter in ward.letters()) == ["handler-lost", "timeout"]


def test_overdue_suspect_is_taken_out_also_behind_a_later_one() -> None:
    workers = Workers(20_000)
    case = Case(Kind.SUBMIT, Link("ipc", b"here"), 1, "m", "m")
    jobs = [Job(case, str(n), str(n), "t", b"1", scope="client", origin="s", user="u") for n in range(4)]
    for each, since in zip(jobs, (3.0, 1.0, 2.0, 4.0), strict=True):
        each.since, each.suspicion = since, Suspicion()
        workers.queues.enqueue(each, first=True)
    for now, late, left in ((0.5, [], 4), (1.0, [jobs[1]], 3), (2.5, [jobs[2]], 2), (9.0, [jobs[3], jobs[0]], 0)):
        assert workers.queues.overdue("t", dict.fromkeys(jobs, now).__getitem__) == late
        assert workers.queues.total == left
    assert not workers.queues.types()


def test_message_of_workers_that_are_silent_together_has_killed_one_of_them() -> None:
    ward = Ward(3)
    ward.submit(b"1")
    for link in list(ward.hands):
        ward.stand.alive.pop(link)
    ward.stand.wait(8.0)
    ward.listen()
    assert [len(held) for held in ward.hands.values()].count(1) == 1, "only the first was given it"
    assert ward.letters() == []
    ward.hands.clear()
    link = ward.join()
    assert [request.meta["attempt"] for request in ward.hands[link]] == [2]
    assert ward.answer(link) == b"1"
    assert ward.reports() == {b"1": [None]}
    ward.is_well()


def test_suspects_of_several_types_take_turns() -> None:
    ward = Ward(1, types=("t", "u"))
    for number in range(3):
        for type_ in ("t", "u"):
            ward.submit(b'"%s%d"' % (type_.encode(), number), type_)
    (link,) = ward.hands
    ward.kill(link)
    link = ward.join()
    answers = [ward.answer(link) for _ in range(6)]
    assert {answers[0][1:2], answers[1][1:2]} == {b"t", b"u"}
    assert {answers[2][1:2], answers[3][1:2]} == {b"t", b"u"}


def test_log_counts_the_suspects() -> None:
    ward = Ward(1, types=("t", "u"))
    for number in range(4):
        ward.submit(b"%d" % number, "tu"[number % 2])
    (link,) = ward.hands
    ward.kill(link)
    logged = [notice.fields for notice in ward.stand.notices if notice.event == "suspected"]
    assert logged == [{"messages": 4, "types": ["t", "u"]}]


def test_results_of_a_suspect_are_delivered_as_usual() -> None:
    ward = Ward(1)
    for body in (b"1", b"2"):
        ward.submit(body)
    (link,) = ward.hands
    ward.kill(link)
    link = ward.join()
    request = ward.hands[link].pop(0)
    assert request.meta["attempt"] == 2
    ward.stand.reply(link, request.token, clients("bob"))
    delivered = ward.stand.deliver(ward.bridge)
    assert delivered.meta.get("redelivered") is None, "nothing of it was carried out before"
