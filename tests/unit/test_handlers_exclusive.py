"""Exclusive use of a process: one broker at a time, in turn, and nothing of the others beside it."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bester.broker.wire.messages import Meta
from bester.handlers.exclusive import MOST_IN_A_ROW, TRANSITIONS, Event, Exclusive, State


class Broker:
    """The link to a broker, and the broker's view of it: a list of signals that it has not answered."""

    def __init__(self, *, can_pause: bool = True) -> None:
        self.can_pause = can_pause
        self.is_linked = True
        self.is_clear = True
        self.works_on_earlier = False
        self.is_barred = False
        self.held = 0
        self.handed_back = 0
        self.told: list[Meta] = []

    def bar(self, number: int) -> None:
        self.is_barred = True
        self.tell({"paused": number})

    def hand_back(self) -> None:
        self.handed_back += self.held
        self.held = 0

    def unbar(self) -> None:
        self.is_barred = False
        self.held = 0

    def tell(self, options: Meta) -> None:
        if self.is_linked:
            self.told.append(options)

    def heard(self) -> list[Meta]:
        told, self.told = self.told, []
        return told


def pair(**options: bool) -> tuple[Exclusive, Broker, Broker]:
    first, second = Broker(), Broker(**options)
    return Exclusive([first, second]), first, second


def test_use_is_granted_once_the_other_broker_has_paused_and_its_messages_are_done() -> None:
    use, first, second = pair()
    second.is_clear, second.held = False, 3
    use.on_signals(first, {"exclusive": 4})
    assert (use.state, second.is_barred, second.heard()) == (State.CLEARING, True, [{"paused": 1}])
    use.on_signals(second, {"paused": 1})
    assert second.handed_back == 3
    assert not first.heard()
    second.is_clear = True
    use.check()
    assert (use.state, first.heard(), first.is_barred) == (State.GRANTED, [{"exclusive": 4}], False)
    use.on_signals(first, {"exclusive": 0})
    assert (use.state, second.is_barred, second.heard()) == (State.FREE, False, [{"paused": 0}])


def test_messages_that_were_held_are_begun_where_the_use_ends_before_the_answer() -> None:
    use, first, second = pair()
    use.on_signals(first, {"exclusive": 1})
    second.held = 2
    use.on_signals(first, {"exclusive": 0})
    assert (second.heard(), second.is_barred) == ([{"paused": 1}, {"paused": 0}], False)
    use.on_signals(second, {"paused": 1})
    assert second.handed_back == 0


def test_brokers_take_turns() -> None:
    use, first, second = pair()
    use.on_signals(first, {"exclusive": 1})
    use.on_signals(second, {"paused": 1})
    use.on_signals(second, {"exclusive": 1})
    assert first.heard() == [{"exclusive": 1}]
    use.on_signals(first, {"exclusive": 2})  # for its next message
    assert (first.heard(), first.is_barred, second.is_barred) == ([{"paused": 2}], True, False)
    use.on_signals(first, {"paused": 2})
    assert second.heard() == [{"paused": 1}, {"exclusive": 1}]
    use.on_signals(second, {"exclusive": 0})
    assert second.heard() == [{"paused": 3}]
    use.on_signals(second, {"paused": 3})
    assert first.heard() == [{"exclusive": 2}]


def test_answer_to_an_earlier_pause_counts_for_nothing() -> None:
    use, first, second = pair()
    for number in (1, 0, 2):
        use.on_signals(first, {"exclusive": number})
    assert second.heard() == [{"paused": 1}, {"paused": 0}, {"paused": 2}]
    use.on_signals(second, {"paused": 1})
    assert not first.heard()
    use.on_signals(second, {"paused": 2})
    assert first.heard() == [{"exclusive": 2}]


def test_broker_that_does_not_know_of_it_goes_on() -> None:
    use, first, second = pair(can_pause=False)
    second.is_clear = False
    use.on_signals(first, {"exclusive": 1})
    assert (first.heard(), second.heard(), second.is_barred) == ([{"exclusive": 1}], [], False)


def test_broker_whose_link_is_lost_holds_nobody_up_and_pauses_when_it_is_back() -> None:
    use, first, second = pair()
    use.on_signals(first, {"exclusive": 1})
    second.is_linked = False
    use.on_lost(second)
    assert (first.heard(), second.heard()) == ([{"exclusive": 1}], [{"paused": 1}])
    second.is_linked = True
    use.on_linked(second)
    assert (second.heard(), second.is_barred) == ([{"paused": 2}], True)
    use.on_signals(first, {"exclusive": 0})
    assert (second.heard(), second.is_barred) == ([{"paused": 0}], False)


