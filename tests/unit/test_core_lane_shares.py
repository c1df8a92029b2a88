"""Shares of a lane to another server: one sender's messages wait, and another's do not."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.lane_shares import AT_ONCE, FAR_S, SHARED_S
from bester.broker.core.settings import Limits, Route
from bester.broker.store_requests import lane
from bester.broker.wire.messages import Forward, Forwarded, Report
from tests.unit.core_office import Office, bodies_of, numbered
from tests.unit.core_stand import servers

LANE = lane("s2", "one")
NATIVE = lane("s3", "one")
SHARE = 3
ALICE, BOB = 1, 2
A, B, C, LATE, LAST = (b'"%s"' % text for text in (b"a", b"b", b"c", b"late", b"last"))


class Shared(Office):
    """An office of alice and bob, whose lane to s2 is shared: both have a message in transfer."""

    target = "s2"

    def __init__(self, **limits: int) -> None:
        super().__init__(Limits(max_lane_of_one=SHARE, **limits))
        assert self.up() == []
        self.tokens: dict[bytes, int] = {}
        self.write(ALICE, A)
        self.write(BOB, B)
        self.first = self.relays()
        assert bodies_of(self.first) == [A, B]

    def opens(self) -> None:
        self.bridge = self.stand.bridge("alice", "bob")
        self.one = self.stand.handler("one", "two")

    def write(self, session: int, *bodies: bytes, **meta: Any) -> None:
        """Let a user send messages to the server."""
        for body in bodies:
            self.tokens[body] = self.stand.submit(self.bridge, "one", session=session, **meta)
            self.stand.answer(self.one, servers(self.target, body=body))

    def outcome(self, body: bytes) -> dict[str, str]:
        return self.outcomes(self.tokens[body])

    def reports(self) -> list[Report]:
        """Return the reports to the senders so far."""
        return self.stand.heard_of(self.bridge, Report)

    def answers_all(self) -> list[bytes]:
        """Answer all that goes to s2, one by one; return the bodies in the order in which they went."""
        went = []
        while relays := self.relays():
            went += bodies_of(relays)
            for relay in relays:
                self.answers(relay)
        return went


def test_one_senders_messages_wait_for_its_share_and_anothers_do_not() -> None:
    office = Shared()
    office.write(ALICE, *numbered(9))
    assert bodies_of(office.relays()) == numbered(SHARE - 1)
    assert office.stand.router.inspect().transfers == {LANE: 1 + 9 + 1}
    office.write(BOB, C)
    relay = office.relay()
    assert relay.body == C
    office.answers(relay)
    assert office.outcome(C) == {}


def test_what_waits_goes_on_in_order_as_the_senders_own_are_answered() -> None:
    office = Shared()
    office.write(ALICE, *numbered(9))
    first = office.relays()
    office.answers(office.first[1])  # bob's
    assert office.relays() == []
    office.answers(first[1])
    second = office.relay()
    assert second.body == b"2"
    office.answers(office.first[0])
    office.answers(first[0])
    office.answers(second)
    assert office.answers_all() == numbered(6, 3)
    assert all(report.recipients == {} for report in office.reports())
    assert office.stand.router.inspect().transfers == {}
    assert office.stand.router.inspect().cases == 0


def test_numbers_of_a_lane_rise_in_the_order_in_which_its_messages_go() -> None:
    office = Shared()
    office.write(ALICE, *numbered(6))
    office.write(BOB, *numbered(6, 10))
    went = office.relays()
    for relay in went:
        office.answers(relay)
        went += office.relays()
    numbers = [relay.meta["lane"][1] for relay in went]
    assert numbers == sorted(numbers)
    assert sorted(bodies_of(went)) == sorted(numbered(6) + numbered(6, 10))


def test_message_that_passes_again_does_not_wait_for_the_first_ones_of_its_ring() -> None:
    """These have no answer before it: 300 messages of one user that passed twice stood still for 5 s."""
    office = Shared()
    peer = office.stand.server("s2")
    ring = ["s1/one", "s2/one"]
    for body in numbered(SHARE + 1):
        office.stand.relay(peer, "one", path=ring, origin="s1")
        office.stand.answer(office.one, servers("s2", body=body))
    assert bodies_of(office.relays()) == numbered(SHARE)
    office.stand.relay(peer, "one", path=2 * ring, origin="s1")
    office.stand.answer(office.one, servers("s2", body=LATE))
    assert office.relay().body == LATE


def test_a_sender_alone_has_the_whole_lane() -> None:
    office = Office(Limits(max_lane_of_one=SHARE))
    office.up()
    for body in numbered(9):
        office.sends("s2", body=body)
    assert bodies_of(office.relays()) == numbered(9)


def test_lane_that_is_shared_no_more_is_worked_off_faster_than_it_is_answered() -> None:
    office = Shared()
    office.write(ALICE, *numbered(9))
    first = office.relays()
    office.stand.world.now += SHARED_S
    office.answers(first[0])
    assert bodies_of(office.relays()) == numbered(AT_ONCE, SHARE - 1)


def test_lost_link_queues_what_waits_behind_what_was_sent() -> None:
    office = Shared()
    office.write(ALICE, *numbered(5))
    office.relays()
    office.down()
    office.stand.wait(1.0)
    assert office.waiting() == [A, B, *numbered(5)]
    assert {str(report.recipients) for report in office.reports()} == {"{'s2': 'queued'}"}
    again = office.up()
    assert [relay.meta.get("again", False) for relay in again] == [True] * 4 + [False] * 3


def test_what_waits_too_long_is_queued() -> None:
    office = Shared()
    office.write(ALICE, *numbered(9))
    own = office.relays()
    office.answers(office.first[0])
    office.stand.wait(2.5)
    for relay in own:
        office.answers(relay)
    assert bodies_of(office.relays()) == numbered(SHARE, SHARE - 1)
    office.stand.wait(3.0)
    assert office.waiting() == [B, b"2", *numbered(3, 6)]
    assert bodies_of(office.relays()) == numbered(4, 5)


def test_sender_has_more_of_a_lane_whose_answers_come_from_far_away() -> None:
    """A share is all that goes in the time of an answer: with four times as many a lane to a server far away was worked
    off by way of the disk, and slower than it grew."""
    office = Shared()
    sent: list[tuple[float, Any]] = [(office.stand.now, relay) for relay in office.first]
    for step in range(100):
        office.stand.world.now += FAR_S / 2
        while sent and sent[0][0] < office.stand.now - 2 * FAR_S:
            office.answers(sent.pop(0)[1])
        office.write(ALICE, *numbered(SHARE, SHARE * step))
        if step % 20 == 0:
            office.write(BOB, B)
        office.stand.tick()
        sent += [(office.stand.now, relay) for relay in office.relays()]
    assert {str(report.recipients) for report in office.reports()} == {"{}"}
    assert 4 * SHARE < office.stand.router.inspect().transfers[LANE] < 8 * SHARE
    last = max(int(relay.body) for _, relay in sent if relay.body != B)
    assert 100 * SHARE - last <= SHARE, "hardly any wait"


def test_sender_has_no_more_of_a_lane_whose_answers_take_longer_for_it() -> None:
    """A server that handles one message after the other is no faster with more of them."""
    office = Shared()
    office.write(ALICE, *numbered(40))
    sent = [*office.first, *office.relays()]
    for _ in range(30):
        office.stand.world.now += FAR_S / 2
        office.answers(sent.pop(0))
        sent += office.relays()
        assert len(sent) <= SHARE + 2


def test_what_waits_goes_on_where_the_others_are_overdue() -> None:
    office = Shared()
    office.write(ALICE, *numbered(5))
    office.relays()
    office.stand.wait(6.0)
    assert bodies_of(office.relays()) == numbered(3, 2)
    assert office.waiting() == [A, B, *numbered(2)]


def test_what_expires_as_it_waits_is_not_sent() -> None:
    office = Shared()
    office.write(ALICE, *numbered(SHARE - 1))
    office.write(ALICE, LATE, ttl_s=1.0)
    office.write(ALICE, LAST)
    first = office.relays()
    office.stand.world.now += 2.0
    office.answers(first[0])
    office.answers(first[1])
    outcomes = {report.token: report.recipients for report in office.reports()}
    assert outcomes.pop(office.tokens[LATE]) == {"s2": "failed:expired"}
    assert list(outcomes.values()) == [{}, {}]
    assert bodies_of(office.relays()) == [LAST]


@pytest.mark.parametrize("bodies", [numbered(5), [b'"%s"' % (b"x" * 100)] * 5])
def test_full_lane_queues_what_waits_first(bodies: list[bytes]) -> None:
    office = Shared(max_lane=6)
    office.write(ALICE, *bodies[:3])
    first = office.relays()
    assert office.waiting() == []
    office.write(ALICE, bodies[3])
    assert office.waiting() == bodies[SHARE - 1 : 4]
    office.write(ALICE, bodies[4])
    for relay in first:
        office.answers(relay)
    assert office.waiting() == bodies[SHARE - 1 :]


def test_server_that_an_operator_holds_gets_nothing_of_what_waits() -> None:
    office = Shared()
    office.write(ALICE, *numbered(5))
    first = office.relays()
    operator = office.stand.join("operator", "o")
    assert office.stand.ask(operator, "peerHold", "s2").status == 0
    office.answers(first[0])
    office.stand.wait(1.0)
    assert office.relays() == []
    assert office.waiting() == numbered(3, 2)


def test_later_outcome_of_what_a_removed_user_had_waiting_is_for_nobody() -> None:
    office = Shared()
    office.write(ALICE, *numbered(SHARE))
    office.relays()
    office.stand.take(office.stand.router.on_account_removed("alice", office.stand.now))
    office.down()
    office.stand.wait(1.0)
    senders = [entry.sender for entry in office.stand.kept(LANE)]
    assert senders == ["alice", "bob", "alice", "alice", None]


class SharedNative(Shared):
    """The same with the lane to s3, a native server."""

    target = "s3"

    def relays(self) -> list[Any]:
        return self.stand.heard_of(self.bridge, Forward)

    def answers(self, relay: Any, outcome: str = "delivered", **meta: Any) -> None:
        self.stand.say(self.bridge, Forwarded(relay.token, outcome, {"reported": True, **meta}))

    def reload(self, **routes: Route) -> None:
        """Read another configuration while alice has a message waiting, then answer one of hers."""
        self.write(ALICE, *numbered(SHARE))
        self.relays()
        self.stand.take(self.stand.router.on_reloaded(routes, {}, self.stand.now))
        self.answers(self.first[0])


def test_what_waits_goes_where_the_server_is_listed_by_then() -> None:
    """An address that was given up may be another owner's."""
    office = SharedNative()
    office.reload(s3=Route("s3", native="10.0.0.33:2223"))
    assert [(relay.body, relay.address) for relay in office.relays()] == [(b"2", "10.0.0.33:2223")]


@pytest.mark.parametrize(
    ("types", "waiting", "outcome"), [(None, [b"2"], "queued"), (frozenset({"two"}), [], "failed:not-allowed")]
)
def test_what_waits_is_not_sent_where_it_may_not_be_any_more(
    types: frozenset[str] | None, waiting: list[bytes], outcome: str
) -> None:
    office = SharedNative()
    office.reload(**({} if types is None else {"s3": Route("s3", native="10.0.0.3:2223", send_types=types)}))
    assert office.relays() == []
    assert [entry.body for entry in office.stand.kept(NATIVE)] == waiting
    (report,) = [each for each in office.reports() if each.token == office.tokens[b"2"]]
    assert report.recipients == {"s3": outcome}
