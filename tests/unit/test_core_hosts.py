"""Native servers whose names are looked up: until one is known it is told to come again, and nothing of it ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.core.effects import LookUp
from bester.broker.core.settings import Route, Settings
from bester.broker.core.strangers import COME_AGAIN, COME_AGAIN_MARKED, MAX_WAITING, MAX_WAITING_BYTES, WAIT_S
from bester.broker.hosts import Hosts
from bester.broker.wire.messages import Forward, Forwarded, Report, Request, Submit
from bester.broker.wire.outcomes import AGAIN, OUTCOME_TYPE
from tests.unit.core_stand import START, Stand, servers

AWAY = "10.0.0.99"
"""An address of nobody's."""


class Gate:
    """A server that lists `fixed` by its address and `named` and `only` by names; `only` may send type `one`."""

    def __init__(self, accept: str = "listed") -> None:
        routes = {
            "fixed": Route("fixed", native="10.0.0.1:2223"),
            "named": Route("named", native="named.example:2223"),
            "only": Route("only", native="only.example:2223", accept_types=frozenset({"one"})),
        }
        settings = Settings(
            "s1", open_accounts=True, accept=accept, routes=routes, hosts={"10.0.0.1": ("fixed",)},
            unknown_hosts=frozenset({"named", "only"}),
        )  # fmt: skip
        self.stand = Stand(settings)
        self.bridge = self.stand.bridge("alice")
        self.handler = self.stand.handler("one", "two")

    def knows(self, *, at: float = START, **addresses: str) -> None:
        """The table is known anew: server=address; who is not named is not known."""
        where: dict[str, tuple[str, ...]] = {"10.0.0.1": ("fixed",)}
        for name, address in addresses.items():
            where[address] = (*where.get(address, ()), name)
        unknown = {"named", "only"}.difference(addresses)
        hosts = Hosts(where, frozenset(unknown), dict.fromkeys(addresses, at))
        self.stand.take(self.stand.router.on_hosts_changed(hosts, self.stand.now))

    def comes(self, claimed: str | None, address: str = AWAY, type_: str = "two", **meta: Any) -> str:
        """A native server sends a message; returns what becomes of it at once: see `now`."""
        if claimed is not None:
            meta["server"] = claimed
        self.token = self.stand.submit(self.bridge, type_, session=None, scope="server", address=address, **meta)
        return self.now()

    def now(self) -> str:
        """Return "in" where a message was taken, "waits" where nothing was said of it, else the code it was told."""
        if self.stand.heard_of(self.handler, Request):
            return "in"
        reports = self.stand.heard_of(self.bridge, Report)
        return (reports[-1].reason or "good") if reports else "waits"

    def in_the_end(self) -> str:
        """Return the same after a while in which no name could be looked up."""
        self.stand.wait(WAIT_S)
        return self.now()

    def doubts(self) -> list[set[str]]:
        """Whom the shell was asked to look up since this was last asked."""
        asked, self.stand.looked_up = self.stand.looked_up, []
        return [set(each) for each in asked]


@pytest.mark.parametrize(
    ("claimed", "address", "type_", "told"),
    [
        ("named", AWAY, "two", COME_AGAIN),
        ("only", AWAY, "one", COME_AGAIN),
        ("only", AWAY, "two", "not-allowed"),  # wherever it is: it may not send this
        ("other", AWAY, "two", COME_AGAIN),  # `named`, perhaps, under its own name
        (None, AWAY, "two", COME_AGAIN),
        (None, AWAY, "one", COME_AGAIN),
        ("fixed", AWAY, "two", "not-allowed"),
        ("named", "10.0.0.1", "two", COME_AGAIN),  # on the host of another
        ("other", "10.0.0.1", "two", "in"),
        (None, "10.0.0.1", "two", "in"),
        ("fixed", "10.0.0.1", "two", "in"),
        ("named", AWAY, OUTCOME_TYPE, COME_AGAIN),
        ("named", AWAY, "builtin", "reserved"),
    ],
)
def test_until_a_name_is_known_who_may_be_it_comes_again(
    claimed: str | None, address: str, type_: str, told: str
) -> None:
    gate = Gate()
    at_once = gate.comes(claimed, address, type_)
    assert at_once == ("waits" if told == COME_AGAIN else told)
    assert bool(gate.doubts()) == (told == COME_AGAIN)
    if at_once == "waits":
        assert gate.in_the_end() == told
    assert gate.stand.router.idle or at_once == "in"
    assert COME_AGAIN in AGAIN  # a sending server keeps the message


