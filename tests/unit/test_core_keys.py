"""Links of parties with keys: another key on a routing id is another link, and a removed key ends its own."""

from __future__ import annotations

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Grant, Route, Settings
from bester.broker.wire.messages import (
    VERSION,
    Deliver,
    Emit,
    Error,
    Goodbye,
    Hello,
    Open,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
    Submit,
    Welcome,
)
from tests.unit.core_stand import Stand, clients

GRANTS = {
    "H": Grant("handler", "h", frozenset({"a", "b"})),
    "I": Grant("handler", "i", frozenset({"a"})),
    "S": Grant("server", "s2"),
    "B": Grant("bridge", "b"),
    "C": Grant("bridge", "c"),
}
ROUTES = {"s2": Route("s2", fabric="tcp://10.0.0.2:1", accept_types=frozenset({"a"}), key="S")}


def stand() -> Stand:
    return Stand(Settings("s1", open_accounts=True, grants=GRANTS, routes=ROUTES))


def hello(stand: Stand, link: Link, *types: str, role: str = "handler", name: str = "any label") -> None:
    stand.alive[link] = None
    stand.say(link, Hello(VERSION, role, name, {"types": list(types), "credit": 100}))


def test_a_reply_from_another_key_on_the_routing_id_counts_for_nothing() -> None:
    s = stand()
    bridge, victim, thief = s.bridge("alice"), Link("curve", b"0:id", "H"), Link("curve", b"0:id", "I")
    hello(s, victim, "a")
    s.submit(bridge, "a")
    request = s.request(victim)
    s.say(thief, Reply(request.token, 0, [clients("alice")]))
    assert s.one(thief, Error).code == "hello-first"
    s.take(s.router.on_link_lost(victim, "the connection has ended", s.now))
    hello(s, thief, "a")
    again = s.request(thief)
    assert (again.meta["attempt"], again.token != request.token) == (2, True)
    assert s.heard_of(victim, Request) == []


@pytest.mark.parametrize("grants", [{}, {"H": Grant("handler", "h", frozenset({"b"}))}, {"H": Grant("bridge", "h")}])
def test_a_key_that_is_gone_or_good_for_less_ends_its_link_and_another_gets_the_work(grants: dict[str, Grant]) -> None:
    s = stand()
    bridge, old, other = s.bridge("alice"), Link("curve", b"0:x", "H"), Link("curve", b"0:y", "I")
    hello(s, old, "a", "b")
    s.submit(bridge, "a")
    s.request(old)
    hello(s, other, "a")
    s.take(s.router.on_reloaded(ROUTES, {"I": GRANTS["I"], **grants}, s.now))
    assert s.one(old, Goodbye).reason
    assert s.request(other).meta["attempt"] == 2
    hello(s, old, "a", "b")
    assert s.one(old, Error).code == "not-allowed"


def test_a_link_that_keeps_its_grant_notices_nothing() -> None:
    s = stand()
    link = Link("curve", b"0:x", "H")
    hello(s, link, "a", "b")
    assert s.one(link, Welcome)
    s.take(s.router.on_reloaded({}, {"H": Grant("handler", "h", frozenset({"a", "b", "c"}))}, s.now))
    assert s.heard(link) == []


def test_a_servers_key_speaks_for_its_name() -> None:
    s = stand()
    s.handler("a")
    link = Link("curve", b"0:x", "S")
    hello(s, link, role="server", name="s3")
    assert s.one(link, Error).code == "not-allowed"
    hello(s, link, role="server", name="s2")
    s.heard(link)
    s.say(link, Relay(1, "b", b"1", {}))
    assert s.one(link, Relayed).outcome == "failed:not-allowed"  # not one of its types
    s.take(s.router.on_reloaded({"s2": ROUTES["s2"]._replace(accept_types=frozenset({"b"}))}, GRANTS, s.now))
    s.say(link, Relay(2, "a", b"1", {}))
    assert s.one(link, Relayed).outcome == "failed:not-allowed"  # not any more


@pytest.mark.parametrize("door", ["direct", "curve", "ipc"])
@pytest.mark.parametrize("is_away", [False, True])
def test_a_bridge_that_names_the_life_of_another_party_takes_nothing_over(door: str, is_away: bool) -> None:
    """Each id of a message shows the life: one HELLO held up all clients of `bester up` for ever."""
    s = stand()
    victim, thief = Link(door, b"0:v", "B" if door == "curve" else ""), Link("curve", b"0:t", "C")
    handler = Link("curve", b"0:x", "H")
    hello(s, handler, "a")

    def comes(link: Link) -> None:
        s.alive[link] = None
        s.say(link, Hello(VERSION, "bridge", "bridge-e", {"epoch": "e"}))

    comes(victim)
    s.say(victim, Open(1, "alice"))
    s.say(victim, Submit(7, 1, "a", b"1", {}))
    request = s.request(handler)
    if is_away and door != "direct":
        s.take(s.router.on_link_lost(victim, "the connection has ended", s.now))
        victim = victim._replace(key=b"0:w")
    comes(thief)
    assert s.one(thief, Welcome)
    s.say(thief, Open(1, "mallory"))
    s.say(thief, Submit(7, 1, "nobody", b"1", {"attempt": 2}))
    assert s.one(thief, Report).reason == "unknown-type"
    if is_away:
        comes(victim)
        s.say(victim, Open(1, "alice"))
        s.say(victim, Submit(7, 1, "a", b"1", {"attempt": 2}))
    s.say(handler, Reply(request.token, 0, [clients("alice")]))
    assert s.one(victim, Deliver).id == "s1/bridge-e/7.0"
    assert s.heard_of(thief, Deliver) == []


def test_no_bridge_has_the_ids_of_what_handlers_emit() -> None:
    s = stand()
    handler, bridge = Link("curve", b"0:x", "H"), Link("curve", b"0:b", "B")
    hello(s, handler, "a")
    s.say(handler, Emit(1, "a", [clients("nobody")], {}))
    life = s.one(handler, Welcome).options["life"]
    s.alive[bridge] = None
    s.say(bridge, Hello(VERSION, "bridge", "emit", {"epoch": life}))
    s.say(bridge, Open(1, "alice"))
    s.say(bridge, Submit(1, 1, "none", b"1", {}))
    assert not str(s.one(bridge, Report).message).startswith(f"s1/emit-{life}/")
