"""Native servers whose names are looked up: a server must retry until its name is known, and loses no message."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.core.cases import MAY_HAVE_ARRIVED
from bester.broker.core.effects import LookUp
from bester.broker.core.settings import Route, Settings
from bester.broker.core.strangers import COME_AGAIN, MAX_WAITING, MAX_WAITING_BYTES, WAIT_S
from bester.broker.hosts import Hosts
from bester.broker.wire.messages import Forward, Forwarded, Report, Request, Submit
from bester.broker.wire.outcomes import AGAIN, OUTCOME_TYPE
from tests.unit.core_stand import START, Stand, servers

AWAY = "10.0.0.99"
"""An address of no server."""


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
        """Pass a new table, server=address, to the router; the other names are unknown."""
        where: dict[str, tuple[str, ...]] = {"10.0.0.1": ("fixed",)}
        for name, address in addresses.items():
            where[address] = (*where.get(address, ()), name)
        unknown = {"named", "only"}.difference(addresses)
        hosts = Hosts(where, frozenset(unknown), dict.fromkeys(addresses, at))
        self.stand.take(self.stand.router.on_hosts_changed(hosts, self.stand.now))

    def comes(self, claimed: str | None, address: str = AWAY, type_: str = "two", **meta: Any) -> str:
        """Let a native server send a message; return the immediate result, as `now` does."""
        if claimed is not None:
            meta["server"] = claimed
        self.token = self.stand.submit(self.bridge, type_, session=None, scope="server", address=address, **meta)
        return self.now()

    def now(self) -> str:
        """Return "in" for a message that was taken, "waits" for one without a report, else the reason of its report."""
        if self.stand.heard_of(self.handler, Request):
            return "in"
        reports = self.stand.heard_of(self.bridge, Report)
        return (reports[-1].reason or "good") if reports else "waits"

    def in_the_end(self) -> str:
        """Return the result after a time in which no name could be looked up."""
        self.stand.wait(WAIT_S)
        return self.now()

    def doubts(self) -> list[set[str]]:
        """Return the names that the shell was asked to look up since the last call."""
        asked, self.stand.looked_up = self.stand.looked_up, []
        return [set(each) for each in asked]


@pytest.mark.parametrize(
    ("claimed", "address", "type_", "result"),
    [
        ("named", AWAY, "two", COME_AGAIN),
        ("only", AWAY, "one", COME_AGAIN),
        ("only", AWAY, "two", "not-allowed"),  # refused at any address: `only` may not send this type
        ("other", AWAY, "two", COME_AGAIN),  # perhaps `named`, under its own name
        (None, AWAY, "two", COME_AGAIN),
        (None, AWAY, "one", COME_AGAIN),
        ("fixed", AWAY, "two", "not-allowed"),
        ("named", "10.0.0.1", "two", COME_AGAIN),  # at the address of `fixed`
        ("other", "10.0.0.1", "two", "in"),
        (None, "10.0.0.1", "two", "in"),
        ("fixed", "10.0.0.1", "two", "in"),
        ("named", AWAY, OUTCOME_TYPE, COME_AGAIN),
        ("named", AWAY, "builtin", "reserved"),
    ],
)
def test_server_that_may_have_an_unknown_name_must_retry(
    claimed: str | None, address: str, type_: str, result: str
) -> None:
    gate = Gate()
    at_once = gate.comes(claimed, address, type_)
    assert at_once == ("waits" if result == COME_AGAIN else result)
    assert bool(gate.doubts()) == (result == COME_AGAIN)
    if at_once == "waits":
        assert gate.in_the_end() == result
    assert gate.stand.router.idle or at_once == "in"
    assert COME_AGAIN in AGAIN  # a sending server keeps the message


def test_waiting_message_is_taken_or_refused_once_the_names_are_known() -> None:
    gate = Gate()
    for claimed in ("named", None, "other"):
        assert gate.comes(claimed, "10.0.0.2") == "waits"
    gate.knows(named="10.0.0.2")
    assert len(gate.stand.heard_of(gate.handler, Request)) == 3
    gate = Gate()
    for claimed in ("named", None, "other"):
        assert gate.comes(claimed) == "waits"
    gate.knows(named="10.0.0.2", at=START + 1)  # `only` may still be at any address, but may not send this
    assert [report.reason for report in gate.stand.heard_of(gate.bridge, Report)] == ["not-allowed"] * 3


def test_when_all_names_are_known_a_stranger_is_refused_for_good() -> None:
    gate = Gate()
    gate.knows(named="10.0.0.2", only="10.0.0.3")
    for claimed in ("named", "only", "other", None):
        assert gate.comes(claimed, type_="one") == "waits"  # each may have moved
        assert gate.doubts()
        gate.stand.wait(0.5)
        gate.knows(named="10.0.0.2", only="10.0.0.3", at=gate.stand.now)
        assert gate.now() == "not-allowed"
    assert gate.comes("fixed", type_="one") == "not-allowed"
    assert gate.comes("named", "10.0.0.2") == "in"
    assert gate.comes("only", "10.0.0.3") == "not-allowed"
    assert gate.comes("only", "10.0.0.3", "one") == "in"
    assert gate.doubts() == []


def test_without_another_lookup_no_server_is_refused_for_good() -> None:
    gate = Gate()
    gate.knows(named="10.0.0.2", only="10.0.0.3")
    for claimed in ("named", "other", None):
        assert gate.comes(claimed) == "waits"
        assert gate.in_the_end() == COME_AGAIN
    assert gate.comes("fixed") == "not-allowed"


def test_deferred_message_is_taken_once_its_server_is_known() -> None:
    gate = Gate()
    lane: dict[str, Any] = {"id": "named/e/1", "lane": ["e", 1, 1]}
    assert gate.comes("named", "10.0.0.2", **lane) == "waits"
    assert gate.in_the_end() == COME_AGAIN
    gate.knows(named="10.0.0.2")
    assert gate.comes("named", "10.0.0.2", **lane, again=True) == "in"
    gate.knows(only="10.0.0.2")
    assert gate.comes("named", "10.0.0.2", **lane) == "waits"  # the address of `named` is unknown again


def test_moved_server_is_accepted_after_the_lookup_for_its_message() -> None:
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
    ("accept", "type_", "result"),
    [("none", "two", "not-allowed"), ("open", "two", "in"), ("open", OUTCOME_TYPE, "waits")],
)
def test_policy_that_needs_no_name(accept: str, type_: str, result: str) -> None:
    assert Gate(accept).comes("named", type_=type_) == result


def test_resubmitted_message_is_reported_once_on_the_present_link() -> None:
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
    assert len(requests) == 2  # from each bridge a request
    for request in requests:
        stand.reply(gate.handler, request.token)
    assert [report.token for report in stand.heard_of(second, Report)] == [9]
    assert stand.heard_of(first, Report) == []
    assert stand.router.idle


def test_message_that_may_have_been_processed_is_deferred_by_a_code_of_its_own() -> None:
    """A bridge submits again messages that a dead broker may have processed: the sender must mark its next attempt."""
    gate = Gate()
    assert gate.comes("named", attempt=2) == "waits"
    assert gate.in_the_end() == MAY_HAVE_ARRIVED
    assert MAY_HAVE_ARRIVED in AGAIN


def test_waiting_messages_are_bounded_and_others_must_retry() -> None:
    gate = Gate()
    assert [gate.comes("named") for _ in range(MAX_WAITING)] == ["waits"] * MAX_WAITING
    assert gate.comes("named") == COME_AGAIN
    assert gate.comes("fixed", "10.0.0.1") == "in"
    gate.stand.wait(WAIT_S)
    assert len(gate.stand.heard_of(gate.bridge, Report)) == MAX_WAITING
    body = b'"' + b"x" * (MAX_WAITING_BYTES // 4) + b'"'
    results = []
    for _ in range(5):
        gate.stand.submit(gate.bridge, "two", body, session=None, scope="server", address=AWAY, server="named")
        results.append(gate.now())
    assert results == ["waits"] * 3 + [COME_AGAIN] * 2


def test_log_names_the_possible_servers() -> None:
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
def test_each_message_is_taken_or_reported_once_and_not_refused_for_good_at_a_true_address(
    steps: list[tuple[str, str | None, str]],
) -> None:
    gate = Gate()
    stand = gate.stand
    sent: dict[int, tuple[str | None, str]] = {}
    known: dict[str, str] = {}
    reasons: dict[int, str] = {}
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
            assert report.token not in reasons
            reasons[report.token] = report.reason or "good"
            claimed, came_from = sent[report.token]
            if report.reason == "not-allowed" and claimed is not None:
                assert known.get(claimed) != came_from
    stand.wait(WAIT_S + 0.5)
    for request in stand.heard_of(gate.handler, Request):
        inside += 1
        stand.reply(gate.handler, request.token)
    reasons.update((report.token, report.reason or "good") for report in stand.heard_of(gate.bridge, Report))
    assert set(reasons) == set(sent)
    assert list(reasons.values()).count("good") == inside
    assert stand.router.idle


def test_queued_messages_are_tried_soon_after_the_address_is_found() -> None:
    gate = Gate()
    stand, bridge = gate.stand, gate.bridge

    def tried(seconds: float) -> int:
        """Let time pass without a reachable server; return the number of attempts."""
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
    while tried(1):  # by now the back-off is minutes long
        pass
    assert tried(2) == 0
    gate.knows(only="10.0.0.3")
    assert tried(3) == 0  # the address of another server does not count
    gate.knows(named="10.0.0.2", only="10.0.0.3")
    assert tried(3) >= 1


def test_lookup_is_an_effect_beside_the_answer() -> None:
    gate = Gate()
    submit = Submit(77, None, "two", b"1", {"scope": "server", "address": AWAY, "server": "named"})
    effects = gate.stand.router.receive_all(gate.bridge, [submit], gate.stand.now)
    assert LookUp(frozenset({"named"})) in effects.calls