def test_who_waits_is_taken_in_or_refused_as_soon_as_the_names_are_known() -> None:
    gate = Gate()
    for claimed in ("named", None, "other"):
        assert gate.comes(claimed, "10.0.0.2") == "waits"
    gate.knows(named="10.0.0.2")
    assert len(gate.stand.heard_of(gate.handler, Request)) == 3
    gate = Gate()
    for claimed in ("named", None, "other"):
        assert gate.comes(claimed) == "waits"
    gate.knows(named="10.0.0.2", at=START + 1)  # `only` may still be anywhere, but may not send this
    assert [report.reason for report in gate.stand.heard_of(gate.bridge, Report)] == ["not-allowed"] * 3


def test_when_all_names_are_known_a_stranger_is_refused_for_good() -> None:
    gate = Gate()
    gate.knows(named="10.0.0.2", only="10.0.0.3")
    for claimed in ("named", "only", "other", None):
        assert gate.comes(claimed, type_="one") == "waits"  # they may have moved
        assert gate.doubts()
        gate.stand.wait(0.5)
        gate.knows(named="10.0.0.2", only="10.0.0.3", at=gate.stand.now)
        assert gate.now() == "not-allowed"
    assert gate.comes("fixed", type_="one") == "not-allowed"
    assert gate.comes("named", "10.0.0.2") == "in"
    assert gate.comes("only", "10.0.0.3") == "not-allowed"
    assert gate.comes("only", "10.0.0.3", "one") == "in"
    assert gate.doubts() == []


def test_where_names_cannot_be_looked_up_again_nobody_is_refused_for_good() -> None:
    gate = Gate()
    gate.knows(named="10.0.0.2", only="10.0.0.3")
    for claimed in ("named", "other", None):
        assert gate.comes(claimed) == "waits"
        assert gate.in_the_end() == COME_AGAIN
    assert gate.comes("fixed") == "not-allowed"


def test_the_message_that_was_put_off_is_taken_once_its_server_is_known() -> None:
    gate = Gate()
    lane: dict[str, Any] = {"id": "named/e/1", "lane": ["e", 1, 1]}
    assert gate.comes("named", "10.0.0.2", **lane) == "waits"
    assert gate.in_the_end() == COME_AGAIN
    gate.knows(named="10.0.0.2")
    assert gate.comes("named", "10.0.0.2", **lane, again=True) == "in"
    gate.knows(only="10.0.0.2")
    assert gate.comes("named", "10.0.0.2", **lane) == "waits"  # it is not known where that one is now


def test_a_server_that_moved_is_let_in_by_the_lookup_that_it_caused() -> None:
    gate = Gate()
    gate.knows(named="10.0.0.2", only="10.0.0.3")
    gate.stand.wait(1.0)
    assert gate.comes("named", "10.0.0.8") == "waits"
    assert gate.doubts() == [{"named"}]
    gate.knows(named="10.0.0.8", only="10.0.0.3", at=gate.stand.now - 0.5)
    assert gate.now() == "in"


def test_an_answer_that_is_older_than_the_question_proves_nothing() -> None:
    gate = Gate()
    gate.stand.wait(1.0)
    assert gate.comes("named") == "waits"
    gate.knows(named="10.0.0.2", only="10.0.0.3", at=gate.stand.now - 0.5)
    assert gate.now() == "waits"
    gate.knows(named="10.0.0.2", only="10.0.0.3", at=gate.stand.now + 0.1)
    assert gate.now() == "not-allowed"


@pytest.mark.parametrize(
    ("accept", "type_", "told"),
    [("none", "two", "not-allowed"), ("open", "two", "in"), ("open", OUTCOME_TYPE, "waits")],
)
def test_what_is_refused_or_let_in_whoever_it_is(accept: str, type_: str, told: str) -> None:
    assert Gate(accept).comes("named", type_=type_) == told


def test_a_bridge_that_submits_again_is_answered_once_where_it_is_now() -> None:
    gate = Gate()
    stand = gate.stand
    assert gate.comes("named", "10.0.0.2") == "waits"
    meta = {"scope": "server", "address": "10.0.0.2", "server": "named", "attempt": 2}
    epoch = {"epoch": "same"}
    first = stand.join("bridge", "far", epoch)
    stand.say(first, Submit(9, None, "two", b"1", {**meta, "attempt": 1}))
    second = stand.join("bridge", "far", epoch)
    stand.say(second, Submit(9, None, "two", b"1", meta))
    gate.knows(named="10.0.0.2")
    requests = stand.heard_of(gate.handler, Request)
    assert len(requests) == 2  # of each bridge one
    for request in requests:
        stand.reply(gate.handler, request.token)
    assert [report.token for report in stand.heard_of(second, Report)] == [9]
    assert stand.heard_of(first, Report) == []
    assert stand.router.idle


