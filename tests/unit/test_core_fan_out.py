"""A message to many users is sent in parts, all of it and in order, be they here or away, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from bester.broker.core.effects import Effects
from bester.broker.core.fan_out import AWAY
from bester.broker.core.settings import Limits, Settings
from bester.broker.store_requests import Enqueue, mailbox
from bester.broker.wire.messages import Confirm, Deliver, Open, Reply, Report, Request, Submit
from tests.unit.core_stand import START, Stand, clients

CROWD = [f"u{number}" for number in range(10)]
PART = 3
"""Users who are away in one part."""
ALICE, CAROL = 1, 2


class Town:
    """A server on which ten users are away, or some `here`; alice and carol write to those of a test's choice. The
    writes of a turn are committed, and what is left to the next turns is taken up where the test says so."""

    def __init__(self, *here: str, **limits: int) -> None:
        accounts = frozenset({"alice", "carol", *CROWD})
        settings = Settings("s1", limits=Limits(targets_at_once=PART * AWAY, **limits))
        self.stand = Stand(settings, accounts=accounts, now=START - 5.0)
        self.stand.wait(5.0)
        self.bridge = self.stand.bridge("alice", "carol", *here)
        self.handlers = self.stand.handler("chat", "mail")
        self.here = here
        self.tokens = count(1)
        self.reports: list[Report] = []
        self.deliveries: list[Deliver] = []

    def writes(
        self,
        *users: str,
        by: int = ALICE,
        type_: str = "chat",
        body: bytes = b'"hi"',
        and_then: Sequence[Sequence[str]] = (),
    ) -> list[str]:
        """Let alice or carol write to users, and the reply have further commands `and_then`; return those for whom the
        message is queued at once."""
        submit = Submit(next(self.tokens), by, type_, b"1", {})
        (request,) = self.stand.router.receive_all(self.bridge, [submit], self.stand.now).messages[self.handlers]
        assert isinstance(request, Request)
        reply = Reply(request.token, 0, [clients(*each, body=body) for each in (users, *and_then)])
        return self._take(self.stand.router.receive_all(self.handlers, [reply], self.stand.now))

    def goes_on(self, *, keeps: bool = True) -> list[str]:
        """Take up some of what is left; return the users for whom messages are queued."""
        assert self.stand.router.has_fan_out
        return self._take(self.stand.router.fan_out(self.stand.now, keeps=keeps))

    def rest(self) -> list[list[str]]:
        """Take up all that is left: the users of each part."""
        parts = []
        while self.stand.router.has_fan_out:
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

    def users_of(self, delivery: Deliver, *targets: list[int]) -> list[str]:
        """Return the users of a DELIVER, or of some of its targets: their sessions were opened in order."""
        return [self.here[session - 3] for _, session in targets or delivery.targets]

    def sent(self) -> list[list[str]]:
        """Return the users of each DELIVER."""
        return [self.users_of(each) for each in self.deliveries]

    def confirm(self, delivery: Deliver, failed: list[list[Any]]) -> None:
        """Let the bridge confirm a DELIVER, but for the targets that have `failed`."""
        confirm = Confirm(0, [delivery.serial], failed)
        self._take(self.stand.router.receive_all(self.bridge, [confirm], self.stand.now))

    def confirms(self) -> None:
        for each in self.deliveries:
            self.confirm(each, [])

    def outcomes(self) -> list[dict[str, str]]:
        return [report.recipients for report in self.reports]


def test_few_are_queued_at_once() -> None:
    town = Town()
    assert town.writes("u0", "u1", "u2") == ["u0", "u1", "u2"]
    assert not town.stand.router.has_fan_out
    assert town.outcomes() == [dict.fromkeys(["u0", "u1", "u2"], "queued")]


def test_many_are_queued_in_parts_and_reported_once() -> None:
    town = Town()
    assert town.writes("u0", "nobody", *CROWD[1:]) == ["u0", "u1"]
    assert town.rest() == [["u2", "u3", "u4"], ["u5", "u6", "u7"], ["u8", "u9"]]
    (outcomes,) = town.outcomes()
    assert outcomes == {**dict.fromkeys(CROWD, "queued"), "nobody": "failed:unknown-user"}
    assert town.stand.queued == (10, 10 * len(b'"hi"'))


def test_no_report_before_the_last_part() -> None:
    town = Town()
    town.writes(*CROWD[:7])
    town.goes_on()
    assert town.outcomes() == []
    assert not town.stand.router.idle, "a broker that ends waits for the rest"
    town.goes_on()
    assert town.outcomes() == [dict.fromkeys(CROWD[:7], "queued")]
    assert town.stand.router.idle


def test_users_who_are_here_are_sent_to_in_parts_four_times_as_large() -> None:
    here = [f"h{number}" for number in range(30)]
    town = Town(*here)
    assert town.writes(*here[:20], "u0", *here[20:]) == []
    assert town.sent() == [here[:12]]
    assert town.goes_on() == ["u0"]
    assert town.sent() == [here[:12], here[12:20]]
    assert town.rest() == [[]]
    assert town.sent() == [here[:12], here[12:20], here[20:]]
    assert town.outcomes() == []
    town.confirms()
    assert town.outcomes() == [{**dict.fromkeys(here, "delivered"), "u0": "queued"}]
    assert town.stand.router.idle


def test_users_who_are_here_do_not_wait_for_a_store_without_room() -> None:
    here = [f"h{number}" for number in range(30)]
    town = Town(*here)
    router = town.stand.router
    town.writes(*here[:20], "u0", *here[20:])
    town.writes(*here[:14], "u1", type_="mail")
    assert town.goes_on(keeps=False) == []
    assert town.goes_on(keeps=False) == []
    assert town.sent() == [here[:12], here[:12], here[12:20], here[12:14]]
    assert not router.may_fan_out(keeps=False), "both lists are at users who are away"
    assert router.may_fan_out(keeps=True)
    assert (town.goes_on(), town.goes_on(keeps=False), town.goes_on()) == (["u0"], [], ["u1"])
    assert (town.sent()[4:], router.has_fan_out) == ([here[20:28], here[28:]], False)


def test_users_of_a_later_part_who_were_not_reached_are_queued_in_order() -> None:
    here = [*(f"h{number}" for number in range(12)), "u0", "u1"]
    town = Town(*here)
    town.writes(*here, body=b'"first"')
    town.writes("u1", body=b'"second"')
    town.rest()
    assert town.sent() == [here[:12], ["u0", "u1"], ["u1"]]
    first, second = town.deliveries[1:]
    town.confirm(second, [[second.serial, 0, "not-connected"]])
    town.confirm(first, [[first.serial, 13, "not-connected"]])
    assert [entry.body for entry in town.stand.kept(mailbox("u1"))] == [b'"first"', b'"second"']


def test_types_take_turns() -> None:
    town = Town()
    town.writes(*CROWD, by=ALICE)
    town.writes(*CROWD[5:], by=CAROL)
    town.writes(*CROWD[:7], type_="mail")
    chat, mail = [*CROWD[3:], *CROWD[5:]], CROWD[3:7]
    assert town.rest() == [chat[:3], mail[:3], chat[3:6], [*mail[3:], *chat[6:7], *chat[7:8]], chat[8:11], chat[11:]]


def test_later_message_of_the_type_goes_behind_what_is_left() -> None:
    town = Town()
    town.writes(*CROWD, body=b'"first"')
    town.stand.router.receive_all(town.bridge, [Open(99, "u9")], town.stand.now)
    assert town.writes("u9", "u8", by=CAROL, body=b'"second"') == []
    assert town.deliveries == []
    assert town.writes("u8", type_="mail", body=b'"other"') == ["u8"]
    town.rest()
    assert [entry.body for entry in town.stand.kept(mailbox("u8"))] == [b'"other"', b'"first"', b'"second"']
    assert [each.body for each in town.deliveries] == [b'"first"', b'"second"']


def test_message_to_nobody_who_is_left_overtakes() -> None:
    town = Town()
    town.writes(*CROWD[:8])
    assert town.writes("u9") == ["u9"]
    assert town.writes("alice", body=b'"note"') == []
    assert [each.body for each in town.deliveries] == [b'"note"']
    town.goes_on()
    assert town.writes("u5") == ["u5"], "that part was queued"
    assert town.writes("u7") == []


def test_user_removed_meanwhile_gets_nothing() -> None:
    town = Town()
    town.writes(*CROWD[:5])
    town.stand.accounts = frozenset({"alice", "carol", *CROWD} - {"u4"})
    assert town.rest() == [["u3"]]
    assert town.outcomes() == [{**dict.fromkeys(CROWD[:4], "queued"), "u4": "failed:unknown-user"}]


def test_removed_account_lasts_as_long_as_its_user_is_left() -> None:
    town = Town()
    town.writes(*CROWD[:5])
    router = town.stand.router
    router.on_account_removed("u4", town.stand.now)
    assert router.has("u4"), "a new account of the name would get the message"
    town.stand.accounts = frozenset({"alice", "carol", *CROWD} - {"u4"})
    town.rest()
    assert not router.has("u4")


def test_fault_in_one_list_loses_none_and_keeps_no_other_type_back() -> None:
    town = Town()
    town.writes(*CROWD)
    town.writes(*CROWD, type_="mail")
    accounts = town.stand.accounts
    del town.stand.accounts
    with pytest.raises(AttributeError):
        town.goes_on()
    town.stand.accounts = accounts
    assert town.goes_on() == CROWD[3:6]
    town.rest()
    assert town.outcomes() == [dict.fromkeys(CROWD, "queued")] * 2


def test_no_more_is_left_than_the_bound() -> None:
    town = Town(targets_later=5)
    assert town.writes(*CROWD) == CROWD[:6]
    assert town.writes(*CROWD[:2], type_="mail") == CROWD[:2]
    assert town.writes(*CROWD[:5], type_="mail") == [*CROWD[:3], *CROWD[6:9]]
    assert town.rest() == [["u3", "u4", "u9"]]


def test_no_more_bytes_are_left_than_the_bound() -> None:
    town = Town(targets_later_bytes=10)
    assert town.writes(*CROWD[:4], body=b'"abcde"') == CROWD[:3]
    assert town.writes(*CROWD[:5], type_="mail", body=b'"abcde"') == [*CROWD[:3], "u3", "u3", "u4"]
    assert not town.stand.router.has_fan_out


def test_commands_of_one_reply_have_room_together() -> None:
    town = Town()
    assert town.writes("u0", "u1", and_then=[["u2"], ["u0", "u3"], ["u4"]]) == ["u0", "u1", "u2"]
    assert town.rest() == [["u0", "u3", "u4"]]
    assert town.outcomes() == [dict.fromkeys(CROWD[:5], "queued")]
