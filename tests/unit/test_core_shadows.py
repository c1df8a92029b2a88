"""Shadows get copies of answered messages; their commands are compared, and never carried out or waited for."""

from __future__ import annotations

from typing import Any

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Settings
from bester.broker.wire.messages import (
    Ask,
    Deliver,
    Emit,
    Error,
    Goodbye,
    Hello,
    Malformed,
    Outcome,
    Reply,
    Request,
)
from tests.unit.core_stand import Stand, clients, limited

TOKEN = 10**9
"""A token that no request has."""


def counts(stand: Stand, type_: str = "job", name: str = "new") -> dict[str, Any]:
    """Return the row of a shadow in the answer to `types`."""
    link = stand.join("operator", "op")
    (row,) = [row for row in stand.ask(link, "types").value["types"] if row["type"] == type_]
    (shadow,) = [shadow for shadow in row["shadows"] if shadow["name"] == name]
    return dict(shadow)


def places(stand: Stand) -> list[str]:
    """Return the places at which the log has seen a difference."""
    return [notice.fields["where"] for notice in stand.notices if notice.event == "shadow-differs"]


def staffed(**limits: Any) -> tuple[Stand, Link, Link, Link]:
    """Return a stand with a bridge of the user t, a handler and a shadow of the type job."""
    stand = Stand(limited(**limits))
    return stand, stand.bridge("t"), stand.handler("job"), stand.handler("job", name="new", shadow=True)


def test_a_shadow_gets_a_copy_and_its_commands_go_nowhere() -> None:
    stand, bridge, real, shadow = staffed()
    stand.submit(bridge, "job", b'{"n":1}')
    assert stand.heard(shadow) == []  # the copy comes with the answer
    request = stand.answer(real, clients("t", body=b"1"))
    copy = stand.request(shadow)
    assert (copy.type, copy.body, copy.user) == (request.type, request.body, request.user)
    assert copy.meta == {**request.meta, "shadow": True}
    stand.deliver(bridge)
    stand.reply(shadow, copy.token, clients("t", body=b"2"))
    assert stand.heard(bridge) == []
    assert places(stand) == ["command 1 sendClients: body"]
    shown = counts(stand)
    assert (shown["copied"], shown["same"], shown["different"], shown["inflight"]) == (1, 0, 1, 0)


def test_the_same_answer_is_counted_and_not_logged() -> None:
    stand, bridge, real, shadow = staffed()
    for body in (b'{"a":1,"b":2}', b'{"b": 2, "a": 1}'):
        stand.submit(bridge, "job")
        stand.answer(real, clients("t", body=b'{"a":1,"b":2}'))
        stand.answer(shadow, clients("t", body=body))
    assert counts(stand)["same"] == 2 and places(stand) == []


def test_refusals_and_failures_are_compared() -> None:
    stand, bridge, real, shadow = staffed()
    for status, other in ((2, 2), (1, 1), (1, 0), (0, 7)):
        stand.submit(bridge, "job")
        stand.reply(real, stand.request(real).token, status=status)
        stand.reply(shadow, stand.request(shadow).token, status=other)
    assert counts(stand)["same"] == 2 and places(stand) == ["outcome", "outcome"]


def test_payload_has_no_place_in_the_log() -> None:
    stand, bridge, real, shadow = staffed()
    stand.submit(bridge, "job")
    stand.answer(real, clients("t", body=b'{"pin":"1234"}'))
    stand.answer(shadow, clients("t", body=b'{"pin":"9999"}'))
    assert places(stand) == ["command 1 sendClients: body.pin"]
    assert not any("1234" in str(notice) or "9999" in str(notice) for notice in stand.notices)


def test_a_declared_shadow_needs_to_know_nothing_of_it() -> None:
    stand = Stand(Settings("s1", open_accounts=True, shadows=frozenset({"new"})))
    bridge, real = stand.bridge("t"), stand.handler("job")
    shadow = stand.handler("job", name="new")
    stand.submit(bridge, "job")
    stand.answer(real)
    stand.answer(shadow, clients("t"))
    assert stand.heard_of(bridge, Deliver) == [] and counts(stand)["different"] == 1


