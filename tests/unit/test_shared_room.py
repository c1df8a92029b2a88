"""Room that the addresses of other servers share: nobody alone has all, and a configured server always gets one."""

from __future__ import annotations

from bester.bridge.half_reports import HalfReports
from bester.bridge.shared_room import SharedRoom


def _fill(room: SharedRoom, *, stranger: bool) -> int:
    """Let one more address have what it may; return how much that is."""
    own = 0
    while room.has_room(own, stranger=stranger):
        own += 1
        room.count(1, stranger=stranger)
    return own


def test_address_has_no_more_than_is_left_by_all() -> None:
    room = SharedRoom(64)
    assert [_fill(room, stranger=False) for _ in range(8)] == [32, 16, 8, 4, 2, 1, 1, 1]
    assert room.used == 65


def test_strangers_have_half_of_the_room_together() -> None:
    room = SharedRoom(64)
    assert [_fill(room, stranger=True) for _ in range(8)] == [16, 8, 4, 2, 1, 1, 0, 0]
    assert _fill(room, stranger=False) == 16


def test_strangers_have_no_room_that_others_need() -> None:
    room = SharedRoom(4)
    for _ in range(8):
        _fill(room, stranger=False)
    assert room.used == 9
    assert _fill(room, stranger=True) == 0
    room.count(-9, stranger=False)
    assert _fill(room, stranger=True) == 1


def test_address_that_holds_most_for_longest_makes_way() -> None:
    halves, cut = HalfReports(1000), list[str]()
    assert halves.hold(1, "honest", 400, 9.0, lambda: cut.append("honest")) == 0
    for number in (2, 3, 4):
        assert halves.hold(number, "hostile", 100, 0.0, lambda: cut.append("hostile")) == 0
    assert halves.hold(3, "hostile", 500, 10.0, lambda: cut.append("hostile")) == 1
    assert halves.hold(1, "honest", 0, 10.0, lambda: cut.append("honest")) == 0
    assert halves.hold(3, "hostile", 0, 10.0, lambda: cut.append("hostile")) == 0
    assert cut == ["hostile"]