def test_what_may_have_been_carried_out_before_is_put_off_by_a_code_that_says_so() -> None:
    """A bridge says again what a broker that died may have done: the sender must mark it when it comes again."""
    gate = Gate()
    assert gate.comes("named", attempt=2) == "waits"
    assert gate.in_the_end() == COME_AGAIN_MARKED
    assert COME_AGAIN_MARKED in AGAIN


def test_as_many_wait_as_may_and_the_others_come_again() -> None:
    gate = Gate()
    assert [gate.comes("named") for _ in range(MAX_WAITING)] == ["waits"] * MAX_WAITING
    assert gate.comes("named") == COME_AGAIN
    assert gate.comes("fixed", "10.0.0.1") == "in"
    gate.stand.wait(WAIT_S)
    assert len(gate.stand.heard_of(gate.bridge, Report)) == MAX_WAITING
    body = b'"' + b"x" * (MAX_WAITING_BYTES // 4) + b'"'
    told = []
    for _ in range(5):
        gate.stand.submit(gate.bridge, "two", body, session=None, scope="server", address=AWAY, server="named")
        told.append(gate.now())
    assert told == ["waits"] * 3 + [COME_AGAIN] * 2


def test_the_log_names_who_it_may_have_been() -> None:
    gate = Gate()
    gate.comes(None, type_="one")
    gate.in_the_end()
    fields = gate.stand.notices[-1].fields
    assert (fields["server"], fields["code"], fields["perhaps"]) == (AWAY, COME_AGAIN, "named, only")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["comes", "knows", "wait"]),
        st.sampled_from(["named", "only", "fixed", None]),
        st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", AWAY]),
    ),
    max_size=40,
)


@given(STEPS)
def test_each_message_is_taken_in_or_told_once_and_never_refused_for_good_at_a_true_address(
    steps: list[tuple[str, str | None, str]],
) -> None:
    gate = Gate()
    stand = gate.stand
    sent: dict[int, tuple[str | None, str]] = {}
    known: dict[str, str] = {}
    told: dict[int, str] = {}
    inside = 0
    for what, server, address in steps:
        if what == "comes":
            meta: dict[str, Any] = {} if server is None else {"server": server}
            token = stand.submit(gate.bridge, "one", session=None, scope="server", address=address, **meta)
            sent[token] = server, address
        elif what == "knows" and server in ("named", "only"):
            known[server] = address
            gate.knows(at=stand.now, **known)
        else:
            stand.wait(0.7)
        for request in stand.heard_of(gate.handler, Request):
            inside += 1
            stand.reply(gate.handler, request.token)
        for report in stand.heard_of(gate.bridge, Report):
            assert report.token not in told
            told[report.token] = report.reason or "good"
            claimed, came_from = sent[report.token]
            if report.reason == "not-allowed" and claimed is not None:
                assert known.get(claimed) != came_from
    stand.wait(WAIT_S + 0.5)
    for request in stand.heard_of(gate.handler, Request):
        inside += 1
        stand.reply(gate.handler, request.token)
    told.update((report.token, report.reason or "good") for report in stand.heard_of(gate.bridge, Report))
    assert set(told) == set(sent)
    assert list(told.values()).count("good") == inside
    assert stand.router.idle


def test_what_waits_for_a_server_is_tried_soon_after_its_address_is_found() -> None:
    gate = Gate()
    stand, bridge = gate.stand, gate.bridge

    def tried(seconds: float) -> int:
        """Let time pass; return how often the message went out. Nobody can be reached."""
        count = 0
        for _ in range(round(seconds)):
            for forward in stand.heard_of(bridge, Forward):
                count += 1
                stand.say(bridge, Forwarded(forward.token, "failed:unreachable", {}))
            stand.wait(1.0)
        return count

    stand.submit(bridge, "two")
    stand.answer(gate.handler, servers("named"))
    assert tried(250) > 5
    assert stand.one(bridge, Report).recipients == {"named": "queued"}
    while tried(1):  # the pause is minutes long by now
        pass
    assert tried(2) == 0
    gate.knows(only="10.0.0.3")
    assert tried(3) == 0  # another one's address is no news of this one
    gate.knows(named="10.0.0.2", only="10.0.0.3")
    assert tried(3) >= 1


def test_lookup_is_an_effect_beside_the_answer() -> None:
    gate = Gate()
    submit = Submit(77, None, "two", b"1", {"scope": "server", "address": AWAY, "server": "named"})
    effects = gate.stand.router.receive_all(gate.bridge, [submit], gate.stand.now)
    assert LookUp(frozenset({"named"})) in effects.calls
