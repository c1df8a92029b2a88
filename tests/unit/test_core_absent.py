"""A message to many users who are away is queued in parts, all of it and in order, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from bester.broker.core.effects import Effects
from bester.broker.core.settings import Limits, Settings
from bester.broker.store_requests import Enqueue, mailbox
from bester.broker.wire.messages import Deliver, Open, Reply, Report, Request, Submit
from tests.unit.core_stand import START, Stand, clients

CROWD = [f"u{number}" for number in range(10)]
PART = 3
ALICE, CAROL = 1, 2


class Town:
    """A server on which ten users are away; alice and carol write to those of a test's choice. The writes of a turn are
    committed, and what is left to the next turns is taken up where the test says so."""

    def __init__(self, **limits: int) -> None:
        accounts = frozenset({"alice", "carol", *CROWD})
        settings = Settings("s1", limits=Limits(absent_at_once=PART, **limits))
        self.stand = Stand(settings, accounts=accounts, now=START - 5.0)
        self.stand.wait(5.0)
        self.bridge = self.stand.bridge("alice", "carol")
        self.chat = self.stand.handler("chat")
        self.tokens = count(1)
        self.reports: list[Report] = []
        self.deliveries: list[Deliver] = []

    def writes(
        self, *users: str, by: int = ALICE, body: bytes = b'"hi"', and_then: Sequence[Sequence[str]] = ()
    ) -> list[str]:
        """Let alice or carol write to users, and the reply have further commands `and_then`; return those for whom the
        message is queued at once."""
        submit = Submit(next(self.tokens), by, "chat", b"1", {})
        (request,) = self.stand.router.receive_all(self.bridge, [submit], self.stand.now).messages[self.chat]
        assert isinstance(request, Request)
        reply = Reply(request.token, 0, [clients(*each, body=body) for each in (users, *and_then)])
        return self._take(self.stand.router.receive_all(self.chat, [reply], self.stand.now))

    def goes_on(self) -> list[str]:
        """Take up some of what is left; return the users for whom messages are queued."""
        assert self.stand.router.has_absent
        return self._take(self.stand.router.queue_absent(self.stand.now))

    def rest(self) -> list[list[str]]:
        """Take up all that is left: the users of each part."""
        parts = []
        while self.stand.router.has_absent:
            parts.append(self.goes_on())
        return parts

    def _take(self, effects: Effects) -> list[str]:
        written = [write.entry.target for write in effects.writes if type(write) is Enqueue]
        waiting = [effects]
        while waiting:
            effects = waiting.pop(0)
            for message in effects.messages.get(self.bridge, ()):
                if type(message) is Report:
                    self.reports.append(message)
                elif type(message) is Deliver:
                    self.deliveries.append(message)
            if effects.writes:
                result = self.stand.store.commit(effects.writes)
                waiting.append(self.stand.router.on_committed(effects.writes, result, self.stand.now))
        return written

    def outcomes(self) -> list[dict[str, str]]:
        return [report.recipients for report in self.reports]


def test_few_are_queued_at_once() -> None:
    town = Town()
    assert town.writes("u0", "u1", "u2") == ["u0", "u1", "u2"]
    assert not town.stand.router.has_absent
    assert town.outcomes() == [dict.fromkeys(["u0", "u1", "u2"], "queued")]


def test_many_are_queued_in_parts_and_reported_once() -> None:
    town = Town()
    assert town.writes("u0", "nobody", *CROWD[1:]) == []
    assert town.rest() == [["u0", "u1"], ["u2", "u3", "u4"], ["u5", "u6", "u7"], ["u8", "u9"]]
    (outcomes,) = town.outcomes()
    assert outcomes == {**dict.fromkeys(CROWD, "queued"), "nobody": "failed:unknown-user"}
    assert town.stand.queued == (10, 10 * len(b'"hi"'))


def test_no_report_before_the_last_part() -> None:
    town = Town()
    town.writes(*CROWD[:4])
    town.goes_on()
    assert town.outcomes() == []
    assert not town.stand.router.idle, "a broker that ends waits for the rest"
    town.goes_on()
    assert town.outcomes() == [dict.fromkeys(CROWD[:4], "queued")]
    assert town.stand.router.idle


def test_senders_take_turns() -> None:
    town = Town()
    town.writes(*CROWD, by=ALICE)
    town.writes(*CROWD[5:], by=ALICE)
    town.writes(*CROWD[:4], by=CAROL)
    alices, carols = [*CROWD, *CROWD[5:]], CROWD[:4]
    assert town.rest() == [
        alices[:3], carols[:3], alices[3:6], [*carols[3:], *alices[6:8]], [*alices[8:10], *alices[10:11]],
        alices[11:14], alices[14:],
    ]  # fmt: skip


def test_later_message_of_the_sender_goes_behind_what_is_left() -> None:
    town = Town()
    town.writes(*CROWD, body=b'"first"')
    town.stand.router.receive_all(town.bridge, [Open(3, "u9")], town.stand.now)
    assert town.writes("u9", "u8", body=b'"second"') == []
    assert town.deliveries == []
    assert town.writes("u8", by=CAROL, body=b'"other"') == ["u8"]
    town.rest()
    assert [entry.body for entry in town.stand.kept(mailbox("u8"))] == [b'"other"', b'"first"', b'"second"']
    assert [entry.body for entry in town.stand.kept(mailbox("u9"))] == [b'"first"', b'"second"']


def test_message_to_nobody_who_is_left_overtakes() -> None:
    town = Town()
    town.writes(*CROWD[:5])
    assert town.writes("u9") == ["u9"]
    assert town.writes("alice", body=b'"note"') == []
    assert [each.body for each in town.deliveries] == [b'"note"']
    town.goes_on()
    assert town.writes("u0") == ["u0"], "the first part was queued"
    assert town.writes("u4") == []


def test_user_removed_meanwhile_gets_nothing() -> None:
    town = Town()
    town.writes(*CROWD[:5])
    town.stand.accounts = frozenset({"alice", "carol", *CROWD} - {"u4"})
    assert town.rest() == [CROWD[:3], ["u3"]]
    assert town.outcomes() == [{**dict.fromkeys(CROWD[:4], "queued"), "u4": "failed:unknown-user"}]


def test_no_more_is_left_than_the_bound() -> None:
    town = Town(max_absent=8)
    assert town.writes(*CROWD) == CROWD[:3]
    assert town.writes(*CROWD[:2], by=CAROL) == CROWD[:2]
    assert town.writes(*CROWD[:4], by=CAROL) == CROWD[3:6]
    assert town.rest() == [CROWD[:3], CROWD[6:9], ["u3", "u9"]]


def test_no_more_bytes_are_left_than_the_bound() -> None:
    town = Town(max_absent_bytes=10)
    assert town.writes(*CROWD[:4], body=b'"abcde"') == []
    assert town.writes(*CROWD[:5], by=CAROL, body=b'"abcde"') == [*CROWD[:3], *CROWD[:3], "u3", *CROWD[3:5]]
    assert not town.stand.router.has_absent


def test_commands_of_one_reply_have_room_together() -> None:
    town = Town()
    assert town.writes("u0", "u1", and_then=[["u2"], ["u0", "u3"], ["u4"]]) == ["u0", "u1", "u2"]
    assert town.rest() == [["u0", "u3", "u4"]]
    assert town.outcomes() == [dict.fromkeys(CROWD[:5], "queued")]