def test_a_type_with_a_shadow_alone_is_not_served() -> None:
    stand = Stand()
    bridge, shadow = stand.bridge("t"), stand.handler("job", name="new", shadow=True)
    stand.submit(bridge, "job")
    assert stand.report(bridge).reason == "unknown-type" and stand.heard(shadow) == []


def test_an_odd_wish_is_refused_as_the_program_may_mean_no_effects() -> None:
    stand = Stand()
    for odd in ("yes", 1, None):
        link = stand.link()
        stand.say(link, Hello(1, "handler", "new", {"types": ["job"], "shadow": odd}))
        assert stand.one(link, Error).code == "malformed"


def test_emits_of_a_shadow_are_answered_and_dropped() -> None:
    stand, bridge, _, shadow = staffed()
    stand.say(shadow, Emit(7, "job", [clients("t")], {}))
    assert stand.one(shadow, Outcome) == Outcome(7, 0, {})
    assert stand.heard(bridge) == []
    stand.say(shadow, Ask(8, "isClient", "t"))
    assert [message.value for message in stand.heard(shadow)] == [True]  # type: ignore[union-attr]  # an ANSWER


def test_a_shadow_that_answers_nothing_delays_nobody() -> None:
    stand, bridge, real, _ = staffed(max_copies=10)
    for _ in range(50):
        token = stand.submit(bridge, "job")
        stand.answer(real)
        assert stand.report(bridge, token).status == 0
    shown = counts(stand)
    assert (shown["copied"], shown["dropped"], shown["inflight"]) == (10, 40, 10)
    stand.wait(1)
    assert [each.fields["dropped"] for each in stand.notices if each.event == "shadow-drops"] == [40]


def test_copies_are_bounded_in_bytes_too_and_wait_for_credit() -> None:
    stand, bridge, real, _ = staffed(max_copies_bytes=100)
    slow = stand.handler("job", name="slow", credit=1, shadow=True)
    for _ in range(5):
        stand.submit(bridge, "job", b'"' + b"x" * 30 + b'"')
        stand.answer(real)
    assert (counts(stand)["dropped"], counts(stand, name="slow")["dropped"]) == (2, 2)
    for _ in range(3):
        stand.answer(slow)  # one by one, as it has a credit of one
    assert counts(stand, name="slow")["same"] == 3 and stand.heard(slow) == []


def test_a_copy_without_an_answer_is_late_and_its_credit_comes_back_with_one() -> None:
    stand, bridge, real, shadow = staffed(max_copies=1)
    stand.submit(bridge, "job")
    stand.answer(real)
    request = stand.request(shadow)
    stand.wait(31)
    assert (counts(stand)["late"], counts(stand)["inflight"]) == (1, 1)
    stand.reply(shadow, request.token, clients("t"))
    assert (counts(stand)["different"], counts(stand)["inflight"]) == (0, 0)
    stand.submit(bridge, "job")
    stand.answer(real)
    stand.answer(shadow)
    assert counts(stand)["same"] == 1


def test_a_dead_shadow_costs_nothing_and_goes_on_counting_when_it_is_back() -> None:
    stand, bridge, real, shadow = staffed()
    for number in range(3):
        stand.submit(bridge, "job")
        stand.answer(real)
        if number == 0:
            stand.answer(shadow)
    del stand.alive[shadow]
    stand.wait(10)
    assert [each.fields["name"] for each in stand.notices if each.event == "lost"] == ["new"]
    stand.heard(bridge)
    token = stand.submit(bridge, "job")
    stand.answer(real)
    assert stand.report(bridge, token).status == 0
    stand.heard(shadow)
    back = stand.handler("job", name="new", shadow=True)
    assert stand.heard(back) == []
    assert {key: counts(stand)[key] for key in ("copied", "same", "dropped")} == {"copied": 3, "same": 1, "dropped": 2}


