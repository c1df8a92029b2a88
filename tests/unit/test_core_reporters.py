"""The end of a native server's connection without a report: no answer, or `sent`, by the findings on the server."""

from __future__ import annotations

import pytest

from bester.broker.core.effects import Effects
from bester.broker.core.reporters import MAX_COUNTED, MAX_STRANGERS, REPORTING_ENDS, SILENT_ENDS, Reporters
from bester.broker.core.settings import Route, Settings
from bester.broker.store_requests import SavePeer, lane
from bester.broker.wire.messages import Forward, Forwarded, Meta, Report
from tests.unit.core_stand import Stand, servers

HOST = "10.0.0.3"
AT = f"{HOST}:2223"
WORD: Meta = {"reported": True}


class Post:
    """A server that sends alice's messages to s3, a native server, or to a stranger."""

    def __init__(self, *, accept: str = "listed", reports: bool = True, ordered: bool = False) -> None:
        routes = {"s3": Route("s3", native=AT, reports=reports, ordered=ordered)}
        self.stand = Stand(Settings("s1", open_accounts=True, accept=accept, routes=routes, hosts={HOST: ("s3",)}))
        self.stand.wait(5.0)
        self.opens()

    def opens(self) -> None:
        self.bridge = self.stand.bridge("alice")
        self.handler = self.stand.handler("t", "u")

    def restarts(self) -> None:
        self.stand.tick()
        self.stand.restart()
        self.opens()
        self.stand.wait(2.5)

    def sends(self, to: str = "s3", type_: str = "t", body: bytes = b'"hi"') -> None:
        self.stand.submit(self.bridge, type_)
        self.stand.answer(self.handler, servers(to, body=body))

    def forward(self) -> Forward:
        return self.stand.one(self.bridge, Forward)

    def ends(self, outcome: str = "sent", **meta: bool) -> Forward:
        """End the connection of the message in flight with this outcome."""
        forward = self.forward()
        self.stand.say(self.bridge, Forwarded(forward.token, outcome, dict(meta)))
        return forward

    def outcomes(self) -> dict[str, str]:
        return self.stand.report(self.bridge).recipients

    def warned(self) -> list[dict[str, object]]:
        return [notice.fields for notice in self.stand.notices if notice.event == "reports-nothing"]


def test_silent_end_of_a_server_that_has_reported_is_no_answer() -> None:
    post = Post()
    post.sends()
    post.ends("delivered", reported=True)
    assert post.outcomes() == {}
    post.sends()
    assert "again" not in post.ends().meta
    assert post.outcomes() == {"s3": "queued"}
    wait_s = 1.0
    for _ in range(SILENT_ENDS + 2):
        post.stand.wait(wait_s)
        assert post.ends().meta["again"] is True
        wait_s *= 2
    post.stand.wait(wait_s)
    assert post.forward().meta["again"] is True
    assert post.warned() == []


def test_address_that_has_reported_is_unlearned_at_the_tenth_silent_end_of_one_message() -> None:
    post = Post()
    post.sends()
    post.ends("delivered", reported=True)
    assert post.outcomes() == {}
    for body in (b"1", b"2", b"3"):
        post.sends(body=body)
    for forward in post.stand.heard_of(post.bridge, Forward):
        post.stand.say(post.bridge, Forwarded(forward.token, "sent", {}))
    assert [report.recipients for report in post.stand.heard_of(post.bridge, Report)] == [{"s3": "queued"}] * 3
    tries: dict[str, int] = {}
    for _ in range(600):
        post.stand.wait(2.0, 2.0)
        for forward in post.stand.heard_of(post.bridge, Forward):
            tries[forward.meta["id"]] = tries.get(forward.meta["id"], 1) + 1
            post.stand.say(post.bridge, Forwarded(forward.token, "sent", {}))
    assert sorted(tries.values()) == [2, 2, REPORTING_ENDS], "nothing waits behind it until the time to live is over"
    assert post.stand.kept(lane("s3", "t")) == []
    (warned,) = post.warned()
    assert warned["address"] == AT
    assert f"does another program serve {AT} now?" in str(warned["say"])
    post.sends()
    post.ends("delivered", reported=True)
    assert post.outcomes() == {}
    post.sends()
    post.ends()
    assert post.outcomes() == {"s3": "queued"}, "it reports again, and is believed to"


