"""What is in flight to all users together: a bound, and a line of those who wait."""

from __future__ import annotations

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.wire.messages import Close, Confirm, Deliver, Open
from tests.unit.core_stand import START, Stand, clients, servers

BODY = b'"' + b"x" * 3_998 + b'"'
MOST = 40_000
"""Bound of a test: ten of these bodies."""


class Crowd:
    """Users with mail, alice who has sent it to them, and the bridge at which they come back."""

    def __init__(self, users: int, messages: int, **limits: int) -> None:
        names = [f"user-{number}" for number in range(users)]
        settings = Settings("s1", limits=Limits(inflight_bytes=MOST, **limits))
        self.stand = stand = Stand(settings, accounts=frozenset({"alice", *names}), now=START - 5.0)
        stand.wait(5.0)
        sender, chat = stand.bridge("alice", name="a"), stand.handler("chat")
        for _ in range(messages):
            stand.submit(sender, "chat")
            stand.answer(chat, clients(*names, body=BODY))
            assert stand.report(sender).recipients == dict.fromkeys(names, "queued")
        self.names = names
        self.bridge: Link = stand.bridge(name="b")
        self.got: dict[int, list[Deliver]] = {}

    def comes(self, *numbers: int) -> None:
        for number in numbers:
            self.stand.say(self.bridge, Open(number + 1, self.names[number]))

    def hears(self) -> list[Deliver]:
        new = self.stand.heard_of(self.bridge, Deliver)
        for each in new:
            self.got.setdefault(each.targets[0][1] - 1, []).append(each)
        return new

    @property
    def inflight_bytes(self) -> int:
        return self.stand.state.queues.mailbox_inflight_bytes


def test_users_who_come_back_at_once_take_turns() -> None:
    crowd = Crowd(50, 3)
    crowd.comes(*range(50))
    waiting = crowd.hears()
    assert 8 <= len(waiting) <= 12
    while waiting:
        assert len(waiting) * len(BODY) <= MOST + len(BODY)
        first = waiting.pop(0)
        crowd.stand.say(crowd.bridge, Confirm(first.serial))
        waiting += crowd.hears()
    assert {number: len(each) for number, each in crowd.got.items()} == dict.fromkeys(range(50), 3)
    for each in crowd.got.values():
        assert [deliver.id for deliver in each] == sorted(deliver.id for deliver in each)
        assert not any("redelivered" in deliver.meta for deliver in each)
    assert crowd.stand.queued == (0, 0)
    assert crowd.inflight_bytes == 0


def test_mailbox_with_more_waits_behind_those_in_line() -> None:
    crowd = Crowd(30, 2)
    crowd.comes(*range(30))
    order: list[int] = []
    waiting = crowd.hears()
    while waiting:
        order += [each.targets[0][1] - 1 for each in waiting]
        crowd.stand.say(crowd.bridge, Confirm(waiting[-1].serial))
        waiting = crowd.hears()
    second = [number for at, number in enumerate(order) if number in order[:at]]
    assert sorted(second) == list(range(30))
    assert len(set(order[:30])) >= 25, "nearly every user has had a message before any has had all"


def test_readers_that_take_nothing_hold_up_nobody_for_long() -> None:
    crowd = Crowd(40, 1)
    crowd.comes(*range(20))
    stopped = crowd.hears()
    assert len(stopped) < 20
    assert crowd.inflight_bytes > 0
    crowd.comes(*range(20, 40))
    assert crowd.hears() == []
    for _ in range(5):
        crowd.stand.wait(0.5)
        crowd.hears()
    assert len(crowd.got) == 40


def test_user_who_has_left_is_in_line_no_more() -> None:
    crowd = Crowd(30, 1)
    crowd.comes(*range(30))
    waiting = crowd.hears()
    gone = [number for number in range(30) if number not in crowd.got][:5]
    for number in gone:
        crowd.stand.say(crowd.bridge, Close(number + 1))
    while waiting:
        crowd.stand.say(crowd.bridge, Confirm(waiting[-1].serial))
        waiting = crowd.hears()
    crowd.stand.wait(1.0)
    assert set(crowd.got) == set(range(30)) - set(gone)
    assert [len(crowd.stand.mail(crowd.names[number])) for number in gone] == [1] * 5
    assert crowd.inflight_bytes == 0


@pytest.mark.parametrize("how", ["lost", "removed"])
def test_what_is_no_more_in_flight_makes_room(how: str) -> None:
    crowd = Crowd(30, 2)
    crowd.comes(*range(30))
    waiting = crowd.hears()
    if how == "lost":
        crowd.stand.take(crowd.stand.router.on_link_lost(crowd.bridge, "gone", crowd.stand.now))
        crowd.stand.wait(1.0)
        assert crowd.stand.queued[0] == 60
    else:
        for name in crowd.names:
            crowd.stand.take(crowd.stand.router.on_account_removed(name, crowd.stand.now))
        crowd.stand.say(crowd.bridge, Confirm(waiting[-1].serial))
        crowd.stand.wait(3.0)
        assert crowd.stand.queued == (0, 0)
    assert crowd.inflight_bytes == 0


def test_mailboxes_of_removed_accounts_wait_for_nobody() -> None:
    """Readers that take nothing kept a removed name from everybody: its mailbox waited in line, a message a turn."""
    crowd = Crowd(40, 3)
    crowd.comes(*range(40))
    crowd.hears()
    gone = crowd.names[30:]
    assert all(crowd.stand.mail(name) for name in gone)
    for name in gone:
        crowd.stand.take(crowd.stand.router.on_account_removed(name, crowd.stand.now))
    crowd.stand.tick()
    assert [crowd.stand.mail(name) for name in gone] == [[]] * 10
    assert crowd.inflight_bytes >= MOST


def test_server_that_answers_nothing_leaves_room_in_flight_for_others() -> None:
    most, types = 400_000, [f"type-{number}" for number in range(8)]
    routes = {name: Route(name, fabric=f"ipc:///{name}") for name in ("s2", "s3")}
    stand = Stand(Settings("s1", open_accounts=True, routes=routes, limits=Limits(inflight_bytes=most)))
    bridge, work = stand.bridge("alice"), stand.handler("work")
    for _ in range(15):
        stand.submit(bridge, "work")
        stand.answer(work, *(servers(name, body=BODY, as_type=type_) for name in routes for type_ in types))
    stand.heard(bridge)
    assert stand.queued[0] == 15 * 2 * 8
    stand.take(stand.router.on_server_ready("s2", stand.now))
    stand.wait(1.0)
    held = stand.state.queues.lane_inflight_bytes
    assert len(BODY) * 8 <= held <= most // 8 + 8 * 4_096
    stand.take(stand.router.on_server_ready("s3", stand.now))
    stand.wait(1.0)
    assert stand.state.queues.lane_inflight_bytes >= 2 * held - 4_096
