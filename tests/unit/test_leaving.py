"""So many messages leave to a party in a turn, whatever the number of its links, and each link has its turn."""

from __future__ import annotations

from collections import Counter

from bester.broker.core.effects import Link
from bester.broker.leaving import ELEMENTS, MOST_BEHIND, Leaving, split
from bester.broker.wire.messages import Answer, Goodbye, Message, Outcome, Request

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


def test_rest_of_a_turn_comes_first_in_the_next() -> None:
    leaving, eve = Leaving(), link("eve")
    leaving[eve] = requests(25)
    assert (leaving.take_turn([], MOST), leaving.has_rest) == ({eve: requests(25)[:10]}, True)
    leaving[eve] += [Goodbye()]
    assert leaving.take_turn([], MOST) == {eve: requests(25)[10:20]}
    assert (leaving.take_turn([], MOST), leaving.has_rest) == ({eve: [*requests(25)[20:], Goodbye()]}, False)
    assert leaving == {}


def test_link_that_is_halfway_through_a_batch_waits_for_its_end() -> None:
    leaving, eve, ann = Leaving(), link("eve"), link("ann")
    leaving |= {eve: requests(3), ann: requests(2)}
    assert leaving.take_turn([eve], MOST) == {ann: requests(2)}
    assert not leaving.has_rest, "the batch goes on by itself"
    assert not leaving.may_begin("eve")
    assert leaving.may_begin("ann")
    assert leaving.take_turn([], MOST) == {eve: requests(3)}
    assert leaving.may_begin("eve")


def test_nothing_more_of_a_party_is_begun_while_much_is_left_to_it() -> None:
    leaving, eve = Leaving(), link("eve")
    leaving[eve] = requests(MOST_BEHIND + MOST)
    assert leaving.may_begin("eve"), "nothing was left by an earlier turn"
    leaving.take_turn([], MOST)
    assert not leaving.may_begin("eve")
    leaving.take_turn([], MOST)
    assert leaving.may_begin("eve")


def test_lost_link_gives_back_what_an_earlier_turn_left_and_gets_a_last_word() -> None:
    leaving, eve = Leaving(), link("eve")
    leaving[eve] = [*requests(15), Goodbye()]
    assert leaving.take_unsent(eve, ()) == (), "this turn sends it"
    leaving.take_turn([], MOST)
    assert leaving.take_unsent(eve, requests(1)) == [*requests(1), *requests(15)[10:], Goodbye()]
    assert leaving == {eve: [Goodbye()]}


def test_without_encrypted_doors_all_leaves_at_once() -> None:
    leaving, eve = Leaving(), link("eve")
    leaving[eve] = requests(3 * MOST)
    assert leaving.take_turn(None, MOST) == {eve: requests(3 * MOST)}
