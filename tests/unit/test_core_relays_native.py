"""Relays to servers of the native protocol, which a bridge reaches."""

from __future__ import annotations

import pytest

from bester.broker.core.effects import Link, Notice
from bester.broker.core.refused import LOG_AGAIN_S
from bester.broker.store_requests import Bounds, lane
from bester.broker.wire.messages import Forward, Forwarded, Goodbye, Meta, Open, Submit
from tests.unit.core_office import Office, numbered
from tests.unit.core_stand import servers


def test_repeated_message_goes_behind_the_first_in_flight_and_both_are_one() -> None:
    office = Office()
    stand = office.stand

    def opens() -> Link:
        bridge = stand.join("bridge", "b", {"epoch": "life"})
        stand.say(bridge, Open(1, "alice"))
        return bridge

    bridge = opens()
    stand.say(bridge, Submit(1, 1, "one", b"1", {}))
    stand.answer(office.one, servers("s2"))
    stand.restart()  # before the bridge has the report `queued`
    bridge, office.one = opens(), stand.handler("one")
    stand.wait(2.5)
    first = office.up()[0]
    stand.say(bridge, Submit(1, 1, "one", b"1", {"attempt": 2}))
    stand.answer(office.one, servers("s2"))
    assert (stand.report(bridge).recipients, office.relays()) == ({"s2": "queued"}, [])
    office.answers(first, "failed:no-handler")
    stand.wait(2.0)
    again = office.relay()
    assert (again.meta["id"], again.meta["again"], first.meta.get("again")) == (first.meta["id"], True, None)
    office.answers(again)
    assert office.waiting() == []


@pytest.mark.parametrize(
    ("reason", "marked"), [("unreachable", True), ("overloaded", None), ("no-handler", None), ("storage-full", None)]
)
def test_message_that_a_native_server_did_not_simply_refuse_is_marked_when_it_is_sent_again(
    reason: str, marked: bool | None
) -> None:
    """A server reports `unreachable` for a message that an earlier life of its broker may have processed."""
    office = Office()
    clock = office.stand.handler("clock", name="clock")
    office.stand.emit(clock, "clock", servers("s3", body=b"1"))
    first = office.stand.one(office.bridge, Forward)
    office.stand.say(office.bridge, Forwarded(first.token, f"failed:{reason}", {"reported": True}))
    office.stand.commit()
    office.stand.wait(5.0)
    second = office.stand.one(office.bridge, Forward)
    assert (second.meta["id"], second.meta.get("again"), first.meta.get("again")) == (first.meta["id"], marked, None)


def test_message_to_a_native_server_is_queued_until_a_bridge_links() -> None:
    office = Office()
    stand = office.stand
    clock = stand.handler("clock", name="clock")
    stand.say(office.bridge, Goodbye(None))
    stand.emit(clock, "clock", servers("s3", body=b"1"))
    assert [entry.body for entry in stand.kept(lane("s3", "clock"))] == [b"1"]
    bridge = stand.bridge()
    stand.wait(0.5)
    forward = stand.one(bridge, Forward)
    entry = stand.kept(lane("s3", "clock"))[0]
    meta: Meta = {
        "id": entry.id, "root": entry.meta["root"], "origin": "s1", "path": ["s1/clock"], "server": "s1",
        "lane": ["store", entry.number, entry.number],
    }  # fmt: skip
    assert forward.meta.pop("ttl_s") == pytest.approx(Bounds().ttl_s - 0.5)
    assert forward.meta.pop("wait_s") == office.stand.settings.limits.relay_s
    assert forward == Forward(forward.token, "10.0.0.3:2223", "clock", b"1", meta)
    stand.say(bridge, Forwarded(forward.token, "delivered", {"reported": True}))
    assert stand.kept(lane("s3", "clock")) == []


@pytest.mark.parametrize("names", [("b1", "b2"), ("b2", "b1")])
def test_bridge_for_native_servers_is_the_same_in_whatever_order_bridges_have_come(names: tuple[str, str]) -> None:
    """One bridge passes on what two brokers of a server send, and so sees which copy of a message comes second."""
    office = Office()
    stand = office.stand
    stand.say(office.bridge, Goodbye(None))
    bridges = {name: stand.join("bridge", name, {"epoch": f"life-of-{name}"}) for name in names}
    clock = stand.handler("clock", name="clock")
    stand.emit(clock, "clock", servers("s3", body=b"1"))
    assert stand.one(bridges["b1"], Forward).body == b"1"


def test_unreachable_native_server_is_tried_again_and_contact_shortens_the_back_off() -> None:
    office = Office()
    stand = office.stand
    office.sends("s3")
    word: Meta = {"reported": True}
    for seconds, code, meta in (
        (0.0, "no-handler", word), (1.0, "overloaded", word), (2.0, "unreachable", {"unsent": True}),
        (4.0, "unreachable", {}), (8.0, "no-handler", word),
    ):  # fmt: skip
        stand.wait(seconds)
        forward = stand.one(office.bridge, Forward)
        assert forward.meta.get("again", False) == (seconds == 8.0), "a broken connection says nothing of what it took"
        stand.say(office.bridge, Forwarded(forward.token, f"failed:{code}", meta))
    assert office.outcomes() == {"s3": "queued"}
    stand.submit(office.bridge, "one", session=None, scope="server", address="10.0.0.3")
    stand.wait(0.5)
    assert stand.heard_of(office.bridge, Forward) == []
    stand.wait(0.5)
    forward = stand.one(office.bridge, Forward)
    assert forward.meta["again"] is True
    stand.say(office.bridge, Forwarded(forward.token, "delivered"))
    assert stand.kept(lane("s3", "one")) == []