@pytest.mark.parametrize("between", [("delivered", WORD), ("failed:no-handler", WORD), ("sent", WORD)])
def test_report_on_another_message_proves_that_a_server_reports(between: tuple[str, Meta]) -> None:
    reporters, route = Reporters(Effects(), {AT: True}), Route("s3", native=AT)
    for _ in range(3):
        for _ in range(REPORTING_ENDS - 1):
            assert reporters.judge(route, "kills", "sent", {}) == "failed:unreachable"
        reporters.judge(route, "another", *between)
    assert reporters.judge(route, "kills", "sent", {}) == "failed:unreachable"
    assert reporters.judge(Route("s4", native="h:1"), "there", "delivered", WORD) == "delivered"
    for _ in range(REPORTING_ENDS - 2):
        assert reporters.judge(route, "kills", "sent", {}) == "failed:unreachable"
    assert reporters.judge(route, "kills", "sent", {}) == "sent", "a report of another server proves nothing"


@pytest.mark.parametrize(
    ("outcome", "meta"),
    [
        ("delivered", WORD),
        ("queued", WORD),
        ("failed:unknown-type", WORD),
        ("failed:no-handler", WORD),
        ("sent", WORD),
        ("failed:handler-failed", WORD),
    ],
)
def test_any_report_counts(outcome: str, meta: Meta) -> None:
    post = Post()
    post.sends(type_="u")
    post.ends(outcome, **meta)
    post.stand.heard(post.bridge)
    post.sends()
    post.ends()
    assert post.outcomes() == {"s3": "queued"}


def test_reported_sent_stays_sent() -> None:
    post = Post()
    post.sends()
    post.ends("sent", reported=True)
    assert post.outcomes() == {"s3": "sent"}


def test_third_silent_end_of_one_message_shows_a_server_that_never_reports() -> None:
    post = Post()
    post.sends()
    first = post.ends()
    assert post.outcomes() == {"s3": "queued"}
    post.stand.wait(1.0)
    second = post.ends()
    assert post.warned() == []
    post.stand.wait(1.0)  # the server is reachable: the back-off does not grow
    third = post.ends()
    assert (first.meta.get("again"), second.meta["again"], third.meta["again"]) == (None, True, True)
    assert [said["server"] for said in post.warned()] == ["s3"]
    assert post.stand.kept(lane("s3", "t")) == []
    post.sends()
    post.ends()
    assert post.outcomes() == {"s3": "sent"}, "it is known now"


def test_silent_ends_of_several_messages_do_not_add_up() -> None:
    post = Post()
    for type_ in ("t", "u"):
        for _ in range(SILENT_ENDS - 1):
            post.sends(type_=type_)
    for forward in post.stand.heard_of(post.bridge, Forward):
        post.stand.say(post.bridge, Forwarded(forward.token, "sent", {}))
    reports = post.stand.heard_of(post.bridge, Report)
    assert [report.recipients for report in reports] == [{"s3": "queued"}] * 4
    assert post.warned() == []


@pytest.mark.parametrize(
    ("outcome", "meta"),
    [("failed:unreachable", {}), ("failed:unreachable", {"unsent": True}), ("failed:malformed", {})],
)
def test_silent_ends_count_only_in_a_row(outcome: str, meta: Meta) -> None:
    reporters, route = Reporters(Effects(), {}), Route("s3", native=AT)
    for _ in range(3):
        for _ in range(SILENT_ENDS - 1):
            assert reporters.judge(route, "m", "sent", {}) == "failed:unreachable"
        assert reporters.judge(route, "m", outcome, meta) == outcome


def test_server_configured_without_reports_is_believed() -> None:
    post = Post(reports=False)
    post.sends()
    post.ends()
    assert post.outcomes() == {"s3": "sent"}
    post.sends()
    post.ends("failed:unreachable")
    assert post.outcomes() == {"s3": "queued"}, "a connection that was cut is no `sent`, whoever it was to"