def test_a_leaving_shadow_answers_what_it_has_and_gets_no_more() -> None:
    stand, bridge, real, shadow = staffed()
    stand.submit(bridge, "job")
    stand.answer(real)
    request = stand.request(shadow)
    stand.say(shadow, Goodbye("done"))
    assert isinstance(stand.heard(shadow)[0], Goodbye)
    stand.submit(bridge, "job")
    stand.answer(real)
    assert stand.heard(shadow) == []
    stand.reply(shadow, request.token)
    assert [each.fields["name"] for each in stand.notices if each.event == "left"] == ["new"]
    assert stand.state.peers["handler"] == 1


def test_answers_without_a_copy_and_broken_answers_are_refused() -> None:
    stand, bridge, real, shadow = staffed()
    stand.reply(shadow, TOKEN)
    assert stand.one(shadow, Error).code == "unknown-token"
    stand.submit(bridge, "job")
    stand.answer(real)
    request = stand.request(shadow)
    stand.say(shadow, Malformed("malformed", "broken", 11, request.token))
    assert stand.one(shadow, Error).code == "malformed" and places(stand) == ["outcome"]
    stand.submit(bridge, "job")
    stand.answer(real)
    stand.answer(shadow, clients("t", body=b"{"))
    assert counts(stand)["different"] == 2


def test_a_handler_becomes_a_shadow_on_the_same_link_and_a_handler_again() -> None:
    stand, bridge, real, _ = staffed()
    stand.submit(bridge, "job")
    held = stand.request(real)
    other = stand.handler("job", name="other")
    stand.say(real, Hello(1, "handler", "h", {"types": ["job"], "credit": 5, "shadow": True}))
    assert stand.request(other).meta["id"] == held.meta["id"]
    stand.heard(real)
    stand.say(real, Reply(held.token, 0, [clients("t")]))
    assert stand.one(real, Error).code == "unknown-token"
    stand.say(real, Hello(1, "handler", "h", {"types": ["job"], "credit": 5}))
    stand.heard(real)
    stand.say(other, Goodbye())
    stand.submit(bridge, "job")
    assert stand.request(real)


def test_a_shadow_has_no_contract_and_changes_none() -> None:
    stand = Stand()
    bridge, real = stand.bridge("t"), stand.handler("job", schema={"job": {"type": "integer"}})
    stand.handler("job", name="new", shadow=True, schema={"job": {"type": "string"}})
    stand.submit(bridge, "job", b"1")
    assert stand.request(real).body == b"1"
    assert not [notice for notice in stand.notices if notice.event == "contracts-differ"]


def test_long_answers_are_compared_byte_by_byte() -> None:
    stand, bridge, real, shadow = staffed()
    long = b'"' + b"x" * 100_000 + b'"'
    for body in (long, b" " + long):
        stand.submit(bridge, "job")
        stand.answer(real, clients("t", body=long))
        stand.answer(shadow, clients("t", body=body))
    assert counts(stand)["same"] == 1 and places(stand) == ["commands"]


def test_without_shadows_and_recordings_nothing_is_observed() -> None:
    stand, bridge, real, shadow = staffed()
    stand.say(shadow, Goodbye())
    stand.submit(bridge, "job")
    stand.answer(real)
    assert stand.heard_of(shadow, Request) == []


def test_copies_keep_the_order_of_the_answers() -> None:
    stand, bridge, real, shadow = staffed()
    for number in range(3):
        stand.submit(bridge, "job", b"%d" % number)
    requests = stand.heard_of(real, Request)
    for request in reversed(requests):
        stand.reply(real, request.token)
    assert [copy.body for copy in stand.heard_of(shadow, Request)] == [b"2", b"1", b"0"]


def test_limits_have_room_for_the_largest_message() -> None:
    assert Limits().max_copies_bytes >= 16 * 1024 * 1024
