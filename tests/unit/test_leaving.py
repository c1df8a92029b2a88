"""So many messages leave to a party in a turn, whatever the number of its links, and each link has its turn."""

from __future__ import annotations

from collections import Counter

from bester.broker.core.effects import Link
from bester.broker.leaving import ELEMENTS, split
from bester.broker.wire.messages import Answer, Message, Outcome, Request

MOST = 10


def requests(count: int) -> list[Message]:
    return [Request(token, "t", b"1", None, {}) for token in range(count)]


def link(party: str, number: int = 0) -> Link:
    return Link("curve", b"0:%s%d" % (party.encode(), number), party)


def test_bound_is_one_of_all_links_of_a_party_and_each_has_its_turn_in_order() -> None:
    waits = {link("eve", number): requests(25) for number in range(4)} | {link("ann"): requests(3)}
    sent: dict[Link, list[Message]] = {each: [] for each in waits}
    turns = 0
    while waits:
        turns += 1
        later = split(waits, MOST)
        by_party: Counter[str] = Counter()
        for each, messages in waits.items():
            by_party[each.party] += len(messages)
            sent[each] += messages
        assert by_party["eve"] == MOST
        assert by_party["ann"] == (3 if turns == 1 else 0)
        if turns == 4:
            assert all(sent.values()), "each link has had a part"
        waits = later
    assert turns == 4 * 25 / MOST
    assert all(messages == requests(len(messages)) for messages in sent.values())


def test_links_of_this_machine_and_of_servers_have_no_bound() -> None:
    waits = {Link("ipc", b"1:a"): requests(50), Link("server", b"s2"): requests(50)}
    before = dict(waits)
    assert split(waits, MOST) == {}
    assert waits == before


def test_answers_with_thousands_of_elements_count_as_many_messages() -> None:
    users = ["user"] * (4 * ELEMENTS)
    answers: list[Message] = [Answer(1, 0, users), Outcome(2, 1, dict.fromkeys(map(str, range(3 * ELEMENTS)), "sent"))]
    waits = {link("eve"): [*answers, *requests(5)]}
    assert split(waits, MOST) == {link("eve"): requests(5)[1:]}
    assert waits == {link("eve"): [*answers, *requests(1)]}
    huge: list[Message] = [Answer(1, 0, users * MOST), Answer(2, 0, users)]
    waits = {link("eve"): huge, link("eve", 1): requests(1)}
    assert split(waits, MOST) == {link("eve"): huge[1:], link("eve", 1): requests(1)}
    assert waits == {link("eve"): huge[:1]}, "one leaves, however large"
