"""Credit of bridges at the broker: shares, their bound while credit moves, and types that are stuck."""

from __future__ import annotations

import random

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits
from bester.broker.core.stuck_types import MAX_STUCK, Front, StuckTypes
from bester.broker.core.submit_credit import (
    LEAST,
    LEAST_BYTES,
    ROOM,
    ROOM_BYTES,
    TIMES,
    TIMES_CROWD,
    SubmitCredit,
    divided,
)
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import Error, Heartbeat, Hello, Malformed, Message, Meta, Open, Report, Welcome
from tests.unit.core_federated import finished
from tests.unit.core_stand import Stand, limited

MOST = {"credit": 16_384, "credit_bytes": 2**28}


def links(count: int) -> list[Link]:
    return [Link("ipc", b"0:%d" % number) for number in range(count)]


def total(credit: SubmitCredit) -> int:
    return credit.bounds()["submits"].used


class Party:
    """A bridge that has what it wants unreported, as far as its credit goes, and reports late."""

    def __init__(self, credit: SubmitCredit, link: Link, options: Meta = MOST) -> None:
        self.credit = credit
        self.link = link
        self.known = credit.join(link, options)
        self.wanted = 0
        self.held = 0

    def fill(self) -> None:
        """Submit up to the credit."""
        self.held = max(self.held, min(self.wanted, self.known["credit"]))

    def report(self) -> None:
        held = {"unreported": self.held, "unreported_bytes": 0, "number": self.known["number"]}
        self.credit.on_report(self.link, {**held, "more": self.wanted > self.held})


def settle(credit: SubmitCredit, parties: list[Party]) -> None:
    """Let everything that was changed reach everybody, a few times over."""
    for _ in range(24):
        for link, options in credit.share([], (0, 0)):
            next(party for party in parties if party.link == link).known = options
        for party in parties:
            party.held = min(party.held, party.known["credit"])  # the rest was reported
            party.fill()
            party.report()


@pytest.mark.parametrize(
    ("crowd", "others", "door", "times"),
    [(True, 0, "ipc", TIMES_CROWD), (False, 0, "ipc", TIMES), (True, 1, "ipc", TIMES), (True, 0, "direct", TIMES)],
)
def test_crowd_of_a_lone_bridge_gets_fewer_bytes(crowd: bool, others: int, door: str, times: float) -> None:
    credit = SubmitCredit(Limits())
    bridge = Link(door, b"b")
    known = credit.join(bridge, MOST)
    for link in links(others):
        credit.join(link, MOST)
    in_work = 20 * 2**20
    for _ in range(12):
        held = {"unreported": 64, "unreported_bytes": in_work, "number": known["number"]}
        credit.on_report(bridge, {**held, "more": True, "crowd": crowd})
        known = dict(credit.share([], (0, 0))).get(bridge, known)
    room = ROOM_BYTES + LEAST_BYTES * (1 + others)
    assert known["credit_bytes"] == pytest.approx(times * in_work + room, rel=0.13), "to an eighth"