def test_finding_on_a_server_survives_a_restart() -> None:
    post = Post()
    post.sends()
    post.ends("delivered", reported=True)
    post.outcomes()
    post.restarts()
    post.sends()
    post.ends()
    assert post.outcomes() == {"s3": "queued"}

    post = Post()
    post.sends()
    for seconds in (1.0, 1.0, 0.0):
        post.ends()
        post.stand.wait(seconds)
    post.restarts()
    post.sends()
    post.ends()
    assert post.outcomes() == {"s3": "sent"}
    post.sends()
    post.ends("delivered", reported=True)
    assert post.outcomes() == {}
    post.restarts()
    post.sends()
    post.ends()
    assert post.outcomes() == {"s3": "queued"}, "it has been replaced by one that reports"


def test_server_at_another_address_is_another_one() -> None:
    reporters = Reporters(Effects(), {AT: False})
    assert reporters.judge(Route("s3", native=AT), "m", "sent", {}) == "sent"
    assert reporters.judge(Route("s3", native="10.0.0.4:2223"), "m", "sent", {}) == "failed:unreachable"


# --- strangers ---


def test_silent_end_of_a_stranger_is_sent() -> None:
    post = Post(accept="open")
    post.sends("10.9.9.9:1")
    post.ends()
    assert post.outcomes() == {"10.9.9.9:1": "sent"}
    post.sends("10.9.9.9:1")
    post.ends("delivered", reported=True)
    assert post.outcomes() == {}
    post.sends("10.9.9.9:1")
    post.ends()
    assert post.outcomes() == {"10.9.9.9:1": "failed:unreachable"}
    post.sends("10.9.9.9:2")
    post.ends()
    assert post.outcomes() == {"10.9.9.9:2": "sent"}


def test_findings_are_bounded() -> None:
    out = Effects()
    reporters, stranger, listed = Reporters(out, {}), Route("", native="h:1"), Route("s3", native=AT)
    for number in range(MAX_STRANGERS + 1):
        reporters.judge(stranger._replace(native=f"h:{number}"), f"m{number}", "delivered", WORD)
        reporters.judge(listed, f"n{number}", "sent", {})
    assert len(reporters._strangers) == MAX_STRANGERS
    assert len(reporters._silent) == MAX_COUNTED
    assert out.writes == []
    reporters.judge(listed, "n7", "delivered", WORD)
    reporters.judge(listed, "n8", "delivered", WORD)
    assert out.writes == [SavePeer(AT, True)]


# --- order ---


def test_ordered_lane_sends_one_message_at_a_time() -> None:
    post = Post(ordered=True)
    for body in (b"1", b"2", b"3"):
        post.sends(body=body)
    first = post.forward()
    assert first.body == b"1"
    post.stand.say(post.bridge, Forwarded(first.token, "delivered", WORD))
    got = []
    for _ in (2, 3):
        forward = post.forward()
        got.append(forward.body)
        post.stand.say(post.bridge, Forwarded(forward.token, "delivered", WORD))
    assert got == [b"2", b"3"]


def test_ordered_lane_sends_a_refused_message_before_later_ones() -> None:
    post = Post(ordered=True)
    post.sends(body=b"1")
    post.ends("failed:no-handler", reported=True)
    post.sends(body=b"2")
    got = []
    post.stand.wait(1.0)
    for _ in (1, 2):
        forward = post.forward()
        got.append(forward.body)
        post.stand.say(post.bridge, Forwarded(forward.token, "delivered", WORD))
    assert got == [b"1", b"2"]


def test_ordered_lanes_do_not_wait_for_each_other() -> None:
    post = Post(ordered=True)
    post.sends(type_="t", body=b"1")
    post.sends(type_="u", body=b"2")
    assert [forward.body for forward in post.stand.heard_of(post.bridge, Forward)] == [b"1", b"2"]


def test_ordered_lane_keeps_its_order_over_a_slow_server_and_a_lost_bridge() -> None:
    post = Post(ordered=True)
    for body in (b"1", b"2", b"3"):
        post.sends(body=body)
    post.stand.wait(6.0)  # the first message is reported as queued, and still in flight
    (first,) = post.stand.heard_of(post.bridge, Forward)
    link = post.stand.bridge(name="other")
    post.stand.take(post.stand.router.on_undeliverable(post.bridge, first, post.stand.now))
    got = []
    for _ in (1, 2, 3):
        post.stand.wait(1.0)
        forward = post.stand.one(link, Forward)
        got.append((forward.body, forward.meta.get("again", False)))
        post.stand.say(link, Forwarded(forward.token, "delivered", WORD))
    assert got == [(b"1", True), (b"2", False), (b"3", False)]