@pytest.mark.parametrize("number", [0, 1])
def test_message_of_an_earlier_link_that_is_still_worked_on_is_waited_for(number: int) -> None:
    use, first, second = pair()
    earlier = (first, second)[number]
    earlier.works_on_earlier = True
    use.on_signals(first, {"exclusive": 1})
    use.on_signals(second, {"paused": 1})
    use.check()
    assert not first.heard()
    earlier.works_on_earlier = False
    use.check()
    assert first.heard() == [{"exclusive": 1}]


def test_other_brokers_have_their_messages_worked_on_between_many_uses_of_one() -> None:
    use, first, second = pair()
    for number in range(MOST_IN_A_ROW):
        use.on_signals(first, {"exclusive": 1 + number})
        assert second.is_barred
    use.on_signals(first, {"exclusive": 1 + MOST_IN_A_ROW})
    assert (use.state, second.is_barred, second.heard()[-1]) == (State.FREE, False, {"paused": 0})
    use.check()
    assert (use.state, second.is_barred) == (State.CLEARING, True)


def test_loss_of_the_owner_ends_its_use() -> None:
    use, first, second = pair()
    use.on_signals(first, {"exclusive": 1})
    use.on_signals(second, {"paused": 1})
    first.is_linked = False
    use.on_lost(first)
    assert (use.state, second.heard(), second.is_barred) == (State.FREE, [{"paused": 1}, {"paused": 0}], False)


@pytest.mark.parametrize("value", [None, "1", 1.0, True, []])
def test_signal_of_another_kind_is_ignored(value: object) -> None:
    use, first, second = pair()
    use.on_signals(first, {"exclusive": value, "paused": value, "other": 1})
    assert (use.state, second.heard()) == (State.FREE, [])


ACTS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(("ask", "end", "answer", "begin", "finish", "lose", "link"))),
    max_size=60,
)


class Play:
    """A process with three brokers, the last of which does not know of exclusive use; acts are as brokers do them."""

    def __init__(self) -> None:
        self.brokers = [Broker(can_pause=number != 2) for number in range(3)]
        self.use = Exclusive(self.brokers)
        self.owner: Broker | None = None
        self.pauses: dict[Broker, list[int]] = {broker: [] for broker in self.brokers}
        self.asked = dict.fromkeys(self.brokers, 0)

    def act(self, broker: Broker, what: str) -> None:
        if self.owner is broker and what in ("ask", "end", "lose"):
            self.owner = None
        getattr(self, what)(broker)
        for each in self.brokers:
            for options in each.heard():
                self._hear(each, options)

    def _hear(self, broker: Broker, options: Meta) -> None:
        if options.get("paused"):
            self.pauses[broker].append(options["paused"])
        if "exclusive" in options:
            assert self.owner is None
            assert options == {"exclusive": self.asked[broker]}, "what was asked last"
            self.owner = broker

    def ask(self, broker: Broker) -> None:
        if broker.is_linked:
            self.asked[broker] += 1
            self.use.on_signals(broker, {"exclusive": self.asked[broker]})

    def end(self, broker: Broker) -> None:
        if broker.is_linked:
            self.use.on_signals(broker, {"exclusive": 0})

    def answer(self, broker: Broker) -> None:
        if self.pauses[broker]:
            self.use.on_signals(broker, {"paused": self.pauses[broker].pop(0)})

    def begin(self, broker: Broker) -> None:
        if broker.is_linked and not broker.is_barred:
            broker.is_clear = False

    def finish(self, broker: Broker) -> None:
        broker.is_clear = True
        self.use.check()

    def lose(self, broker: Broker) -> None:
        if broker.is_linked:
            broker.is_linked, broker.is_clear = False, True
            self.pauses[broker].clear()
            self.use.on_lost(broker)

    def link(self, broker: Broker) -> None:
        if not broker.is_linked:
            broker.is_linked = True
            self.use.on_linked(broker)


@settings(max_examples=200, deadline=None)
@given(acts=ACTS)
def test_owner_alone_begins_messages_and_everybody_does_again_in_the_end(acts: list[tuple[int, str]]) -> None:
    play = Play()
    for number, what in acts:
        play.act(play.brokers[number], what)
        if play.use.state is State.GRANTED:
            assert play.owner is not None
            assert not play.owner.is_barred
            others = [broker for broker in play.brokers[:2] if broker is not play.owner]
            assert all(broker.is_barred and broker.is_clear for broker in others)
    for broker in play.brokers:
        for what in ("link", "end", "finish"):
            play.act(broker, what)
    assert play.use.state is State.FREE
    assert not any(broker.is_barred for broker in play.brokers)


def test_table_names_every_state_and_event() -> None:
    assert {event for _, event in TRANSITIONS} == set(get_args(Event))
    assert {state for state, _ in TRANSITIONS} == set(State) == set(TRANSITIONS.values())