class TestShares:
    def test_one_bridge_gets_all_that_it_can_use(self) -> None:
        credit = SubmitCredit(Limits())
        party = Party(credit, links(1)[0])
        party.wanted = 10**6
        settle(credit, [party])
        assert party.known["credit"] >= 14_000, "a change by less than an eighth is not told"

    def test_messages_that_wait_get_no_more_credit(self) -> None:
        credit = SubmitCredit(Limits())
        party = Party(credit, links(1)[0])
        party.wanted = 10**6
        for _ in range(8):
            party.fill()
            party.report()
            changed = dict(credit.share([], (party.held - 64, 0)))
            party.known = changed.get(party.link, party.known)
        assert ROOM <= party.known["credit"] < 2 * ROOM

    def test_messages_between_bridge_and_broker_get_no_more_credit(self) -> None:
        credit = SubmitCredit(Limits())
        (link,) = links(1)
        known = credit.join(link, MOST)
        for _ in range(8):
            held = {"unreported": known["credit"], "unreported_bytes": known["credit_bytes"]}
            credit.on_report(link, {**held, "number": known["number"], "more": True})
            known = dict(credit.share([], (0, 0), in_work=64)).get(link, known)
        assert ROOM <= known["credit"] < 3 * ROOM
        assert ROOM_BYTES <= known["credit_bytes"] < 6 * ROOM_BYTES, "the bytes are taken for spread alike"

    def test_bytes_that_wait_get_no_more_credit(self) -> None:
        credit = SubmitCredit(Limits())
        (link,) = links(1)
        known = credit.join(link, MOST)
        for _ in range(8):
            held = {
                "unreported": 64,
                "unreported_bytes": known["credit_bytes"],
                "number": known["number"],
                "more": True,
            }
            credit.on_report(link, held)
            known = dict(credit.share([], (0, known["credit_bytes"] - 2**20))).get(link, known)
        most = ROOM_BYTES + LEAST_BYTES + 2 * 2**20
        assert ROOM_BYTES <= known["credit_bytes"] <= most, "the room, the least share, and twice what is in work"

    def test_messages_that_are_still_leave_their_room_to_others(self) -> None:
        credit = SubmitCredit(Limits())
        party = Party(credit, links(1)[0])
        party.wanted = 10**6
        party.fill()
        party.report()
        ((_, options),) = credit.share([], (party.held, 0), (party.held, 0))
        assert options["credit"] >= party.held + ROOM

    def test_credit_follows_the_work_down_again(self) -> None:
        credit = SubmitCredit(Limits())
        party = Party(credit, links(1)[0])
        party.wanted = 10**6
        settle(credit, [party])
        changed = dict(credit.share([], (16_000, 0)))
        assert changed[party.link]["credit"] < 5 * ROOM

    @pytest.mark.parametrize("count", [2, 3, 7, 50])
    def test_flooding_bridges_share_alike(self, count: int) -> None:
        credit = SubmitCredit(Limits())
        parties = [Party(credit, link) for link in links(count)]
        for party in parties:
            party.wanted = 10**6
        settle(credit, parties)
        shares = [party.known["credit"] for party in parties]
        assert max(shares) <= min(shares) * 1.3
        assert 0.7 * 25_000 <= sum(shares) <= 25_000

    def test_bridge_with_nothing_to_say_leaves_its_share_to_others(self) -> None:
        credit = SubmitCredit(Limits())
        busy, *idle = parties = [Party(credit, link) for link in links(4)]
        busy.wanted = 10**6
        settle(credit, parties)
        assert busy.known["credit"] >= 14_000
        assert all(party.known["credit"] >= LEAST for party in idle)
        idle[0].wanted = 10**6
        settle(credit, parties)
        assert 0.7 <= busy.known["credit"] / idle[0].known["credit"] <= 1.3

    def test_bridge_that_goes_gives_its_credit_back(self) -> None:
        credit = SubmitCredit(Limits())
        first, second = parties = [Party(credit, link) for link in links(2)]
        first.wanted = second.wanted = 10**6
        settle(credit, parties)
        assert second.known["credit"] < 16_384
        credit.leave(first.link)
        settle(credit, [second])
        assert second.known["credit"] == 16_384
        credit.leave(second.link)
        assert total(credit) == 0

    def test_credit_in_use_is_given_to_nobody_else(self) -> None:
        credit = SubmitCredit(Limits())
        first = Party(credit, links(2)[0])
        first.wanted = 10**6
        first.fill()
        first.report()
        second = Party(credit, links(2)[1])
        assert second.known["credit"] <= 25_000 - first.held
        first.wanted, second.wanted = 0, 10**6
        second.report()
        changed = dict(credit.share([], (0, 0)))
        assert first.link in changed
        raised = changed.get(second.link, second.known)["credit"]
        assert raised <= 25_000 - first.held, "the first has not confirmed the lower number"

    def test_report_with_an_older_number_gives_nothing_back(self) -> None:
        credit = SubmitCredit(Limits())
        parties = [Party(credit, link) for link in links(3)]
        before = total(credit)
        for party in parties:
            credit.on_report(party.link, {"unreported": 0, "unreported_bytes": 0, "number": 999, "more": False})
        assert total(credit) == before

    def test_bridge_with_an_older_number_gets_the_latest_again(self) -> None:
        credit = SubmitCredit(Limits())
        party = Party(credit, links(1)[0])
        ((_, latest),) = credit.share(["t"], (0, 0))
        party.report()  # by the number before
        assert credit.share(["t"], (0, 0)) == [(party.link, latest)]
        assert credit.share(["t"], (0, 0)) == []
        party.known = latest
        party.report()
        assert credit.share(["t"], (0, 0)) == []

    @pytest.mark.parametrize("seed", range(30))
    def test_total_is_never_exceeded(self, seed: int) -> None:
        chance = random.Random(seed)
        credit = SubmitCredit(Limits(max_waiting=chance.choice([4, 130, 50_000])))
        most = credit.bounds()["submits"].most
        parties: list[Party] = []
        late: list[tuple[Party, Meta]] = []
        fresh = iter(links(1000))
        for _ in range(300):
            what = chance.random()
            if what < 0.05 and len(parties) < 12:
                most_of_one = chance.choice([1, 50, 16_384])
                parties.append(Party(credit, next(fresh), {"credit": most_of_one, "credit_bytes": 2**28}))
            elif what < 0.08 and parties:
                gone = parties.pop(chance.randrange(len(parties)))
                credit.leave(gone.link)
                late = [each for each in late if each[0] is not gone]
            elif what < 0.5:
                by_link = {party.link: party for party in parties}
                late += [(by_link[link], options) for link, options in credit.share([], (0, 0))]
            elif what < 0.7 and late:
                party, options = late.pop(0)
                party.known = options
            elif parties:
                party = chance.choice(parties)
                party.wanted = chance.choice([0, 10, 10**6])
                party.held = chance.randint(0, party.held)
                party.fill()
                party.report()
            assert sum(party.held for party in parties) <= most
            assert total(credit) <= most

    @pytest.mark.parametrize(
        "options", [{}, {"credit": 5}, {"credit": "5", "credit_bytes": 5}, {"credit": -1, "credit_bytes": 1},
                    {"credit": True, "credit_bytes": 1}, {"credit": 0, "credit_bytes": 7}],
    )  # fmt: skip
    def test_bridge_that_tells_no_credit_gets_none(self, options: Meta) -> None:
        credit = SubmitCredit(Limits())
        (link,) = links(1)
        assert credit.join(link, options) == {}
        credit.on_report(link, {"unreported": 1, "unreported_bytes": 1, "number": 1, "more": True})
        assert credit.share(["t"], (0, 0)) == []

    @pytest.mark.parametrize("report", [{"unreported": -1}, {"unreported": "x", "unreported_bytes": 0}, {"more": True}])
    def test_unreadable_report_changes_nothing(self, report: Meta) -> None:
        credit = SubmitCredit(Limits())
        party = Party(credit, links(1)[0])
        credit.share([], (0, 0))
        before = total(credit)
        credit.on_report(party.link, {**report, "number": 2})
        assert (credit.share([], (0, 0)), total(credit)) == ([], before)

    def test_division_gives_nobody_more_than_is_needed(self) -> None:
        one, two, three = links(3)
        assert divided(100, {one: 10, two: 50, three: 70}) == {one: 10, two: 45, three: 45}
        assert divided(100, {one: 10, two: 20, three: 30}) == {one: 10, two: 20, three: 30}
        assert divided(0, {one: 1}) == {one: 0}
        assert divided(5, {}) == {}