def test_messages_on_a_lost_bridge_go_to_the_next_soon() -> None:
    office = Office()
    stand = office.stand
    other = stand.bridge(name="other")
    for number in range(20):
        office.sends("s3", body=b"%d" % number)
    assert len(stand.heard_of(office.bridge, Forward)) == 20
    stand.say(office.bridge, Goodbye(None))
    stand.wait(1.0)
    forwards = stand.heard_of(other, Forward)
    got = [*forwards]
    while forwards:
        for forward in forwards:
            stand.say(other, Forwarded(forward.token, "delivered"))
        forwards = stand.heard_of(other, Forward)
        got += forwards
    assert [forward.body for forward in got] == numbered(20)
    assert all(forward.meta["again"] for forward in got)
    assert stand.kept(lane("s3", "one")) == []


def test_unreachable_native_server_gives_one_notice_and_its_return_another() -> None:
    office = Office()
    stand = office.stand
    lost = Notice("server-lost", {"server": "s3", "why": "nobody answers at 10.0.0.3:2223"})
    reached = Notice("server-reached", {"server": "s3"})

    def said() -> list[Notice]:
        return [notice for notice in stand.notices if notice.event.startswith("server-") and "s3" in str(notice)]

    office.sends("s3")
    seconds = 0.0
    for outcome, meta, expected in (
        ("failed:unreachable", {"unsent": True}, [lost]),
        ("failed:unreachable", {"unsent": True}, [lost]),
        ("failed:unreachable", {}, [lost]),
        ("failed:overloaded", {"unsent": True}, [lost]),  # the bridge had no room: the server was not asked
        ("failed:no-handler", {"reported": True}, [lost, reached]),  # the server has no handler, but is reachable
        ("failed:unreachable", {"reported": True}, [lost, reached]),  # the report is about a server further on
    ):
        stand.wait(seconds)
        stand.say(office.bridge, Forwarded(stand.one(office.bridge, Forward).token, outcome, meta))
        assert said() == expected
        seconds = max(1.0, 2 * seconds)


def test_native_server_that_answers_now_and_then_gives_one_notice_a_minute() -> None:
    """It chooses when it answers, and must not fill the log."""
    office = Office()
    stand = office.stand
    began = stand.now

    def said() -> list[str]:
        return [notice.event for notice in stand.notices if notice.event.startswith("server-") and "s3" in str(notice)]

    def tells(outcome: str) -> None:
        forward = stand.one(office.bridge, Forward)
        meta = {} if outcome == "failed:unreachable" else {"reported": True}
        stand.say(office.bridge, Forwarded(forward.token, outcome, meta))
        stand.commit()

    while stand.now < began + LOG_AGAIN_S - 10.0:
        office.sends("s3")
        tells("failed:unreachable")
        stand.wait(5.0)
        tells("delivered")
        assert said() == ["server-lost", "server-reached"]
    office.sends("s3")
    tells("failed:unreachable")
    for _ in range(6):  # it stays away: that is told once the minute is over
        stand.wait(40.0)
        for forward in stand.heard_of(office.bridge, Forward):
            stand.say(office.bridge, Forwarded(forward.token, "failed:unreachable", {}))
    assert said() == ["server-lost", "server-reached", "server-lost"]


def test_native_server_that_dies_with_a_message_gives_a_notice_and_a_silent_one_does_not() -> None:
    office = Office()
    stand = office.stand
    office.sends("s3")
    for _ in range(2):  # an orderly end, as of every connection of besterd
        stand.say(office.bridge, Forwarded(stand.one(office.bridge, Forward).token, "sent"))
        stand.wait(1.0)
    assert [notice.event for notice in stand.notices if notice.event == "server-lost"] == []
    stand.say(office.bridge, Forwarded(stand.one(office.bridge, Forward).token, "failed:unreachable"))
    said = [notice for notice in stand.notices if notice.event == "server-lost"]
    assert said == [Notice("server-lost", {"server": "s3", "why": "no report came from 10.0.0.3:2223"})]


def test_unreachable_stranger_gives_no_notice() -> None:
    office = Office()
    stand = office.stand
    office.sends("10.9.9.9:1")
    for forward in stand.heard_of(office.bridge, Forward):
        stand.say(office.bridge, Forwarded(forward.token, "failed:unreachable", {"unsent": True}))
    assert not [notice for notice in stand.notices if notice.event == "server-lost"]


def test_lost_server_gives_one_notice() -> None:
    office = Office()
    for _ in range(3):
        office.down()
    said = [notice for notice in office.stand.notices if notice.event == "server-lost"]
    assert said == [Notice("server-lost", {"server": "s2", "why": "nothing heard"})]
