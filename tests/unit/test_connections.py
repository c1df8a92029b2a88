"""Numbers of the connections of the encrypted doors."""

from __future__ import annotations

from bester.broker.connections import Connection, ConnectionNumbers

KEY = b"k" * 40


def test_each_connection_has_a_name_of_its_own_and_a_later_one_a_higher_number() -> None:
    numbers = ConnectionNumbers()
    first, second = (Connection(numbers.next_name(KEY).decode(), b"x", 7) for _ in range(2))
    assert first != second
    assert first.key == second.key == KEY
    assert first.number < second.number == numbers.last


def test_doors_take_in_what_they_have_accepted_before_a_connection_has_its_number() -> None:
    numbers, last = ConnectionNumbers(), []
    numbers.looks.append(lambda: last.append(numbers.last))
    for _ in range(2):
        numbers.next_name(KEY)
    assert last == [0, 1]