class TestStuck:
    def look(
        self, stuck: StuckTypes, count: int, front: object, now: float, size_bytes: int = 0, *, served: bool = True
    ) -> list[str]:
        def first(_: str) -> Front:
            return (front,)

        return stuck.look({"t": (count, size_bytes)} if count else {}, first, lambda type_: served, now)

    @pytest.mark.parametrize(("count", "size_bytes"), [(256, 0), (1, 2**23), (9000, 0)])
    def test_type_that_does_not_move_is_stuck(self, count: int, size_bytes: int) -> None:
        stuck, front = StuckTypes(Limits()), object()
        assert self.look(stuck, count, front, 0.0, size_bytes) == []
        assert self.look(stuck, count, front, 0.9, size_bytes) == []
        assert self.look(stuck, count, front, 1.0, size_bytes) == ["t"]

    def test_type_without_a_handler_is_stuck_at_once(self) -> None:
        stuck = StuckTypes(Limits())
        assert self.look(stuck, 255, "same", 0.0, served=False) == []
        assert self.look(stuck, 256, "same", 0.1, served=False) == ["t"]

    def test_type_is_still_while_nothing_moves_between_two_looks(self) -> None:
        stuck = StuckTypes(Limits())
        assert [self.look(stuck, 300, front, 0.1 * n) or set(stuck.still) for n, front in enumerate("aaabba")] == [
            set(), {"t"}, {"t"}, set(), {"t"}, set(),
        ]  # fmt: skip

    def test_type_that_moves_is_not_stuck(self) -> None:
        stuck = StuckTypes(Limits())
        for tenth in range(100):
            assert self.look(stuck, 40_000, object() if tenth % 9 == 0 else "same", tenth / 10) == []

    def test_few_messages_are_not_stuck(self) -> None:
        stuck = StuckTypes(Limits())
        assert [self.look(stuck, 255, "same", float(second)) for second in range(9)] == [[]] * 9

    def test_stuck_type_is_free_when_half_has_gone(self) -> None:
        stuck = StuckTypes(Limits())
        for second in (0.0, 1.0):
            self.look(stuck, 1000, "same", second)
        assert self.look(stuck, 501, object(), 2.0) == ["t"]
        assert self.look(stuck, 500, object(), 3.0) == []

    def test_type_of_which_nothing_waits_is_free(self) -> None:
        stuck = StuckTypes(Limits())
        for second in (0.0, 1.0):
            self.look(stuck, 1000, "same", second)
        assert self.look(stuck, 0, None, 2.0) == []

    def test_stuck_types_are_bounded(self) -> None:
        stuck = StuckTypes(Limits())
        many = {f"t{number}": (300, 0) for number in range(3 * MAX_STUCK)}
        assert stuck.look(many, lambda type_: (type_,), lambda type_: True, 0.0) == []
        assert len(stuck.look(many, lambda type_: (type_,), lambda type_: True, 1.0)) == MAX_STUCK


def welcomed(stand: Stand, link: Link, **options: int) -> Meta:
    stand.say(link, Hello(1, "bridge", "b", {"epoch": "x", **options}))
    return stand.one(link, Welcome).options


class TestBroker:
    def test_welcome_has_the_credit_of_a_bridge_that_asks(self) -> None:
        stand = Stand()
        options = welcomed(stand, stand.link(), credit=100, credit_bytes=LEAST_BYTES)
        assert (options["credit"], options["credit_bytes"], options["stuck"]) == (100, LEAST_BYTES, [])
        assert "credit" not in welcomed(stand, stand.link())

    @pytest.mark.parametrize("ordered", [False, True])
    def test_bridges_learn_which_type_is_stuck_and_when_it_is_free(self, ordered: bool) -> None:
        stand = Stand(limited(stuck_waiting=4))
        bridge = stand.bridge("alice")
        stand.say(bridge, Hello(1, "bridge", "bridge", {"epoch": "x", "credit": 100, "credit_bytes": 2**20}))
        from_alice = stand.bridge("alice")
        stuck = stand.handler("t", credit=1, order={"t": "user"} if ordered else {})
        for _ in range(6):
            stand.submit(from_alice, "t")
        stand.heard(bridge)

        def told() -> list[list[str]]:
            stand.tick()
            return [each.options["stuck"] for each in stand.inbox.pop(bridge, [])
                    if isinstance(each, Heartbeat) and each.options]  # fmt: skip

        stand.wait(0.5)
        stand.inbox.pop(bridge, None)
        stand.now += 1.5
        assert told()[-1:] == [["t"]]
        for _ in range(6):
            stand.answer(stuck)
        assert told()[-1:] == [[]]
        assert [report.status for report in stand.heard_of(from_alice, Report)] == [0] * 6
        finished(stand)

    def test_stuck_messages_count_as_work_and_leave_others_their_room(self) -> None:
        stand = Stand()
        stand.handler("slow", credit=1)
        bridge = stand.join("bridge", "b", {"epoch": "x", **MOST})
        stand.say(bridge, Open(1, "alice"))
        for _ in range(600):
            stand.submit(bridge, "slow")
        known: Meta = {}
        for _ in range(8):
            stand.wait(0.5)
            for beat in stand.heard_of(bridge, Heartbeat):
                known = beat.options or known
            report = {"unreported": 600, "unreported_bytes": 600, "more": True, "number": known.get("number", 0)}
            stand.say(bridge, Heartbeat(report))
        assert known["stuck"] == ["slow"]
        assert known["credit"] > 600 + ROOM

    def test_bytes_of_one_type_are_bounded_and_leave_room_for_another(self) -> None:
        stand = Stand(limited(max_waiting_bytes=100))
        bridge, busy, other = stand.bridge("alice"), stand.handler("t", credit=1), stand.handler("u", credit=1)
        for body in (b"1" * 90, b"2" * 60, b"3" * 60, b"4" * 40):
            stand.submit(bridge, "t", body)
        assert [report.reason for report in stand.heard_of(bridge, Report)] == ["overloaded"], "60 + 60 are too many"
        stand.submit(bridge, "u", b"5" * 90)
        assert stand.answer(other).body == b"5" * 90
        for body in (b"1" * 90, b"2" * 60, b"4" * 40):
            assert stand.answer(busy).body == body
        stand.submit(bridge, "t", b"6" * 500)
        assert stand.answer(busy).body == b"6" * 500, "what need not wait is not counted"
        assert [report.status for report in stand.heard_of(bridge, Report)] == [0] * 5
        finished(stand)

    def test_options_of_a_heartbeat_are_optional_and_checked(self) -> None:
        def through(message: Message) -> list[Message | Malformed]:
            return decode(encode([message]))

        assert encode([Heartbeat()]) == [b"\x91\x91\x03"], "as before there were options"
        assert through(Heartbeat({"credit": 1})) == [Heartbeat({"credit": 1})]
        assert decode([b"\x91\x92\x03\xa1x"]) == [Heartbeat()], "a field of another kind is ignored"
        stand = Stand()
        bridge = stand.bridge("alice")
        stand.say(bridge, Heartbeat({"unreported": 3, "more": "?"}), Heartbeat({"credit": 5}))
        assert stand.heard_of(bridge, Error) == []
